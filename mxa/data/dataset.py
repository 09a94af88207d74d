"""The dataset of every collection, and the one function that creates it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader

from ..errors import InputError
from ..labels import check_known, resolve_labels
from .chexpert import read_chexpert
from .nih import read_nih
from .phantom import read_phantom
from .records import Records
from .table import read_table

__all__ = ["SOURCES", "CXRDataset", "create_dataset"]

SOURCES = ("phantom", "nih", "chexpert", "table")


class CXRDataset(ImageDataset):
    """Samples ``(image, target)`` of a collection: the transform's output, and float32 ``(L,)`` with NaN where masked.

    An image that does not read is remembered in ``bad`` (shared with worker processes). In training the next readable
    one stands in for it; otherwise it becomes a black image whose labels are all masked, and ``check`` raises.

    Args:
        records: The rows.
        transform: From ``create_transform``.
        seed: With a seed the transform's randomness is a function of (seed, epoch, index) alone; call ``set_epoch``.
        replace_bad: Let another image stand in for a bad one.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable | None = None,
        seed: int | None = None,
        replace_bad: bool = False,
    ):
        super().__init__(root="", reader=_RecordsReader(records), transform=transform)
        self.records = records
        self.seed = seed
        self.replace_bad = replace_bad
        self.bad = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the L targets."""
        return self.records.labels

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the seeded randomness, in worker processes too."""
        self._epoch.fill_(epoch)

    def bad_paths(self) -> list[str]:
        """Names the images that did not read so far."""
        return [str(path) for path in self.records.paths[self.bad.numpy()]]

    def check(self) -> None:
        """Raises an InputError that says why the first bad image does not read, if there is one."""
        if self.bad.any():
            self.records.image(int(self.bad.int().argmax()))
            raise InputError(f"{self.bad_paths()[0]} could not be read")

    def __getitem__(self, index: int):
        """Reads, transforms and returns ``(image, target)``."""
        image = self._image(index)
        if image is None and self.replace_bad:
            index, image = next(self._readable_after(index), (index, None))
            if image is None:
                self.check()
        target = torch.from_numpy(self.records.targets[index].copy())
        if image is None:
            image, target = Image.new("L", (64, 64)), torch.full_like(target, torch.nan)
        if self.transform is not None:
            with seeded(self.seed, int(self._epoch), index):
                image = self.transform(image)
        return image, target

    def _image(self, index: int) -> Image.Image | None:
        """Reads an image; remembers one that does not read."""
        try:
            return self.records.image(index)
        except InputError:
            self.bad[index] = True
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
        path = str(self.records.paths[index])
        return Path(path).name if basename else path


@contextmanager
def seeded(seed: int | None, *key: int) -> Iterator[None]:
    """Makes random numbers (torch, numpy, random) a function of seed and key inside the block; None does nothing."""
    if seed is None:
        yield
        return
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    derived = int(np.random.SeedSequence((seed, *key)).generate_state(1)[0])
    torch.default_generator.manual_seed(derived)  # torch.manual_seed would seed CUDA too, for good
    np.random.seed(derived)
    random.seed(derived)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def create_dataset(
    source: str,
    root: str | Path | None = None,
    split: str | None = None,
    labels: str | Sequence[str] | None = None,
    uncertain: str | Mapping[str, str] = "U-Ones",
    blank: str | None = None,
    views: str | Sequence[str] = "frontal",
) -> CXRDataset:
    """Creates the dataset of a collection.

    Args:
        source: ``"phantom"`` (drawn, no files), ``"nih"``, ``"chexpert"`` or ``"table"``.
        root: The collection's folder; the CSV for ``"table"``.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"`` (CheXpert also ``"valid"``, the official one); None,
            the test part where the collection has one, else everything. Train and val are cut from the training part
            by patient.
        labels: Names separated by commas or in a sequence, or ``"chexpert"``, ``"nih"``, ``"xrv"``; aligned by name,
            masked where the collection lacks them. The collection's own by default.
        uncertain: Policy for uncertain labels in training: ``"U-Ones"``, ``"U-Zeros"``, ``"U-Ignore"``, ``"LSR"``, or
            a mapping by label.
        blank: Policy for blank cells: ``"negative"`` (CheXpert's default) or ``"ignore"`` (a table's).
        views: ``"frontal"``, ``"lateral"``, ``"all"``, or views listed.

    Raises:
        InputError: unknown source, split, label, policy or view, a missing file or column, or an empty split.
    """
    if source not in SOURCES:
        raise InputError(f"unknown data source {source!r}: give one of {', '.join(SOURCES)}")
    splits = ("train", "val", "test", "all", *(("valid",) if source == "chexpert" else ()))
    if split is not None and split not in splits:
        raise InputError(f"unknown split {split!r}: give one of {', '.join(splits)}")
    if source != "phantom":
        if root is None:
            raise InputError(f"data source {source!r} needs --root")
        if not Path(root).exists():
            raise InputError(f"no such folder or file: {root}")
    wanted = None if labels is None else resolve_labels(labels)
    if source == "phantom":
        records = read_phantom(split)
    elif source == "nih":
        records = read_nih(root, split)
    elif source == "chexpert":
        records = read_chexpert(root, split, uncertain, blank or "negative")
    else:
        records = read_table(root, split, wanted, uncertain, blank or "ignore")
    if isinstance(labels, str):
        check_known(wanted, records.labels)
    if wanted is not None:
        records = records.with_labels(wanted)
    records = records.with_views(views)
    if len(records) == 0:
        raise InputError(
            f"{source} {root or ''}: split {split or 'default'} has no image (views: {views}). "
            "Validation is 10 % of the patients, by a hash; a table may say it in a column split"
        )
    return CXRDataset(records)
