"""A table of scores on the disk: written in parts that a kill leaves whole, then merged. Needs no PyTorch."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError, name_some, require
from ..utils.files import atomic_write, write_text
from ..utils.json_files import read_json, to_json
from ..utils.text import for_csv

if TYPE_CHECKING:
    import pyarrow

__all__ = ["FORMATS", "Parts", "ScoreTable", "Summary"]

FORMATS = (".parquet", ".csv", ".jsonl")
_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_CALLED = (("threshold", "float64"), ("call", "bool"))
_TOGETHER = 16  # parts in a row group of Parquet
_PLAN = "plan.json"


@dataclass(frozen=True)
class Summary:
    """What a table of scores holds.

    Attributes:
        images: Number of its rows.
        bad: Rows whose image did not read.
        warned: Rows with a warning.
    """

    images: int
    bad: int
    warned: int


@dataclass(frozen=True)
class ScoreTable:
    """The columns of a table of scores, and how they are written.

    The columns are ``file``, the UIDs where they are asked for, the probability of each label, ``LABEL_threshold`` and
    ``LABEL_call`` of each where there are thresholds, ``warning`` and ``error``.

    Args:
        suffix: One of ``FORMATS``.
        labels: Names of the model's outputs.
        thresholds: Threshold of each label that has one; None where nothing is called.
        identifiers: Have columns of UIDs.
        metadata: What the metadata of a Parquet file say.

    Raises:
        InputError: two columns have one name, or pyarrow is not installed and wanted.
    """

    suffix: str
    labels: tuple[str, ...]
    thresholds: Mapping[str, float] | None = None
    identifiers: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = list(self.kinds())
        if len(names) < len(self._pairs()):
            raise InputError(f"a label of the model is named like another column: {name_some(names)}")
        if self.suffix == ".parquet":
            require("pyarrow", "data")

    def _pairs(self) -> list[tuple[str, str]]:
        called = () if self.thresholds is None else self.labels
        return [
            ("file", "string"),
            *((uid, "string") for uid in (_UIDS if self.identifiers else ())),
            *((label, "float64") for label in self.labels),
            *((f"{label}_{what}", kind) for label in called for what, kind in _CALLED),
            ("warning", "string"),
            ("error", "string"),
        ]

    def kinds(self) -> dict[str, str]:
        """Each column and its kind, in order."""
        return dict(self._pairs())

    def cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Turns what ``score_planes`` gives for an image into its cells; None where there is nothing to say."""
        probabilities = row.get("probabilities", {})
        cells = dict.fromkeys(self.kinds())
        cells |= {name: _utf8(row[name]) for name in ("file", "warning", "error") if name in row}
        cells |= {uid: row.get("identifiers", {}).get(uid) for uid in (_UIDS if self.identifiers else ())}
        cells |= probabilities
        for label, threshold in (self.thresholds or {}).items():
            if label in probabilities:
                cells[f"{label}_threshold"], cells[f"{label}_call"] = threshold, label in row["positive"]
        return cells

    def encode(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        """Writes rows as a part of the table."""
        cells = [self.cells(row) for row in rows]
        if self.suffix == ".jsonl":
            return "".join(f"{to_json(row)}\n" for row in cells).encode()
        if self.suffix == ".csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(map(_csv_cell, row.values()) for row in cells)
            return text.getvalue().encode()
        arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
        data = io.BytesIO()
        parquet.write_table(arrow.Table.from_pylist(cells, self._schema()), data)
        return data.getvalue()

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        """Writes parts, in order, as one table.

        Raises:
            OSError: the disk is full.
        """
        with path.open("wb") as file:
            if self.suffix == ".parquet":
                self._merge_parquet(parts, file)
                return
            if self.suffix == ".csv":
                header = io.StringIO()
                csv.writer(header, lineterminator="\n").writerow(map(for_csv, self.kinds()))
                file.write(header.getvalue().encode())
            for part in parts:
                with part.open("rb") as held:
                    shutil.copyfileobj(held, file)

    def _merge_parquet(self, parts: Sequence[Path], file: Any) -> None:
        arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
        left = iter(parts)
        with parquet.ParquetWriter(file, self._schema()) as writer:
            while some := [parquet.read_table(part) for part in itertools.islice(left, _TOGETHER)]:
                writer.write_table(arrow.concat_tables(some).combine_chunks())

    def _schema(self) -> pyarrow.Schema:
        arrow = require("pyarrow", "data")
        kinds = {"string": arrow.string(), "float64": arrow.float64(), "bool": arrow.bool_()}
        return arrow.schema([(name, kinds[kind]) for name, kind in self.kinds().items()], metadata=dict(self.metadata))

    def check(self, path: Path, files: Sequence[str]) -> Summary:
        """Reads a table that is there, and compares it with what it should hold.

        Raises:
            InputError: it has other columns, other files or other metadata.
        """
        given = _utf8 if self.suffix != ".csv" else lambda name: for_csv(_utf8(name))
        bad = warned = 0
        try:
            for wanted, (name, warning, error) in zip(files, self._read(path), strict=True):
                if name != given(wanted):
                    raise ValueError
                bad, warned = bad + bool(error), warned + bool(warning)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} holds something else than this command writes: give another --output, or delete it"
            ) from None
        return Summary(len(files), bad, warned)

    def _read(self, path: Path) -> Iterator[tuple[str, str | None, str | None]]:
        if self.suffix == ".parquet":
            with require("pyarrow.parquet", "data").ParquetFile(path) as table:
                if not table.schema_arrow.equals(self._schema(), check_metadata=True):
                    raise ValueError
                for some in table.iter_batches(columns=["file", "warning", "error"]):
                    yield from zip(*(column.to_pylist() for column in some.columns), strict=True)
            return
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file) if self.suffix == ".csv" else map(json.loads, file)
            for row in rows:
                if list(row) != [for_csv(n) if self.suffix == ".csv" else n for n in self.kinds()]:
                    raise ValueError
                yield row["file"], row["warning"], row["error"]


