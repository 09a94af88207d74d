"""CheXpert (Irvin et al., 2019) in its published layouts, and CheXpert Plus."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from ...labels import CHEXPERT
from ...utils.errors import InputError
from ..records import Records, concatenate, normal_sex
from ..tables import find_home, find_table, has_table, label_cells, read_header, read_table_file
from .reader import CollectionReader

__all__ = ["CheXpert", "CheXpertCheXbert", "CheXpertVisualCheXbert"]

_TABLES = {"train": ("train.csv",), "valid": ("valid.csv", "val_labels.csv"), "test": ("test.csv", "test_labels.csv")}
_STUDY = re.compile(r"(patient[^/]*)(?:/study[^/]*)?")
_SIDES = {"AP": "AP", "PA": "PA"}  # 17 frontal images are marked LL or RL: unknown
_OPTIONAL = ("Sex", "Age", "Frontal/Lateral", "AP/PA")


class CheXpert(CollectionReader):
    """The folder that holds ``train.csv`` and ``valid.csv`` (v1.0 or v1.0-small), ``test.csv`` where present.

    The root may also be the folder around it, and the images of v1.0 may lie in the four folders that its archives
    unpack to, ``CheXpert-v1.0 batch 1 (validate & csv)`` and so on. Paths in the tables begin with the collection's
    published name, which is dropped. ``"val"`` is cut from ``train.csv``; ``"valid"`` is the official validation set;
    ``"all"`` is every row of ``train.csv``. The test table lacks sex, age and view. It may lack labels, which are then
    masked.

    A folder with ``df_chexpert_plus*.csv`` and no ``train.csv`` is CheXpert Plus. Its labels come from
    ``chexbert_labels/impression_fixed.json``.
    """

    splits = ("train", "val", "valid", "test", "all")
    train_table: ClassVar[str] = "train.csv"

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        root = _home(root)
        if _is_plus(root):
            return _read_plus(root, split)
        if split is None:
            split = "test" if self._find(root, "test") else "valid"
        split = split if split in ("valid", "test") else "train"
        path = self._find(root, split) or find_table(root, *self._names(split))
        labels = CHEXPERT
        if split == "test":
            held = read_header(path)
            labels = tuple(name for name in CHEXPERT if name in held) or CHEXPERT
        table = read_table_file(path, ("Path",), labels, _OPTIONAL)
        self._check_apart(root, split, table["Path"], path)
        paths = [name.partition("/")[2] if name.startswith("CheXpert") else name for name in table["Path"]]
        folder, paths = _located(root, paths)
        return _records(folder, table, paths, labels, table[list(labels)].to_numpy(), split)

    def read_all(self, root: str | Path) -> Records:
        """See ``CollectionReader.read_all``."""
        home = _home(root)
        splits = ("train", "valid") if _is_plus(home) else [split for split in _TABLES if self._find(home, split)]
        pieces = [self.read(root, split).with_labels(CHEXPERT) for split in splits]
        if not pieces:
            find_table(home, self.train_table)
        return concatenate(pieces)

    def _names(self, split: str) -> tuple[str, ...]:
        return (self.train_table,) if split == "train" else _TABLES[split]

    def _find(self, root: Path, split: str) -> Path | None:
        """Finds a table in the root, or beside it: other labelers' tables lie beside the four folders of v1.0."""
        around = (root, root.parent) if root.name.startswith("CheXpert") else (root,)
        return next((find_table(f, *self._names(split)) for f in around if has_table(f, *self._names(split))), None)

    def _check_apart(self, root: Path, split: str, paths: pd.Series, table: Path) -> None:
        """Refuses a patient who is in ``train.csv`` and in another table, whichever of the two is read."""
        others = [self._find(root, name) for name in (("valid", "test") if split == "train" else ("train",))]
        patients = {_study(p)[0] for p in paths} if any(others) else set()
        for other in filter(None, others):
            both = [p for p in read_table_file(other, ("Path",))["Path"] if _study(p)[0] in patients]
            if both:
                raise InputError(f"{table} has patients of {other}, such as the one of {both[0]}: divide by patient")


