"""A table's column that names the findings of each image, as labels."""

from __future__ import annotations

import ast
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...labels import LABEL_SPACES, canonical
from ...utils.errors import InputError
from ..tables import is_blank, label_cells

__all__ = ["FINDINGS", "findings_cells", "is_findings", "is_label"]

#: What a column of findings may be called; case, spaces, hyphens and underscores do not count.
FINDINGS = ("finding", "findings", "finding labels", "label", "labels", "diagnosis", "diagnoses", "pathology")
FINDINGS += ("pathologies", "disease", "diseases")

_SEPARATORS = {"|": "a bar", ";": "a semicolon", ",": "a comma"}
_MOST = 100  # names that are still findings, and not free text
_KNOWN = {canonical(name) for space in LABEL_SPACES.values() for name in space}
_logger = logging.getLogger(__name__)


def is_label(column: pd.Series) -> bool:
    """Says whether every cell of a column is a label cell."""
    try:
        label_cells(column, "")
    except InputError:
        return False
    return True


def is_findings(column: pd.Series) -> bool:
    """Says whether a column names findings that ``mxa.labels.LABEL_SPACES`` knows."""
    if column.dtype.kind in "fiub":
        return False
    _, said = _names(column)
    return any(canonical(name) in _KNOWN for names in said for name in names)


def findings_cells(path: Path, column: pd.Series) -> dict[str, np.ndarray]:
    """Makes a label of every finding that a column names, and logs by what the names are separated.

    A finding that a cell names is positive, the others are negative; in a blank cell all are blank.

    Args:
        path: The table, for messages.
        column: Findings separated by bars, semicolons or commas, or a list in Python's or JSON's spelling. The first of
            these that any cell holds separates all cells.

    Returns:
        Cells ``(N,)`` float32 of each label; labels are sorted.

    Raises:
        InputError: the column is of numbers, is blank, or names more than 100 findings.
    """
    if is_label(column) and (column.dtype.kind in "fiub" or not column.map(is_blank).all()):
        raise InputError(f"{path}: column {column.name!r} holds label cells, not the names of findings")
    how, said = _names(column)
    labels: dict[str, str] = {}
    for names in said:
        for name in names:
            labels.setdefault(canonical(name), name)
    if not labels:
        raise InputError(f"{path}: column {column.name!r} names no finding")
    if len(labels) > _MOST:
        raise InputError(
            f"{path}: column {column.name!r} names {len(labels)} findings, more than {_MOST}: it is free text, or no "
            "bar, semicolon or comma separates them"
        )
    _logger.info("%s: labels are made of the column %r, %s", path, column.name, how)
    keys = sorted(labels, key=labels.get)
    cells = np.array([[key in names for key in keys] for names in [set(map(canonical, names)) for names in said]])
    cells = cells.astype(np.float32)
    cells[[not names for names in said]] = np.nan
    codes, _ = pd.factorize(column)
    return {labels[key]: cells[codes, i] for i, key in enumerate(keys)}


def _names(column: pd.Series) -> tuple[str, list[list[str]]]:
    """Splits the distinct cells, in the order of their first row; says how."""
    cells = ["" if is_blank(cell) else cell.strip() for cell in map(str, pd.factorize(column)[1])]
    filled = [cell for cell in cells if cell]
    if filled and all(cell.startswith("[") and cell.endswith("]") for cell in filled):
        return "each cell a list", [_list(cell) for cell in cells]
    mark = next((mark for mark in _SEPARATORS if any(mark in cell for cell in filled)), None)
    how = f"separated by {_SEPARATORS[mark]}" if mark else "one finding a cell"
    split = [cell.split(mark) if mark else [cell] for cell in cells]
    return how, [_clean(names) for names in split]


def _list(cell: str) -> list[str]:
    """Reads ``['A', 'B']``, ``["A"]`` or ``[A, B]``."""
    try:
        value = ast.literal_eval(cell) if cell else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = cell[1:-1].split(",")
    return _clean([str(name) for name in value])


def _clean(names: Sequence[str]) -> list[str]:
    return [name.strip() for name in names if not is_blank(name)]