def _utf8(text: str) -> str:
    r"""Writes the bytes of a file's name that are not UTF-8 as escapes such as ``\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _csv_cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else for_csv(value)


class Parts:
    """The parts of a table, in a folder beside it.

    Part ``i`` holds the rows of the files from ``i * size`` on. It is there whole or not at all. The folder holds the
    plan too: what all the parts were made of.

    Args:
        table: What is written.
        output: The file that the parts become.
        files: Names of all the images, in order.
        size: Images of a part.
    """

    def __init__(self, table: ScoreTable, output: Path, files: Sequence[str], size: int):
        self.table, self.output, self.files, self.size = table, output, files, size
        self.folder = self.folder_of(output)

    @staticmethod
    def folder_of(output: Path) -> Path:
        """Returns the folder of a table's parts."""
        return output.with_name(f"{output.name}.parts")

    @classmethod
    def unfinished(cls, output: Path) -> bool:
        """Says whether a run that was to write a table has written a part of it."""
        return any(cls.folder_of(output).glob("part-*"))

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Writes the plan, or compares it with the one that is there.

        Raises:
            InputError: the parts that are there are of other files or were made with other settings.
        """
        names = hashlib.sha256()
        for name in self.files:
            names.update(name.encode("utf-8", "surrogateescape") + b"\0")
        plan = {**settings, "files": names.hexdigest(), "images": len(self.files), "size of a part": self.size}
        path = self.folder / _PLAN
        if not self.unfinished(self.output):
            write_text(path, to_json(plan, 1) + "\n")
            return
        held = read_json(path)
        if other := [name for name in {**plan, **held} if held.get(name) != plan.get(name)]:
            raise InputError(
                f"--resume must go on with the same images and settings, and these differ: {', '.join(other)}; "
                f"put them back, or delete {self.folder} to start anew"
            )

    def left(self) -> dict[int, Sequence[str]]:
        """Returns the files of each part that is not there."""
        numbers = range(-(-len(self.files) // self.size))
        return {i: self.files[i * self.size : (i + 1) * self.size] for i in numbers if not self._part(i).is_file()}

    def write(self, number: int, content: bytes) -> None:
        """Writes a part that ``ScoreTable.encode`` has made.

        Raises:
            InputError: the disk is full.
        """
        atomic_write(self._part(number), lambda temporary: temporary.write_bytes(content))

    def finish(self) -> None:
        """Writes the table of the parts.

        Raises:
            InputError: the disk is full.
        """
        parts = [self._part(i) for i in range(-(-len(self.files) // self.size))]
        merged = self.folder / f"merged{self.table.suffix}"
        atomic_write(merged, lambda temporary: self.table.merge(parts, temporary))
        os.replace(merged, self.output)

    def remove(self) -> None:
        """Removes the folder of the parts."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}{self.table.suffix}"
