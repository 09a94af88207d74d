"""The dataset of every collection: samples, seeded augmentation, images that do not read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader

from ..utils.errors import InputError
from .records import Records

__all__ = ["CXRDataset"]


class CXRDataset(ImageDataset):
    """Samples ``(image, target)`` of a collection: the transform's output, and float32 ``(L,)`` with NaN where masked.

    An image that does not read raises an InputError, unless ``on_bad`` says otherwise. In any case it is remembered in
    ``bad``, ``(N,)`` bool. Worker processes and copies of the dataset share ``bad`` and the epoch.

    Args:
        records: The rows.
        transform: From ``create_transform``.
        seed: With a seed the transform's randomness is a function of (seed, epoch, index) alone; call ``set_epoch``.
        on_bad: What becomes of an image that does not read. ``"raise"``: an InputError. ``"replace"``: the next
            readable image stands in, for training. ``"mask"``: a black image with every label masked; the caller looks
            at ``bad`` afterwards.
        input_img_mode: Mode of the images that the transform is given. ``""``: gray as they are read, ``"L"``, or
            ``"F"`` where the file is deeper than 8 bits. ``"RGB"``: for timm's own transforms and its prefetcher.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable | None = None,
        seed: int | None = None,
        on_bad: Literal["raise", "replace", "mask"] = "raise",
        input_img_mode: str = "",
    ):
        super().__init__(root="", reader=_RecordsReader(records), transform=transform, input_img_mode=input_img_mode)
        self.records = records
        self.seed = seed
        self.on_bad = on_bad
        self.bad = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the L targets."""
        return self.records.labels

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the seeded randomness, in worker processes too."""
        self._epoch.fill_(epoch)

    def derived_seed(self) -> int:
        """A seed that is a function of (seed, epoch)."""
        return derive_seed(self.seed, int(self._epoch))

    def bad_paths(self) -> list[str]:
        """Names the images that did not read so far."""
        return [self.records.path(i) for i in np.flatnonzero(self.bad.numpy())]

    def check(self) -> None:
        """Raises an InputError that says why the first bad image does not read, if there is one."""
        if self.bad.any():
            self.records.image(int(self.bad.int().argmax()))
            raise InputError(f"{self.bad_paths()[0]} could not be read")

    def __getitem__(self, index: int):
        """Reads, transforms and returns ``(image, target)``."""
        image = self._image(index)
        if image is None and self.on_bad == "replace":
            index, image = next(self._readable_after(index), (index, None))
            if image is None:
                self.check()
        return self._sample(index, image)

    def _sample(self, index: int, image: Image.Image | None) -> tuple:
        """Transforms an image and adds its target; None stands for an image that does not read."""
        target = torch.from_numpy(self.records.targets[index].copy())
        if image is None:
            image, target = Image.new("L", (64, 64)), torch.full_like(target, torch.nan)
        if self.input_img_mode:
            image = image.convert("L").convert(self.input_img_mode)
        if self.transform is not None:
            with seeded(self.seed, int(self._epoch), index):
                image = self.transform(image)
        return image, target

    def _image(self, index: int, read: Callable | None = None) -> Image.Image | None:
        """Reads an image, with ``read`` where it is given. Of one that does not read, ``bad`` is set and None returned.

        Raises:
            InputError: the image does not read and ``on_bad`` is ``"raise"``.
        """
        try:
            return (read or self.records.image)(index, getattr(self.transform, "decode_size", None))
        except InputError:
            self.bad[index] = True
            if self.on_bad == "raise":
                raise
            return None

    def _readable_after(self, index: int) -> Iterator[tuple[int, Image.Image]]:
        for i in range(index + 1, index + len(self)):
            other = i % len(self)
            if not self.bad[other] and (image := self._image(other)) is not None:
                yield other, image


class _RecordsReader(Reader):
    """timm's reader interface over records: loaders and samplers ask it for length and names."""

    def __init__(self, records: Records):
        super().__init__()
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.records.path(index)
        return Path(path).name if basename else path


def derive_seed(*key: int) -> int:
    """Mixes integers into one seed."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@contextmanager
def seeded(seed: int | None, *key: int) -> Iterator[None]:
    """Makes random numbers (torch, numpy, random) a function of seed and key inside the block; None does nothing."""
    if seed is None:
        yield
        return
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    derived = derive_seed(seed, *key)
    torch.default_generator.manual_seed(derived)  # torch.manual_seed would seed CUDA too, for good
    np.random.seed(derived)
    random.seed(derived)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