class CheXpertCheXbert(CheXpert):
    """CheXpert with the labels of ``train_cheXbert.csv`` for ``train.csv``."""

    train_table = "train_cheXbert.csv"


class CheXpertVisualCheXbert(CheXpert):
    """CheXpert with the labels of ``train_visualCheXbert.csv`` for ``train.csv``."""

    train_table = "train_visualCheXbert.csv"


def _home(root: str | Path) -> Path:
    root = os.path.abspath(root)  # so that it has a parent
    return find_home(root, *(name for names in _TABLES.values() for name in names), "df_chexpert_plus*.csv")


def _is_plus(root: Path) -> bool:
    return has_table(root, "df_chexpert_plus*.csv") and not has_table(root, *_TABLES["train"])


def _located(root: Path, paths: list[str]) -> tuple[Path, list[str]]:
    """Finds the images: below the root, or in the folders beside it that v1.0's archives unpack to.

    Returns:
        The folder that the paths are relative to, and the paths. Those of images that are not there stay as they are.
    """
    if not paths or (root / paths[0]).is_file():
        return root, paths
    if (root / paths[0]).with_suffix(".png").is_file():
        return root, [f"{os.path.splitext(path)[0]}.png" for path in paths]
    if "batch" not in root.name:
        return root, paths
    folders = [f for f in sorted(root.parent.glob("CheXpert*batch*")) if f.is_dir()]
    inside = [f / name for f in folders for name in ("", "train", "valid") if (f / name).is_dir()]
    where = {(f.name == "valid", name): f for f in inside for name in os.listdir(f) if name.startswith("patient")}

    def place(path: str) -> str:
        split, _, rest = path.partition("/")
        folder = where.get((split == "valid", rest.partition("/")[0]))
        return str((folder or root / split).relative_to(root.parent) / rest)

    return (root.parent, list(map(place, paths))) if where else (root, paths)


def _study(path: str) -> tuple[str, str]:
    """Returns the patient and the study of a path: ``patient00001`` and ``patient00001/study1``."""
    found = _STUDY.search(path)
    return (found[1], found[0]) if found else (path, path)


def _records(
    root: Path,
    table: pd.DataFrame,
    paths: Sequence[str],
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
        paths,
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
    labelled = _read_labels(root / "chexbert_labels" / "impression_fixed.json")
    known = table["path_to_image"].isin(labelled.index)
    if not known.all():
        warnings.warn(f"{path}: {(~known).sum()} images have no labels and are left out", stacklevel=2)
        table = table[known]
    cells = labelled.loc[table["path_to_image"]].to_numpy(np.float32)
    folder = next((f for f in ("", "PNG/", "PNG/PNG/", "PNGs/") if (root / f / "train").is_dir()), "")
    root, paths = _located(root, (folder + table["path_to_image"]).tolist())
    return _records(root, table, paths, CHEXPERT, cells, table["split"].to_numpy(object))


def _read_labels(path: Path) -> pd.DataFrame:
    """Reads CheXpert Plus' labels: cells by ``path_to_image``, the first of an image that has several."""
    cells: dict[str, list[float | None]] = {}
    what = f"{path}: CheXpert Plus' labels (chexbert_labels.zip) do not read"
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007
                if line.strip():
                    found = json.loads(line)
                    cells.setdefault(str(found["path_to_image"]), [found[name] for name in CHEXPERT])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what}: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{what}: line {number} is not an image with CheXpert's labels in JSON") from None
    table = pd.DataFrame.from_dict(cells, orient="index", columns=list(CHEXPERT), dtype=object)
    return table.apply(lambda column: label_cells(column.astype(str), f"{what}: {column.name!r}"))
