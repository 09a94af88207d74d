"""CheXpert (Irvin et al., 2019) in its published layouts, and CheXpert Plus."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from ...labels import CHEXPERT
from ...utils.errors import InputError, name_some
from ..records import Records, concatenate, normal_sex
from ..tables import find_home, find_table, has_table, label_cells, read_header, read_table_file
from .reader import CollectionReader

__all__ = ["CheXpert", "CheXpertCheXbert", "CheXpertVisualCheXbert"]

_TABLES = {"train": ("train.csv",), "valid": ("valid.csv", "val_labels.csv"), "test": ("test.csv", "test_labels.csv")}
_INSIDE = re.compile(r"(?:^|/)((?:train|valid|test)/patient.*)")
_PATIENT = re.compile(r"patient\d+")
_TRIES = 20  # rows by which the images are looked for
_STUDY = re.compile(r"(patient[^/]*)(?:/study[^/]*)?")
_SIDES = {"AP": "AP", "PA": "PA"}  # 17 frontal images are marked LL or RL: unknown
_OPTIONAL = ("Sex", "Age", "Frontal/Lateral", "AP/PA")


class CheXpert(CollectionReader):
    """The folder that holds ``train.csv`` and ``valid.csv`` (v1.0 or v1.0-small), ``test.csv`` where present.

    The root may also be the folder around it, and the images of v1.0 may lie in the four folders that its archives
    unpack to, ``CheXpert-v1.0 batch 1 (validate & csv)`` and so on: any folders, in the root or beside it, that hold
    ``patient00001`` and so on. Of a path in the tables, what begins with ``train/``, ``valid/`` or ``test/`` counts, or
    what follows the collection's published name. ``"val"`` is cut from ``train.csv``; ``"valid"`` is the official
    validation set; ``"all"`` is every row of ``train.csv``. The test table lacks sex, age and view. It may lack labels,
    which are then masked.

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
        paths = list(map(_inside, table["Path"]))
        self._check_apart(root, split, paths, path)
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

    def _check_apart(self, root: Path, split: str, paths: Sequence[str], table: Path) -> None:
        """Refuses a patient who is in ``train.csv`` and in another table, whichever of the two is read."""
        others = [self._find(root, name) for name in (("valid", "test") if split == "train" else ("train",))]
        patients = {_study(p)[0] for p in paths} if any(others) else set()
        for other in filter(None, others):
            both = [p for p in map(_inside, read_table_file(other, ("Path",))["Path"]) if _study(p)[0] in patients]
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


def _inside(path: str) -> str:
    r"""Drops what stands before ``train/``, or the collection's name, also of another computer's path.

    >>> _inside(r"D:\data\CheXpert-v1.0-small\train\patient00001\study1\view1_frontal.jpg")
    'train/patient00001/study1/view1_frontal.jpg'
    """
    path = path.strip().replace("\\", "/")
    if found := _INSIDE.search(path):
        return found[1]
    _, name, rest = path.rpartition("CheXpert")
    return (rest.partition("/")[2] or path) if name else path


def _located(root: Path, paths: list[str]) -> tuple[Path, list[str]]:
    """Finds the images: below the root, or in folders of patients in it or beside it, as v1.0's archives unpack to.

    Returns:
        The folder that the paths are relative to, and the paths. Those of images that are not there stay as they are.
    """

    def exist(folder: Path, paths: list[str]) -> bool:
        return any(os.path.isfile(folder / path) for path in paths[:: max(len(paths) // _TRIES, 1)])

    if not paths or exist(root, paths):
        return root, paths
    png = [f"{os.path.splitext(path)[0]}.png" for path in paths]
    if exist(root, png):
        return root, png
    looked = [root]
    for base in (root, root.parent):
        where, folders = _patient_folders(base, root)
        looked += folders
        for names in (paths, png) if where else ():
            placed = [_place(base, where, root, path) for path in names]
            if exist(base, placed):
                return base, placed
    shown = name_some(list(dict.fromkeys(map(str, looked))), 6)
    remedy = "--root must name the folder that holds them"
    warnings.warn(f"none of the images, such as {paths[0]}, is in {shown}: {remedy}", stacklevel=2)
    return root, paths


def _patient_folders(base: Path, root: Path) -> tuple[dict[tuple[str, str], Path], list[Path]]:
    """Finds the folders, in a folder or in those in it, that hold patients; not those of another copy with its tables.

    Returns:
        The folder of each split and patient, and all those folders.
    """
    where: dict[tuple[str, str], Path] = {}
    tables = [name for names in _TABLES.values() for name in names]
    for outer in sorted(base.iterdir()):
        if _PATIENT.fullmatch(outer.name) or not outer.is_dir() or (outer != root and has_table(outer, *tables)):
            continue
        for folder in (outer, *(outer / name for name in _TABLES)):
            with suppress(OSError):  # no such folder, or one that is closed to us
                names = filter(_PATIENT.fullmatch, os.listdir(folder))
                where |= {(_kind(folder.name), name): folder for name in names}
    return where, list(dict.fromkeys(where.values()))


def _kind(name: str) -> str:
    return name if name in ("valid", "test") else "train"


def _place(base: Path, where: dict[tuple[str, str], Path], root: Path, path: str) -> str:
    """Returns the path of an image in its patient's folder."""
    split, _, rest = path.partition("/")
    folder = where.get((_kind(split), rest.partition("/")[0]))
    return str((folder or root / split).relative_to(base) / rest)


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
