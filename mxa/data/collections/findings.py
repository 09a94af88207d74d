"""A table's column that names the findings of each image, as labels."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...labels import LABEL_SPACES, canonical
from ...utils.errors import InputError
from ..tables import is_blank, label_cells

__all__ = ["FINDINGS", "findings_cells", "is_findings", "is_known", "is_label"]

#: What a column of findings may be called; case, spaces, hyphens and underscores do not count.
FINDINGS = ("finding", "findings", "finding labels", "label", "labels", "diagnosis", "diagnoses", "pathology")
FINDINGS += ("pathologies", "disease", "diseases")

_SEPARATORS = {"|": "a bar", ";": "a semicolon", ",": "a comma"}
_MOST = 100  # names that are still findings, and not free text
_ODD = re.compile(r"""[\[\]{}"\n\r\t]|^[('`]|'$|:\s*[-+.\d]""")
_KNOWN = {canonical(name) for space in LABEL_SPACES.values() for name in space}
_logger = logging.getLogger(__name__)


def is_label(column: pd.Series) -> bool:
    """Says whether every cell of a column is a label cell."""
    try:
        label_cells(column, "")
    except InputError:
        return False
    return True


def is_known(name: str) -> bool:
    """Says whether ``mxa.labels.LABEL_SPACES`` knows a finding, in any spelling."""
    return canonical(name) in _KNOWN


def is_findings(column: pd.Series) -> bool:
    """Says whether a column names findings that ``mxa.labels.LABEL_SPACES`` knows."""
    if column.dtype.kind in "fiub":
        return False
    _, said = _names(column)
    return any(is_known(name) for names in said for name in names or ())


def findings_cells(path: Path, column: pd.Series) -> dict[str, np.ndarray]:
    """Makes a label of every finding that a column names, and logs by what the names are separated.

    A finding that a cell names is positive, the others are negative. In an empty list all are negative; in a blank
    cell all are blank.

    Args:
        path: The table, for messages.
        column: Findings separated by bars, semicolons or commas, the first of these that any cell holds; or a list,
            tuple or set in Python's or JSON's spelling, cell by cell.

    Returns:
        Cells ``(N,)`` float32 of each label; labels are sorted.

    Raises:
        InputError: the column is of numbers, is blank, names more than 100 findings, or a name holds brackets, quotes,
            a number behind a colon, a tab or a line break.
    """
    if is_label(column) and (column.dtype.kind in "fiub" or not column.map(is_blank).all()):
        raise InputError(f"{path}: column {column.name!r} holds label cells, not the names of findings")
    how, said = _names(column)
    labels: dict[str, str] = {}
    for names in said:
        for name in names or ():
            labels.setdefault(canonical(name), name)
    if not labels:
        raise InputError(f"{path}: column {column.name!r} names no finding")
    if len(labels) > _MOST:
        raise InputError(
            f"{path}: column {column.name!r} names {len(labels)} findings, more than {_MOST}: it is free text, or no "
            "bar, semicolon or comma separates them"
        )
    if odd := [name for name in labels.values() if _is_odd(name)]:
        some = ", ".join(repr(name[:30]) for name in odd[:3])
        raise InputError(
            f"{path}: column {column.name!r} makes findings such as {some}: write names alone, as Edema|Mass or "
            "['Edema', 'Mass'], without brackets, quotes or numbers in a name"
        )
    _logger.info("%s: labels are made of the column %r, %s", path, column.name, how)
    keys = sorted(labels, key=labels.get)
    cells = np.array([[key in names for key in keys] for names in [set(map(canonical, names or ())) for names in said]])
    cells = cells.astype(np.float32)
    cells[[names is None for names in said]] = np.nan
    codes, _ = pd.factorize(column)
    return {labels[key]: cells[codes, i] for i, key in enumerate(keys)}


def _names(column: pd.Series) -> tuple[str, list[list[str] | None]]:
    """Splits the distinct cells, in the order of their first row; says how. A blank cell is None."""
    cells = ["" if is_blank(cell) else cell.strip() for cell in map(str, pd.factorize(column)[1])]
    lists = [bool(cell) and cell[0] + cell[-1] in ("[]", "()", "{}") for cell in cells]
    bare = [cell for cell, is_list in zip(cells, lists, strict=True) if cell and not is_list]
    mark = _mark(bare)
    how = f"separated by {_SEPARATORS[mark]}" if mark else "one finding a cell"
    if any(lists):
        how = f"{how}, or a list" if bare else "each cell a list"
    split = [_list(cell) if is_list else _clean(_parts(cell, mark)) for cell, is_list in zip(cells, lists, strict=True)]
    return how, split


def _mark(cells: Sequence[str]) -> str | None:
    return next((mark for mark in _SEPARATORS if any(mark in cell for cell in cells)), None)


def _parts(cell: str, mark: str | None) -> list[str]:
    return cell.split(mark) if mark else [cell]


def _list(cell: str) -> list[str] | None:
    """Reads ``['A', 'B']``, ``["A"]``, ``[A, B]`` or the same as a tuple or a set; ``[]`` names nothing."""
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        inside = cell[1:-1].strip()
        value = _parts(inside, _mark([inside])) if inside else []
    if isinstance(value, dict):
        value = [f"{name!r}: {said!r}" for name, said in value.items()]  # how it is written, for the error
    elif not isinstance(value, list | tuple | set):
        value = [value]
    names = list(map(str, value))
    return _clean(sorted(names) if isinstance(value, set) else names) if names else []


def _clean(names: Sequence[str]) -> list[str] | None:
    return [name.strip() for name in names if not is_blank(name)] or None


def _is_odd(name: str) -> bool:
    """Says whether a name is a piece of a list, a mapping or a text."""
    return bool(_ODD.search(name)) or name.count("(") != name.count(")")
