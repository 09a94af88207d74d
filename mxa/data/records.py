"""What a collection's tables say, as columns: one row an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..errors import InputError
from ..labels import align
from .image_io import read_image

__all__ = ["Records", "in_validation", "read_csv"]

FRONTAL = ("AP", "PA", "")


@dataclass(frozen=True)
class Records:
    """Rows of a collection, as arrays of N.

    Attributes:
        labels: Names of the L columns of ``targets``.
        paths: Image files, ``(N,)`` str.
        targets: ``(N, L)`` float32 in [0, 1], NaN where the label is unknown (masked).
        patients: Patient identifiers, ``(N,)`` str.
        views: ``"AP"``, ``"PA"``, ``"LATERAL"`` or ``""`` (unknown), ``(N,)`` str.
        split: Part of the collection that the rows are, such as ``"test"`` or ``"all"``.
    """

    labels: tuple[str, ...]
    paths: np.ndarray
    targets: np.ndarray
    patients: np.ndarray
    views: np.ndarray
    split: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Reads one image, gray (see ``read_image``)."""
        return read_image(self.paths[index])

    def subset(self, rows: np.ndarray) -> Records:
        """Keeps rows, given as indices or as a mask."""
        columns = {name: getattr(self, name)[rows] for name in ("paths", "targets", "patients", "views")}
        return replace(self, **columns)

    def with_labels(self, labels: Sequence[str]) -> Records:
        """Re-orders the targets by name; labels that the collection lacks are masked.

        Raises:
            InputError: the collection has none of the labels.
        """
        index = align(self.labels, labels)
        if all(i is None for i in index):
            raise InputError(f"none of the labels {', '.join(labels)} is in the collection's: {', '.join(self.labels)}")
        targets = np.full((len(self), len(labels)), np.nan, dtype=np.float32)
        for column, i in enumerate(index):
            if i is not None:
                targets[:, column] = self.targets[:, i]
        return replace(self, labels=tuple(labels), targets=targets)

    def with_views(self, views: str | Sequence[str]) -> Records:
        """Keeps ``"frontal"`` (AP, PA and unknown), ``"lateral"``, ``"all"``, or the views listed.

        Raises:
            InputError: unknown view.
        """
        groups = {"all": (*FRONTAL, "LATERAL"), "frontal": FRONTAL, "lateral": ("LATERAL",)}
        names = [views] if isinstance(views, str) else list(views)
        wanted = {v for name in names for v in groups.get(name.lower(), (name.upper(),))}
        if unknown := wanted - set(groups["all"]):
            raise InputError(f"unknown view {', '.join(unknown)}: give frontal, lateral, all, AP or PA")
        return self.subset(np.isin(self.views, list(wanted)))


def in_validation(patients: np.ndarray, percent: int = 10) -> np.ndarray:
    """Says which rows belong to validation patients: those whose identifier hashes below ``percent``.

    The cut depends on nothing else, so that it is the same in every run and for every subset.
    """
    of = {p: int(hashlib.sha256(str(p).encode()).hexdigest()[:8], 16) % 100 < percent for p in np.unique(patients)}
    return np.array([of[p] for p in patients], dtype=bool)


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads a table as text (blank cells as ``""``) and checks its columns.

    Raises:
        InputError: no such file, no rows, or a column is missing.
    """
    if not path.is_file():
        raise InputError(f"no table {path}: --root must name the folder that holds it")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV table: {error}") from None
    if missing := [c for c in columns if c not in table.columns]:
        raise InputError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise InputError(f"{path} has no rows")
    return table
