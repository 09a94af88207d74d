"""NIH ChestX-ray14, in its published layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..labels import NIH
from .records import Records, in_validation, read_csv

__all__ = ["read_nih"]


def read_nih(root: Path, split: str | None = None) -> Records:
    """Reads a folder with ``Data_Entry_2017.csv`` and ``images/`` (or ``images_001/images/`` ... as downloaded).

    Args:
        root: That folder. ``train_val_list.txt`` and ``test_list.txt`` beside the table give the split, where present.
        split: ``"train"`` and ``"val"`` (10 % of the patients, by a hash) of the training list, or of everything
            where there are no lists; ``"test"``, the test list; ``"all"``; None, the test list where there is one,
            else everything.

    Returns:
        Records with NIH's 15 labels: 1 where the finding is named, else 0.

    Raises:
        InputError: a missing table, column, list or image folder, or an unknown finding.
    """
    root = Path(root)
    columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
    table = read_csv(root / "Data_Entry_2017.csv", columns)
    names = table["Image Index"].to_numpy(str)
    index = {label: i for i, label in enumerate(NIH)}
    targets = np.zeros((len(table), len(NIH)), dtype=np.float32)
    for row, findings in enumerate(table["Finding Labels"]):
        for finding in findings.split("|"):
            if finding not in index:
                raise InputError(f"{root / 'Data_Entry_2017.csv'}: unknown finding {finding!r} of {names[row]}")
            targets[row, index[finding]] = 1
    records = Records(
        NIH, _paths(root, names), targets, table["Patient ID"].to_numpy(str), table["View Position"].to_numpy(str)
    )
    lists = {part: _read_list(root / f"{part}_list.txt") for part in ("train_val", "test")}
    if split is None:
        split = "test" if lists["test"] is not None else "all"
    records = replace(records, split=split)
    if split == "all":
        return records
    if split == "test":
        if lists["test"] is None:
            raise InputError(f"{root} has no test_list.txt: use --split all")
        return records.subset(np.isin(names, lists["test"]))
    if lists["train_val"] is not None:
        records = records.subset(np.isin(names, lists["train_val"]))
    validation = in_validation(records.patients)
    return records.subset(validation if split == "val" else ~validation)


def _read_list(path: Path) -> list[str] | None:
    return path.read_text().split() if path.is_file() else None


def _paths(root: Path, names: np.ndarray) -> np.ndarray:
    folders = [f for f in (root / "images", *sorted(root.glob("images_*/images"))) if f.is_dir()]
    if not folders:
        raise InputError(f"{root} has no folder images/")
    if len(folders) == 1:
        return np.array([str(folders[0] / name) for name in names])
    where = {path.name: str(path) for folder in folders for path in folder.iterdir()}
    return np.array([where.get(name, str(folders[0] / name)) for name in names])
