"""CheXpert (Irvin et al., 2019) in its published layouts, and CheXpert Plus."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ...labels import CHEXPERT
from ...utils.errors import InputError
from ..records import Records, concatenate, normal_sex
from ..tables import find_table, has_table, label_cells, read_header, read_table_file
from .reader import CollectionReader

__all__ = ["CheXpert"]

_TABLES = {"train": ("train.csv",), "valid": ("valid.csv", "val_labels.csv"), "test": ("test.csv", "test_labels.csv")}
_STUDY = re.compile(r"(patient[^/]*)(?:/study[^/]*)?")
_SIDES = {"AP": "AP", "PA": "PA"}  # 17 frontal images are marked LL or RL: unknown
_OPTIONAL = ("Sex", "Age", "Frontal/Lateral", "AP/PA")


class CheXpert(CollectionReader):
    """The folder that holds ``train.csv`` and ``valid.csv`` (v1.0 or v1.0-small), ``test.csv`` where present.

    Paths in the tables begin with the collection's published name, which is dropped. ``"val"`` is cut from
    ``train.csv``; ``"valid"`` is the official validation set; ``"all"`` is every row of ``train.csv``. The test table
    lacks sex, age and view. It may lack labels, which are then masked.

    A folder with ``df_chexpert_plus*.csv`` and no ``train.csv`` is CheXpert Plus. Its labels come from
    ``chexbert_labels/impression_fixed.json``.
    """

    splits = ("train", "val", "valid", "test", "all")

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        root = Path(root)
        if _is_plus(root):
            return _read_plus(root, split)
        if split is None:
            split = "test" if _has(root, "test") else "valid"
        split = split if split in ("valid", "test") else "train"
        path = find_table(root, *_TABLES[split])
        labels = CHEXPERT
        if split == "test":
            held = read_header(path)
            labels = tuple(name for name in CHEXPERT if name in held) or CHEXPERT
        table = read_table_file(path, ("Path",), labels, _OPTIONAL)
        _check_apart(root, split, table["Path"], path)
        return _records(root, table, table["Path"], labels, table[list(labels)].to_numpy(), split)

    def read_all(self, root: str | Path) -> Records:
        """See ``CollectionReader.read_all``."""
        plus = _is_plus(Path(root))
        splits = [split for split in _TABLES if (plus and split != "test") or _has(Path(root), split)]
        return concatenate([self.read(root, split).with_labels(CHEXPERT) for split in splits])


def _has(root: Path, split: str) -> bool:
    return has_table(root, *_TABLES[split])


def _is_plus(root: Path) -> bool:
    return not _has(root, "train") and any(root.glob("df_chexpert_plus*.csv*"))


def _check_apart(root: Path, split: str, paths: pd.Series, table: Path) -> None:
    """Refuses a patient who is in ``train.csv`` and in another table, whichever of the two is read."""
    others = [other for other in (("valid", "test") if split == "train" else ("train",)) if _has(root, other)]
    patients = {_study(p)[0] for p in paths} if others else set()
    for other in (find_table(root, *_TABLES[name]) for name in others):
        both = [p for p in read_table_file(other, ("Path",))["Path"] if _study(p)[0] in patients]
        if both:
            raise InputError(f"{table} has patients of {other}, such as the one of {both[0]}: divide by patient")


def _study(path: str) -> tuple[str, str]:
    """Returns the patient and the study of a path: ``patient00001`` and ``patient00001/study1``."""
    found = _STUDY.search(path)
    return (found[1], found[0]) if found else (path, path)


def _records(
    root: Path,
    table: pd.DataFrame,
    paths: np.ndarray,
    labels: tuple[str, ...],
    cells: np.ndarray,
    split: str | np.ndarray,
) -> Records:
    """Makes records of a table that has CheXpert's column names."""
    lateral = np.fromiter((path.endswith(("lateral.jpg", "lateral.png")) for path in paths), bool)
    lateral |= (table["Frontal/Lateral"] == "Lateral").to_numpy(bool)
    ages = pd.to_numeric(table["Age"], errors="coerce").to_numpy(np.float32)
    return Records(
        labels,
        (path.partition("/")[2] if path.startswith("CheXpert") else path for path in paths),
        cells,
        (_study(path)[0] for path in paths),
        studies=(_study(path)[1] for path in paths),
        views=(
            "LATERAL" if is_lateral else _SIDES.get(side, "")
            for is_lateral, side in zip(lateral, table["AP/PA"], strict=True)
        ),
        sexes=map(normal_sex, table["Sex"]),
        ages=np.where(ages > 0, ages, np.nan),  # 0 stands for unknown
        splits=split,
        root=str(root),
    )


def _read_plus(root: Path, split: str | None) -> Records:
    path = find_table(root, "df_chexpert_plus*.csv")
    names = {"sex": "Sex", "age": "Age", "frontal_lateral": "Frontal/Lateral", "ap_pa": "AP/PA"}
    table = read_table_file(path, ("path_to_image", "split"), (), tuple(names)).rename(columns=names)
    table = table[table["split"] == ("valid" if split in ("valid", None) else "train")]
    label_file = root / "chexbert_labels" / "impression_fixed.json"
    try:
        with label_file.open(encoding="utf-8") as lines:
            labelled = pd.DataFrame([json.loads(line) for line in lines if line.strip()])
        labelled = labelled.drop_duplicates("path_to_image").set_index("path_to_image")[list(CHEXPERT)]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{label_file}: CheXpert Plus' labels (chexbert_labels.zip) do not read: {error}") from None
    labelled = labelled.reindex(table["path_to_image"])
    cells = np.stack([label_cells(labelled[name], f"{label_file}: {name!r}") for name in CHEXPERT], axis=1)
    folder = next((f for f in ("", "PNG/", "PNG/PNG/", "PNGs/") if (root / f / "train").is_dir()), "")
    paths = folder + table["path_to_image"]
    if len(paths) and not (root / paths.iloc[0]).is_file():
        paths = paths.str.removesuffix(".jpg") + ".png"
    return _records(root, table, paths, CHEXPERT, cells, table["split"].to_numpy(object))
