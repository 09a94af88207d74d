"""A CSV, Parquet or Excel table of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ...labels import canonical, split_names
from ...utils.errors import InputError
from ..records import SPLIT_NAMES, Records, normal_sex, years
from ..tables import label_cells, read_table_file, strange_words
from ..views import normal_view
from .findings import FINDINGS, findings_cells, is_findings, is_label
from .image_paths import relative_paths
from .reader import CollectionReader

__all__ = ["COLUMNS", "Table", "find_columns", "parse_columns", "plain_text"]

#: What a table's columns may be called; case, spaces, hyphens and underscores do not count.
COLUMNS = {
    "path": ("path", "file", "filename", "file path", "image", "image path", "image file", "image index", "dicom path"),
    "patient": ("patient", "patient id", "subject", "subject id"),
    "study": ("study", "study id", "study instance uid", "accession number"),
    "view": ("view", "view position", "projection", "frontal lateral"),
    "split": ("split", "fold", "part", "subset"),
    "sex": ("sex", "gender", "patient sex", "patient gender"),
    "age": ("age", "patient age", "age years"),
}


class Table(CollectionReader):
    """A CSV, Parquet or Excel file: a column of paths, and a column for each label, or one that names the findings.

    Label cells are 1, 0, -1 (uncertain) or blank; see ``mxa.data.tables.label_cells``. Labels are made of a column of
    findings where ``columns`` names one as ``findings``, where one has a name of ``FINDINGS``, or where the only other
    column names known findings; ``findings_cells`` says how.

    Paths are relative to the file's folder; see ``relative_paths``. Optional columns are ``patient``, ``study``,
    ``view``, ``split`` (train, val, test), ``sex`` and ``age``. They have one of the names in ``COLUMNS``, or the one
    that ``columns`` gives. Every other column is a label; if ``labels`` names the labels, other columns may hold
    anything. Without a column ``split``, validation patients are cut. An image without a patient counts as a patient
    of its own.
    """

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        path = Path(root)
        if path.is_dir():
            raise InputError(f"{path} is a folder: --root must name the CSV, Parquet or Excel file of a table")
        table = read_table_file(path, ())
        names = find_columns(path, table.columns, self.columns or {})
        findings = names.pop("findings", None)
        held = [c for c in table.columns if c not in names.values() and not c.startswith("Unnamed: ")]  # pandas' own
        if not held:
            raise InputError(f"{path} has no label columns; it has {', '.join(table.columns)}")
        findings = findings or self._findings(path, table[held])
        cells = findings_cells(path, table[findings]) if findings else self._cells(path, table[held])

        def column(name: str) -> list[str]:
            return plain_text(table[names[name]]) if name in names else [""] * len(table)

        paths = relative_paths(path, column("path"))
        if "" in paths:
            raise InputError(f"{path}: row {paths.index('') + 1} names no image ({names['path']!r} is blank)")
        splits = self._splits(path, table[names["split"]]) if "split" in names else "train"
        patients = column("patient")
        return Records(
            tuple(cells),
            paths,
            np.stack(list(cells.values()), axis=1),
            [patient or name for patient, name in zip(patients, paths, strict=True)],
            studies=column("study") if "study" in names else None,
            views=[normal_view(v) for v in column("view")],
            sexes=[normal_sex(s) for s in column("sex")],
            ages=years(pd.Series(column("age"), dtype=object)),
            splits=splits,
            blank="ignore",
            root=str(path.parent),
        )

    def _splits(self, path: Path, column: pd.Series) -> list[str]:
        splits = [SPLIT_NAMES.get(name.lower(), "?") for name in plain_text(column)]
        if "?" in splits:
            strange = np.array([split == "?" for split in splits])
            row, found = splits.index("?") + 1, strange_words(column, strange)
            raise InputError(
                f"{path}: column {column.name!r}, row {row}: a split is train, val or test{found}; write these, name "
                "the column of splits with --columns split=NAME, or rename this one if it is no split"
            )
        return splits

    def _findings(self, path: Path, table: pd.DataFrame) -> str | None:
        """Finds the column that names the findings, where the others are not the labels."""
        keys = {_key(name) for name in FINDINGS}
        named = [c for c in table if _key(c) in keys and not is_label(table[c])]
        if not named:
            return table.columns[0] if len(table.columns) == 1 and is_findings(table.iloc[:, 0]) else None
        wanted = {canonical(name) for name in self.labels or ()}
        labels = [c for c in table if c not in named and is_label(table[c])]
        if wanted & set(map(canonical, labels)):
            return None
        if len(named) > 1 or (labels and not wanted):
            others = ", ".join(map(repr, (*named, *labels)[1:]))
            raise InputError(
                f"{path}: the labels could be made of {named[0]!r} or be {others}: say --columns findings={named[0]}, "
                "or name the labels with --labels"
            )
        return named[0]

    def _cells(self, path: Path, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """Reads every column that can be a label, so that splits and merges do not depend on which are wanted."""
        wanted = None if self.labels is None else {canonical(name) for name in self.labels}
        cells = {}
        for name in table:
            try:
                cells[name] = label_cells(table[name], f"{path}: column {name!r}")
            except InputError as error:
                if wanted is None:
                    raise InputError(f"{error}; if the column is not a label, name the labels with --labels") from None
                if canonical(name) in wanted:
                    raise
        if not cells:
            raise InputError(f"{path} has no label columns; it has {', '.join(table)}")
        return cells


def plain_text(column: pd.Series) -> list[str]:
    """Returns a column as text. A blank is ``""``; whole floats, as in a column with blanks, are integers."""
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    return ["" if pd.isna(value) or value in ("nan", "<NA>") else str(value).strip() for value in column]


def parse_columns(text: str) -> dict[str, str]:
    """Parses ``"path=file,patient=MRN"``.

    Raises:
        InputError: it is not of that form.

    >>> parse_columns("path=file, patient=MRN")
    {'path': 'file', 'patient': 'MRN'}
    """
    pairs = [pair.partition("=") for pair in split_names(text)]
    known = (*COLUMNS, "findings")
    if not all(equals and name.strip() in known and own.strip() for name, equals, own in pairs):
        raise InputError(f"--columns {text!r}: give NAME=COLUMN pairs, NAME one of {', '.join(known)}")
    return {name.strip(): own.strip() for name, _, own in pairs}


def find_columns(path: Path, header: pd.Index, given: dict[str, str]) -> dict[str, str]:
    """Finds what each of ``COLUMNS`` is called in a table.

    Raises:
        InputError: a column given is not there, two could be the same, or none holds paths.
    """
    if missing := [own for own in given.values() if own not in header]:
        raise InputError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(header)}")
    names = dict(given)
    for name, spellings in COLUMNS.items():
        keys = {_key(s) for s in spellings}
        found = [c for c in header if _key(c) in keys and c not in given.values()]
        if len(found) > 1 and name not in given:
            raise InputError(
                f"{path}: {' and '.join(map(repr, found))} could both be the {name}: say --columns {name}=..."
            )
        if found and name not in given:
            names[name] = found[0]
    if "path" not in names:
        raise InputError(f"{path} has no column 'path' (or --columns path=...); it has {', '.join(header)}")
    return names


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
