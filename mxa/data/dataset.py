"""The dataset of every collection, and the one function that creates it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader

from ..errors import InputError
from ..labels import apply_policies, check_known, resolve_labels
from .chexpert import CheXpert
from .folder import Folder
from .mimic import Mimic, MimicNegBio
from .nih import NIHChestXray14, NIHGoogle
from .padchest import PadChest
from .phantom import Phantom
from .records import Records
from .source import Source
from .splits import check_disjoint, check_unique, divide
from .table import Table, parse_columns
from .vindr import VinDr
from .xrv import read_xrv

__all__ = ["Collection", "SOURCES", "CXRDataset", "create_dataset", "from_xrv", "read_source"]

#: Names of the collections, for a command line.
Collection = Literal[
    "phantom", "nih", "nih-google", "chexpert", "mimic", "mimic-negbio", "padchest", "vindr", "table", "folder"
]
SOURCES: dict[str, type[Source]] = dict(
    zip(
        get_args(Collection),
        (Phantom, NIHChestXray14, NIHGoogle, CheXpert, Mimic, MimicNegBio, PadChest, VinDr, Table, Folder),
        strict=True,
    )
)
_logger = logging.getLogger(__name__)


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
        return [self.records.path(i) for i in np.flatnonzero(self.bad.numpy())]

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
            return self.records.image(index, getattr(self.transform, "decode_size", None))
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
        path = self.records.path(index)
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
    blank: str | Mapping[str, str] | None = None,
    views: str | Sequence[str] = "frontal",
    merge: bool = False,
    columns: str | Mapping[str, str] | None = None,
) -> CXRDataset:
    """Creates the dataset of a collection.

    Args:
        source: A name of ``SOURCES``; ``"phantom"`` is drawn and has no files.
        root: The collection's folder; the CSV or Parquet file for ``"table"``.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"`` (CheXpert also ``"valid"``, the official one); None,
            the test part where the collection has one, else everything. What a collection does not divide itself is cut
            by patient, stratified by label: 10 % of the patients validate.
        labels: Names separated by commas or in a sequence, or a name of ``mxa.labels.LABEL_SPACES``; aligned by name,
            masked where the collection lacks them. The collection's own by default.
        uncertain: Policy for uncertain labels in training, see ``mxa.labels.apply_policies``; elsewhere they are
            masked.
        blank: Policy for blank cells; the collection's habit by default.
        views: ``"frontal"``, ``"lateral"``, ``"all"``, or views listed. How many images that leaves out is logged.
        merge: Make labels that the collection lacks from others, as ``mxa.labels.MERGES`` says; logged.
        columns: For a table, what its columns are called: ``"path=file,patient=MRN"`` or a mapping.

    Raises:
        InputError: unknown source, split, label, policy or view, a missing file or column, an image named twice, a
            patient in two parts, or an empty split.
    """
    wanted = None if labels is None else resolve_labels(labels)
    records = read_source(source, root, split, wanted, columns)
    where = f"{source} {root}" if root else source
    if split is None:
        split = next((part for part in ("test", "valid") if (records.parts == part).any()), "all")
    if split == "test" and not (records.parts == "test").any():
        raise InputError(f"{where} has no test part: use --split all")
    records = _keep(records, split, views, where)
    if merge and wanted is not None:
        records, made = records.with_merged(wanted)
        for name, parts in made.items():
            _logger.info("%s: %s is merged from %s", where, name, " or ".join(parts))
    policy = uncertain if split == "train" else "U-Ignore"
    apply_policies(records.targets[:0], records.labels, uncertain)  # a wrong policy is an error in every part
    targets = apply_policies(records.targets, records.labels, policy, blank or records.blank)
    records = replace(records, targets=targets)
    if isinstance(labels, str):
        check_known(wanted, records.labels)
    if wanted is not None:
        records = records.with_labels(wanted)
    return CXRDataset(records)


def from_xrv(
    dataset: Any, labels: str | Sequence[str] | None = None, views: str | Sequence[str] = "frontal"
) -> CXRDataset:
    """Makes a TorchXRayVision dataset ours; its images keep its own transforms.

    Args:
        dataset: Any dataset object of TorchXRayVision, merged and filtered ones too.
        labels: As in ``create_dataset``; the dataset's pathologies by default.
        views: As in ``create_dataset``.

    Raises:
        InputError: no such dataset, an unknown label or view, or no image left.
    """
    records = _keep(read_xrv(dataset), "all", views, type(dataset).__name__)
    if labels is not None:
        records = records.with_labels(resolve_labels(labels))
    return CXRDataset(records)


def read_source(
    source: str,
    root: str | Path | None,
    split: str | None = None,
    labels: Sequence[str] | None = None,
    columns: str | Mapping[str, str] | None = None,
) -> Records:
    """Reads a collection's tables and divides it: every row with its part, cells as they stand.

    Args:
        source: As in ``create_dataset``, as all that follow.
        root: Folder or file.
        split: The part that is wanted, for a collection that has a table for each.
        labels: Names.
        columns: Names of a table's columns.

    Raises:
        InputError: as ``create_dataset``.
    """
    if source not in SOURCES:
        raise InputError(f"unknown data source {source!r}: give one of {', '.join(SOURCES)}")
    if columns is not None and source != "table":
        raise InputError(f"--columns is for --data table; {source} has its own")
    kind = SOURCES[source](labels, parse_columns(columns) if isinstance(columns, str) else columns)
    if split is not None and split not in kind.splits:
        raise InputError(f"unknown split {split!r}: give one of {', '.join(kind.splits)}")
    if source != "phantom":
        if root is None:
            raise InputError(f"data source {source!r} needs --root")
        if not Path(root).exists():
            raise InputError(f"no such folder or file: {root}")
    records = kind.read(Path(root or ""), split)
    where = f"{source} {root}"
    check_unique(records, where)
    check_disjoint(records, where)
    return divide(records, kind.test_percent)


def _keep(records: Records, split: str, views: str | Sequence[str], where: str) -> Records:
    """Keeps one part and the views asked for; logs how many images that is and how many other views it leaves out."""
    inside, shown = (records.parts == split) | (split == "all"), records.in_views(views)
    views = views if isinstance(views, str) else ", ".join(views)
    kept = replace(records.subset(inside & shown), split=split)
    if len(kept) == 0:
        raise InputError(
            f"{where}: split {split} has no image (views: {views}). "
            "Validation is 10 % of the patients; a table may say it in a column split"
        )
    out = int((inside & ~shown).sum())
    left = f"; {out:,} of other views left out (views: {views})" if out else ""
    _logger.info("%s: split %s has %s images%s", where, split, f"{len(kept):,}", left)
    return kept
