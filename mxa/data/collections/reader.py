"""The base class of the readers of collections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..records import Records

__all__ = ["CollectionReader"]


@dataclass(frozen=True)
class CollectionReader:
    """Reads the tables of a collection.

    Attributes:
        labels: Labels wanted, for a collection whose tables may hold labels of any name; all by default.
        columns: For a table: its own name of a column, by our name.
        splits: Splits that can be asked for.
        test_percent: Percentage of the patients to cut for a test split, if the collection has none.
        cut_by: Labels that a cut is stratified by, for a collection that can be asked for more; None is all.
        reads_urls: The root may be a URL.
    """

    labels: Sequence[str] | None = None
    columns: Mapping[str, str] | None = None

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "all")
    test_percent: ClassVar[int] = 0
    cut_by: ClassVar[tuple[str, ...] | None] = None
    reads_urls: ClassVar[bool] = False

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """Reads every row with its split. Label cells are 1, 0, -1 (uncertain) or NaN (blank).

        Args:
            root: The collection's folder or file.
            split: Split to read, for a collection with a table for each split; None is the test split.

        Raises:
            InputError: a missing file or column, or a cell that is not understood.
        """
        raise NotImplementedError

    def read_all(self, root: str | Path) -> Records:
        """Reads every row of every table, also of the official validation and test splits.

        Raises:
            InputError: as ``read``.
        """
        return self.read(root)
