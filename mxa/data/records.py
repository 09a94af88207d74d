"""A collection's tables as columns, with one row for each image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.dtypes import StringDType
from PIL import Image

from ..labels import align, merge
from ..utils.errors import InputError
from ..utils.text import printable
from .image_io import read_image
from .tables import numbers

__all__ = ["SPLIT_NAMES", "Records", "concatenate", "hash_keys", "normal_sex", "text_column", "years"]

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev", "development", "tune", "tuning"),
    "test": ("test", "testing", "holdout", "hold out", "hold-out", "hold_out"),
}
#: What people call the splits, in lower case: also ``training set``, ``test_set`` and so on.
SPLIT_NAMES = {
    f"{word}{end}": split
    for split, words in _SPLITS.items()
    for word in words
    for end in ("", "set", " set", "-set", "_set")
}

_YEARS_IN = {"": 1, "Y": 1, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_GROUPS = {"all": ("AP", "PA", "", "LATERAL", "OTHER"), "frontal": ("AP", "PA", ""), "lateral": ("LATERAL",)}


def text_column(values: Iterable[str] | str, count: int | None = None) -> np.ndarray:
    """Packs text into one buffer, ``(N,)``, without a Python object for each row: worker processes share it.

    Args:
        values: The text of each row, or one for all.
        count: Number of rows, for one text.
    """
    try:
        if isinstance(values, str):
            return np.full(count, values, dtype=StringDType())
        if isinstance(values, np.ndarray):
            return values.astype(StringDType(), copy=False)
        return np.fromiter(values, dtype=StringDType())
    except UnicodeEncodeError as error:
        raise InputError(f"the name {printable(error.object)} is not UTF-8: rename the file") from None


def hash_keys(text: np.ndarray) -> np.ndarray:
    """Hashes texts to int64, ``(N,)``, in a tenth of their memory; in this process equal texts have equal hashes."""
    return np.fromiter(map(hash, text), np.int64, len(text))


@dataclass(frozen=True)
class Records:
    """The rows of a collection, as columns of N. What is not given is unknown; text may be given as any iterable.

    Attributes:
        labels: Names of the L columns of ``targets``.
        paths: Image files below ``root``, ``(N,)`` text.
        targets: ``(N, L)`` float32. As read from tables: 1 positive, 0 negative, -1 uncertain, NaN blank. In a
            dataset: [0, 1], NaN where masked.
        patients: Patient identifiers, ``(N,)`` text.
        studies: Identifiers of the studies (one visit, one or more images), ``(N,)`` text; the path by default.
        views: ``"AP"``, ``"PA"``, ``"LATERAL"``, ``"OTHER"`` or ``""`` (unknown), ``(N,)`` text.
        sexes: ``"F"``, ``"M"`` or ``""``, ``(N,)`` text.
        ages: Years, ``(N,)`` float32, NaN where unknown.
        splits: Split of each row, ``(N,)`` text: ``"train"``, ``"val"``, ``"test"``, ``"valid"`` or ``""``.
        blank: What a blank cell means by the collection's convention: ``"negative"`` or ``"ignore"``.
        root: Folder of the paths.
        split: The split that was selected, such as ``"test"`` or ``"all"``.
        unused: Labels of the collection that were not asked for.
        cut: Where mxa has cut the splits, the SHA-256 of the split of every image of the table; else ``""``.
    """

    labels: tuple[str, ...]
    paths: np.ndarray
    targets: np.ndarray
    patients: np.ndarray
    studies: np.ndarray | None = None
    views: np.ndarray | None = None
    sexes: np.ndarray | None = None
    ages: np.ndarray | None = None
    splits: np.ndarray | None = None
    blank: str = "negative"
    root: str = ""
    split: str = ""
    unused: tuple[str, ...] = ()
    cut: str = ""

    def __post_init__(self):
        object.__setattr__(self, "paths", text_column(self.paths))
        defaults = {"studies": self.paths, "views": "", "sexes": "", "splits": "train"}
        for name in ("patients", *defaults):
            values = getattr(self, name)
            values = defaults[name] if values is None else values
            object.__setattr__(self, name, text_column(values, len(self.paths)))
        ages = np.full(len(self.paths), np.nan) if self.ages is None else self.ages
        object.__setattr__(self, "ages", np.asarray(ages, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Returns the file of one image."""
        return os.path.join(self.root, self.paths[index])

    def image(self, index: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Reads one image as gray; a file that can is decoded not much larger than ``size`` (height, width)."""
        return read_image(self.path(index), size)

    def without_patient(self) -> int:
        """Counts the images whose patient is unknown: each counts as a patient of its own, named as the image."""
        return int((self.patients == self.paths).sum())

    def subset(self, rows: np.ndarray) -> Records:
        """Keeps some rows, given as indices or as a mask."""
        if rows.dtype == bool and rows.all():
            return self
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def with_merged(self, labels: Sequence[str]) -> tuple[Records, dict[str, tuple], list[str]]:
        """Adds those labels that the collection lacks and ``mxa.labels.MERGES`` makes from others.

        Returns:
            The records; for each label added, what it was made from; and the labels added for which the collection has
            only some of the labels to merge.
        """
        cells, made, partial = merge(self.targets, self.labels, labels)
        targets = np.concatenate([self.targets, cells], axis=1)
        return replace(self, labels=(*self.labels, *made), targets=targets), made, partial

    def with_labels(self, labels: Sequence[str]) -> Records:
        """Reorders the targets by name; labels that the collection lacks are masked.

        Raises:
            InputError: the collection has none of the labels.
        """
        index = align(self.labels, labels)
        if not self.labels:
            raise InputError("the images have no labels: give a table, or --labels-from with a file of mxa teach")
        if all(i is None for i in index):
            raise InputError(f"none of the labels {', '.join(labels)}; the collection has {', '.join(self.labels)}")
        targets = np.full((len(self), len(labels)), np.nan, dtype=np.float32)
        for column, i in enumerate(index):
            if i is not None:
                targets[:, column] = self.targets[:, i]
        unused = tuple(name for i, name in enumerate(self.labels) if i not in index)
        return replace(self, labels=tuple(labels), targets=targets, unused=unused)

    def in_split(self, split: str) -> np.ndarray:
        """Says which rows are in a split, ``(N,)`` bool. Every row is in ``"all"``."""
        return (self.splits == split) | (split == "all")

    def in_views(self, views: str | Sequence[str]) -> np.ndarray:
        """Says which rows have a view: ``"frontal"`` (AP, PA, unknown), ``"lateral"``, ``"all"`` or a list of views.

        Raises:
            InputError: unknown view.
        """
        names = [v.strip() for v in views.split(",")] if isinstance(views, str) else list(views)
        wanted = {v for name in names for v in _GROUPS.get(name.lower(), (name.upper(),))}
        if unknown := wanted - set(_GROUPS["all"]):
            raise InputError(f"unknown view {', '.join(unknown)}: give frontal, lateral, all, AP or PA")
        return np.isin(self.views, text_column(wanted))


def concatenate(pieces: Sequence[Records]) -> Records:
    """Joins records of the same labels and root."""
    return replace(pieces[0], **{name: np.concatenate([getattr(p, name) for p in pieces]) for name in _COLUMNS})


_NOT_COLUMNS = ("labels", "blank", "root", "split", "unused", "cut")
_COLUMNS = tuple(f.name for f in fields(Records) if f.name not in _NOT_COLUMNS)


def normal_sex(text: str) -> str:
    """Returns ``"F"``, ``"M"`` or ``""`` for what a table calls a patient's sex.

    >>> [normal_sex(s) for s in ("Female", "m", "Missing", "")]
    ['F', 'M', '', '']
    """
    word = text.strip().upper()
    return word[0] if word in ("F", "M", "FEMALE", "MALE") else ""


def years(ages: pd.Series) -> np.ndarray:
    """Converts ages in text to float64 years, NaN where unknown; DICOM's ``058Y``, ``018M``, ``003W`` and ``010D`` too.

    >>> years(pd.Series(["58", "058Y", "018M", ""])).tolist()
    [58.0, 58.0, 1.5, nan]
    """
    parts = ages.astype(str).str.strip().str.extract(r"^(.*?)([YyMmWwDd]?)$")
    return numbers(parts[0]) * parts[1].str.upper().map(_YEARS_IN).to_numpy(np.float64)
