"""Reads a collection's tables: text stays text, label cells become numbers."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..utils.errors import InputError, require

__all__ = ["find_table", "has_table", "label_cells", "read_header", "read_table_file"]

_BLANK = ("", "nan", "na", "n/a", "null", "none", "<na>")  # in lower case
_WORDS = {"true": "1", "false": "0"}


def find_table(root: Path, *patterns: str) -> Path:
    """Finds a table in a folder, plain or ``.gz``. Patterns are tried in order; the first match is taken.

    Raises:
        InputError: there is none.
    """
    found = next(_tables(root, patterns), None)
    if found is None:
        raise InputError(f"no table {Path(root) / patterns[0]}: --root must name the folder that holds it")
    return found


def has_table(root: Path, *patterns: str) -> bool:
    """Says whether ``find_table`` would find one."""
    return next(_tables(root, patterns), None) is not None


def _tables(root: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        for suffix in ("", ".gz"):
            yield from sorted(p for p in Path(root).glob(pattern + suffix) if p.is_file())


def read_header(path: Path) -> list[str]:
    """Returns the names of a table's columns.

    Raises:
        InputError: it is not a table, two columns share a name, or commas do not separate them.
    """
    if _is_parquet(path):
        require("pyarrow", "data")
        from pyarrow import ArrowInvalid, parquet

        try:
            names = parquet.read_schema(path).names
        except (ArrowInvalid, OSError) as error:
            raise InputError(f"{path} is not a Parquet table: {error}") from None
    else:
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
                names = next(csv.reader(file), [])
        except (csv.Error, UnicodeDecodeError, OSError, EOFError) as error:
            raise InputError(f"{path} is not a CSV table: {error}") from None
        if not names:
            raise InputError(f"{path} is not a CSV table: it has no header")
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            raise InputError(f"{path} is not separated by commas: save it with commas, or as Parquet")
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise InputError(f"{path} has more than one column {', '.join(map(repr, twice))}: rename or remove one")
    return names


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def read_table_file(
    path: Path, columns: Sequence[str], cells: Sequence[str] = (), optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Reads a CSV (``.gz`` or not, with or without a byte order mark) or Parquet table and checks its columns.

    Args:
        path: The file.
        columns: Columns that must be there, read as text, a blank as ``""``; if empty, every column is read.
        cells: Label columns that must be there, read as float32: 1, 0, -1, NaN where blank.
        optional: Columns that are blank where the table lacks them.

    Raises:
        InputError: no such file, not a table, no rows, a column is missing, or a label cell is not a label.
    """
    if not path.is_file():
        raise InputError(f"no table {path}: --root must name the folder that holds it")
    held = read_header(path)
    if missing := [c for c in (*columns, *cells) if c not in held]:
        raise InputError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(held)}")
    wanted = {*columns, *cells, *optional} if columns else None
    table = _read_parquet(path, held, wanted) if _is_parquet(path) else _read_csv(path, wanted, cells)
    if table.empty:
        raise InputError(f"{path} has no rows")
    for column in optional:
        if column not in table:
            table[column] = ""
    for column in cells:
        table[column] = label_cells(table[column], f"{path}: column {column!r}")
    return table


def label_cells(column: pd.Series, where: str) -> np.ndarray:
    """Turns a column into cells, ``(N,)`` float32; "-1", "-1.0" and -1 mean the same, "True" is 1.

    Raises:
        InputError: a cell is not 1, 0, -1 or blank. The message begins with ``where`` and gives the first such row. It
            does not quote the cell, which may be about a patient.
    """
    text = column
    if column.dtype.kind not in "fiub":
        text = column.astype(object).map(lambda cell: cell.strip().lower() if isinstance(cell, str) else cell)
        text = text.replace(_WORDS).where(~text.isin(_BLANK), np.nan)
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float32)
    strange = ~np.isin(numbers, (-1, 0, 1)) & ~pd.isna(text).to_numpy()
    if strange.any():
        raise InputError(f"{where}, row {strange.argmax() + 1}: a label cell is 1, 0, -1 or blank")
    return numbers


def _read_csv(path: Path, wanted: set[str] | None, cells: Sequence[str]) -> pd.DataFrame:
    options = {"keep_default_na": False, "index_col": False, "encoding": "utf-8-sig"}
    if wanted is not None:
        options["usecols"] = wanted.__contains__
    try:
        if cells:  # read as numbers: less than half the time and memory of text
            numbers = {"dtype": {**dict.fromkeys(wanted, object), **dict.fromkeys(cells, np.float32)}}
            try:
                return pd.read_csv(path, **options, **numbers, na_values=dict.fromkeys(cells, ("", "nan", "NaN", "NA")))
            except ValueError:
                pass  # read as text, so that the error can name the row
        return pd.read_csv(path, **options, dtype=object)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a CSV table: {error}") from None


def _read_parquet(path: Path, held: list[str], wanted: set[str] | None) -> pd.DataFrame:
    from pyarrow import ArrowInvalid

    try:
        table = pd.read_parquet(path, columns=held if wanted is None else [c for c in held if c in wanted])
    except (ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a Parquet table: {error}") from None
    for column in table:
        if table[column].dtype.kind not in "fiub":
            table[column] = table[column].astype(object).where(table[column].notna(), "").map(str)
    return table
