"""Any CSV table of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..labels import align
from .chexpert import apply_policies
from .records import Records, in_validation, read_csv

__all__ = ["read_table"]

_NOT_LABELS = ("path", "patient", "study", "view", "split", "age", "sex")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_VIEWS = {"AP": "AP", "PA": "PA", **dict.fromkeys(("LATERAL", "LAT", "LL", "L"), "LATERAL")}


def read_table(
    path: Path,
    split: str | None = None,
    labels: Sequence[str] | None = None,
    uncertain: str | Mapping[str, str] = "U-Ones",
    blank: str = "ignore",
) -> Records:
    """Reads a CSV with a column ``path`` and one column a label: 1, 0, -1 (uncertain) or blank.

    Args:
        path: The CSV. Image paths are relative to its folder. Optional columns: ``patient``, ``view``, ``split``
            (train, val, test).
        split: ``"train"``, ``"val"``, ``"test"`` by the column ``split``, or without it train and val by a hash of
            the patient; ``"all"``; None, the test rows where there are any, else everything.
        labels: Label columns; every column but the named ones (and ``study``, ``age``, ``sex``) by default.
        uncertain: Policy for the training part (see ``apply_policies``); elsewhere uncertain cells are masked.
        blank: Policy for blank cells.

    Raises:
        InputError: a missing column, a label cell that is no number in [-1, 1], or an empty split.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: --root must name the CSV of a table")
    table = read_csv(path, ("path",))
    columns = [c for c in table.columns if c not in _NOT_LABELS and not c.startswith("Unnamed: ")]  # pandas' own
    if not columns:
        raise InputError(f"{path} has no label columns; it has {', '.join(table.columns)}")
    if labels is not None:
        wanted = [columns[i] for i in align(columns, labels) if i is not None]
        if not wanted:
            raise InputError(f"{path} has none of the labels {', '.join(labels)}; it has {', '.join(columns)}")
        columns = wanted
    cells = np.empty((len(table), len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        try:
            cells[:, i] = table[column].replace("", "nan").to_numpy(np.float32)
        except ValueError:
            raise InputError(
                f"{path}: column {column!r} is no label (cells must be 1, 0, -1 or blank): name the labels, --labels"
            ) from None
        values = cells[:, i]
        if ((values < -1) | (values > 1) | ((values < 0) & (values > -1))).any():
            raise InputError(
                f"{path}: column {column!r} has values that are no label (1, 0, -1 or blank): name them, --labels"
            )
    if "patient" not in table:
        warnings.warn(f"{path} has no column 'patient': every image counts as a patient of its own", stacklevel=2)
    records = Records(
        tuple(columns),
        np.array([str(path.parent / p) for p in table["path"]]),
        cells,
        table["patient" if "patient" in table else "path"].to_numpy(str),
        np.array([_VIEWS.get(v.upper(), "") for v in table["view"]] if "view" in table else [""] * len(table)),
    )
    validation = in_validation(records.patients)
    if "split" in table:
        parts = np.array([_SPLITS.get(v.strip().lower(), v) for v in table["split"]])
        if unknown := sorted(set(parts.tolist()) - set(_SPLITS.values())):
            raise InputError(f"{path}: unknown split {', '.join(map(repr, unknown))}: give train, val or test")
        if not (parts == "val").any():
            parts = np.where((parts == "train") & validation, "val", parts)
    else:
        parts = np.where(validation, "val", "train")
    if split is None:
        split = "test" if (parts == "test").any() else "all"
    if split == "test" and not (parts == "test").any():
        raise InputError(f"{path} has no rows with split test: use --split all")
    policy = uncertain if split == "train" else "U-Ignore"
    records = replace(records, targets=apply_policies(cells, records.labels, policy, blank), split=split)
    return records if split == "all" else records.subset(parts == split)
