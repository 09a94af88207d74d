"""Any CSV or Parquet table of one's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError
from ..labels import align
from .records import PART_NAMES, Records, normal_sex, normal_view
from .source import Source
from .tables import label_cells, read_table_file

__all__ = ["COLUMNS", "Table", "parse_columns"]

#: What a table's columns may be called; case, spaces, hyphens and underscores do not count.
COLUMNS = {
    "path": ("path", "file", "filename", "file path", "image", "image path", "image file", "image index", "dicom path"),
    "patient": ("patient", "patient id", "subject", "subject id"),
    "study": ("study", "study id", "study instance uid", "accession number"),
    "view": ("view", "view position", "projection"),
    "split": ("split", "fold", "part", "subset"),
    "sex": ("sex", "gender", "patient sex", "patient gender"),
    "age": ("age", "patient age", "age years"),
}


class Table(Source):
    """A CSV or Parquet file: a column of paths, and one column a label with 1, 0, -1 (uncertain) or blank.

    Paths are relative to the file's folder. Optional columns are ``patient``, ``study``, ``view``, ``split`` (train,
    val, test), ``sex`` and ``age``, under any of the names of ``COLUMNS`` or that of ``Source.columns``. Every other
    column is a label, unless ``Source.labels`` names them. Without a column ``split``, validation patients are cut.
    """

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``Source.read``."""
        path = Path(root)
        if path.is_dir():
            raise InputError(f"{path} is a folder: --root must name the CSV or Parquet file of a table")
        table = read_table_file(path, ())
        names = _find_columns(path, table.columns, self.columns or {})
        held = [c for c in table.columns if c not in names.values() and not c.startswith("Unnamed: ")]  # pandas' own
        if not held:
            raise InputError(f"{path} has no label columns; it has {', '.join(table.columns)}")
        labels = held
        if self.labels is not None:
            labels = [held[i] for i in align(held, self.labels) if i is not None]
            if not labels:
                raise InputError(f"{path} has none of the labels {', '.join(self.labels)}; it has {', '.join(held)}")
        cells = [
            label_cells(table[c], f"{path}: column {c!r} is no label (name the labels, --labels), it") for c in labels
        ]
        if "patient" not in names:
            warnings.warn(f"{path} has no column 'patient': every image counts as a patient of its own", stacklevel=2)

        def column(name: str) -> list[str]:
            return table[names[name]].astype(str).tolist() if name in names else [""] * len(table)

        paths = column("path")
        parts = [PART_NAMES.get(v.strip().lower(), v) if "split" in names else "train" for v in column("split")]
        if unknown := sorted(set(parts) - set(PART_NAMES.values())):
            raise InputError(f"{path}: unknown split {', '.join(map(repr, unknown))}: give train, val or test")
        return Records(
            tuple(labels),
            paths,
            np.stack(cells, axis=1),
            column("patient") if "patient" in names else paths,
            studies=column("study") if "study" in names else None,
            views=[normal_view(v) for v in column("view")],
            sexes=[normal_sex(s) for s in column("sex")],
            ages=pd.to_numeric(pd.Series(column("age")).str.removesuffix("Y"), errors="coerce"),
            parts=parts,
            blank="ignore",
            root=str(path.parent),
        )


def parse_columns(text: str) -> dict[str, str]:
    """Parses ``"path=file,patient=MRN"``.

    Raises:
        InputError: it is not of that form.

    >>> parse_columns("path=file, patient=MRN")
    {'path': 'file', 'patient': 'MRN'}
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals and name.strip() in COLUMNS and own.strip() for name, equals, own in pairs):
        raise InputError(f"--columns {text!r}: give NAME=COLUMN pairs, NAME one of {', '.join(COLUMNS)}")
    return {name.strip(): own.strip() for name, _, own in pairs}


def _find_columns(path: Path, header: pd.Index, given: dict[str, str]) -> dict[str, str]:
    """Finds what each of ``COLUMNS`` is called in the table."""
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
