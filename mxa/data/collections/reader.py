"""What every collection has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..records import Records

__all__ = ["CollectionReader"]


@dataclass(frozen=True)
class CollectionReader:
    """A collection: turns its tables into rows.

    Attributes:
        labels: Names wanted, for a collection whose tables may hold any; every label by default.
        columns: For a table: what its columns are called, by the name that they have here.
        splits: Parts that can be asked for.
        reads_urls: The root may be a URL.
        test_percent: Share of the patients to cut for a test split where the collection names none.
        cut_by: Labels that a cut is stratified by, for a collection that can be asked for more; None is all of them.
    """

    labels: Sequence[str] | None = None
    columns: Mapping[str, str] | None = None

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "all")
    test_percent: ClassVar[int] = 0
    cut_by: ClassVar[tuple[str, ...] | None] = None
    reads_urls: ClassVar[bool] = False

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """Reads every row with its split, cells as they stand: 1, 0, -1 (uncertain), NaN (blank).

        Args:
            root: The collection's folder or file.
            split: The split that is wanted, for a collection that has a table for each; None is the test split.

        Raises:
            InputError: a missing file or column, or a cell that means nothing.
        """
        raise NotImplementedError

    def read_all(self, root: str | Path) -> Records:
        """Reads every row of every table there is, official validation and test splits included.

        Raises:
            InputError: as ``read``.
        """
        return self.read(root)
