"""Reads a collection's tables: text stays text, label cells become numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..utils.errors import InputError, name_some
from .table_files import read_header, read_lines, read_text_columns

__all__ = [
    "find_home",
    "find_table",
    "has_table",
    "is_blank",
    "label_cells",
    "numbers",
    "read_header",
    "read_lines",
    "read_table_file",
    "strange_words",
]

# All in lower case.
_BLANK = ("", "nan", "na", "n/a", "null", "none", "<na>")
_YES = ("true", "t", "yes", "y", "positive", "pos", "present")
_NO = ("false", "f", "no", "n", "negative", "neg", "absent")
_PERHAPS = ("uncertain", "equivocal", "indeterminate")
_WORDS = {**dict.fromkeys(_YES, 1.0), **dict.fromkeys(_NO, 0.0), **dict.fromkeys(_PERHAPS, -1.0)}
_OF_A_PATIENT = re.compile(
    r"name|patient|subject|person|birth|address|comment|report|(?<![a-z])(date|note)|(date|notes?)(?![a-z])|(?-i:Date[A-Z])"
    r"|(\b|_)(id|mrn)\b",
    re.I,
)


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


def find_home(root: str | Path, *patterns: str) -> Path:
    """Finds the folder that holds a table: the root, else the first folder in it that does, else the root."""
    root = Path(root)
    if has_table(root, *patterns) or not root.is_dir():
        return root
    return next((f for f in sorted(root.iterdir()) if f.is_dir() and has_table(f, *patterns)), root)


def _tables(root: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        for suffix in ("", ".gz"):
            yield from sorted(p for p in Path(root).glob(pattern + suffix) if p.is_file())


def read_table_file(
    path: Path, columns: Sequence[str], cells: Sequence[str] = (), optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Reads a CSV (``.gz`` or not), Parquet or Excel table and checks its columns.

    Args:
        path: The file.
        columns: Columns that must be there, read as text, a blank as ``""``; if empty, every column is read.
        cells: Label columns that must be there, read as float32: 1, 0, -1, NaN where blank.
        optional: Columns that are blank where the table lacks them.

    Raises:
        InputError: no such file, not a table, no rows, a row with more or fewer cells than the header, a column is
            missing, or a label cell is not a label.
    """
    if not path.is_file():
        raise InputError(f"no table {path}: --root must name the folder that holds it")
    held = read_header(path)
    if missing := [c for c in (*columns, *cells) if c not in held]:
        raise InputError(f"{path} has no column {', '.join(map(repr, missing))}; it has {name_some(held)}")
    table = read_text_columns(path, {*columns, *cells, *optional} if columns else None, cells)
    if table.empty:
        raise InputError(f"{path} has no rows")
    for column in optional:
        if column not in table:
            table[column] = ""
    for column in cells:
        table[column] = label_cells(table[column], f"{path}: column {column!r}")
    return table


def numbers(column: pd.Series) -> np.ndarray:
    """Reads a column as float64, ``(N,)``, with a decimal point or comma; NaN where a cell is no number."""
    if column.dtype.kind not in "fiub":
        column = column.astype(str).str.strip().str.replace(r"^([-+]?\d*),(\d+)$", r"\1.\2", regex=True)
    return pd.to_numeric(column, errors="coerce").to_numpy(np.float64)


def label_cells(column: pd.Series, where: str) -> np.ndarray:
    """Turns a column into cells, ``(N,)`` float32: 1, 0, -1 (uncertain) or NaN (blank), written as numbers or words.

    Raises:
        InputError: a cell is neither. The message begins with ``where`` and gives the first such row; see
            ``strange_words`` for what it quotes.
    """
    if column.dtype.kind in "fiub":
        cells, blank = column.to_numpy(np.float32), column.isna().to_numpy()
    else:
        codes, distinct = pd.factorize(column)
        words = pd.Series([str(cell).strip().lower() for cell in distinct], dtype=object)
        number = numbers(words).astype(np.float32)
        known = words.map(_WORDS).to_numpy(np.float32)
        cells = np.where(np.isnan(known), number, known)[codes]
        blank = (words.isin(_BLANK).to_numpy(bool)[codes]) | (codes < 0)
        cells[codes < 0] = np.nan
    strange = ~np.isin(cells, (-1, 0, 1)) & ~blank
    if strange.any():
        row = f"row {strange.argmax() + 1}"
        found = strange_words(column, strange)
        raise InputError(f"{where}, {row}: a label cell is 1, 0, -1 or blank (also yes or no){found}")
    return cells


def is_blank(cell: str) -> bool:
    """Says whether a cell means that nothing is known."""
    return cell.strip().lower() in _BLANK


def strange_words(column: pd.Series, strange: np.ndarray) -> str:
    """Quotes cells for an error, cut to 20 characters, or nothing where they may be about a patient.

    They are quoted if the column is a vocabulary: its name says nothing of a patient, it has three times as many rows
    as distinct cells, and no more than five are strange.

    Args:
        column: Every cell.
        strange: The rows that are in error, ``(N,)`` bool.
    """
    words = column.astype(str).str.strip()
    found = list(dict.fromkeys(words[strange]))
    if len(found) > 5 or words.nunique() * 3 > len(words) or _OF_A_PATIENT.search(str(column.name)):
        return ""
    if any("^" in word for word in found):  # a name in DICOM
        return ""
    return f"; found {', '.join(repr(word[:20]) for word in found)}"
