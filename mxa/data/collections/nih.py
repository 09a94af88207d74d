"""NIH ChestX-ray14 (Wang et al., 2017) in its published layout, its boxes, and Google's expert labels of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from ...labels import NIH
from ...utils.errors import InputError
from ..image_io import IMAGE_SUFFIXES
from ..records import Records, normal_sex, years
from ..tables import find_home, find_table, read_lines, read_table_file
from ..views import normal_view
from .reader import CollectionReader
from .xrv import shipped_table

__all__ = ["NIHChestXray14", "NIHGoogle", "boxes_file"]

_OPTIONAL = ("Patient ID", "View Position", "Follow-up #", "Patient Age", "Patient Gender")
_TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv", "sample_labels.csv")
_FOLDERS = ("images", "images_*/images", "sample/images", "sample/sample/images")
_BOXES = "BBox_List_2017.csv"


class NIHChestXray14(CollectionReader):
    """A folder with ``Data_Entry_2017.csv`` (or ``_v2020``) and ``images/``, or ``images_001/images/`` and so on.

    Kaggle's sample of it is read too: ``sample_labels.csv`` and ``sample/images/``. ``train_val_list.txt`` and
    ``test_list.txt`` beside the table give the splits, where present; an image that neither lists is in no split. Cells
    are 1 where the finding is named, else 0.
    """

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        root = find_home(root, *_TABLES)
        path = find_table(root, *_TABLES)
        table = read_table_file(path, ("Image Index", "Finding Labels", "Patient ID", "View Position"), (), _OPTIONAL)
        index = {label: i for i, label in enumerate(NIH)}
        targets = np.zeros((len(table), len(NIH)), dtype=np.float32)
        for row, findings in enumerate(table["Finding Labels"]):
            for finding in findings.split("|"):
                if finding not in index:
                    raise InputError(f"{path}: unknown finding {finding!r} of {table['Image Index'].iloc[row]}")
                targets[row, index[finding]] = 1
        names = table["Image Index"].astype(object)
        lists = {split: root / name for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt"))}
        splits = np.full(len(table), "train", dtype=object)
        if any(file.is_file() for file in lists.values()):
            splits[:] = "" if lists["train"].is_file() else "train"
            for split, file in lists.items():
                listed = _read_list(file) if file.is_file() else []
                splits[inside := names.isin(listed)] = split
                if listed and not inside.any():
                    warnings.warn(f"{file} names no image of {path.name}, such as {listed[0]}", stacklevel=2)
        return _records(root, table, NIH, targets, splits)


class NIHGoogle(CollectionReader):
    """Google's expert labels of 4,376 NIH images (Majkowska et al., 2020), adjudicated by radiologists.

    The folder is NIH's; the tables ``four_findings_expert_labels_test_labels.csv`` and ``..._validation_labels.csv``
    are read from it where present, else from the copy that TorchXRayVision ships. There is no training split. Google's
    "Nodule or mass" is neither NIH's Nodule nor its Mass: see ``mxa.labels.MERGES``.
    """

    FINDINGS = ("Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass")
    LABELS = ("Fracture", "Pneumothorax", "Lung Opacity", "Nodule/Mass")

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        tables = []
        for split, in_name in (("test", "test"), ("val", "validation")):
            own = Path(root) / f"four_findings_expert_labels_{in_name}_labels.csv"
            path = own if own.is_file() else shipped_table("google2019_nih-chest-xray-labels.csv.gz")
            table = read_table_file(path, ("Image Index",), self.FINDINGS, (*_OPTIONAL, "Set Id"))
            for finding in self.FINDINGS:
                if not table[finding].isin((0, 1)).all():
                    raise InputError(f"{path}: column {finding!r}: a finding is neither YES nor NO")
            tables.append((table if own.is_file() else table[table["Set Id"] == split]).assign(split=split))
        table = pd.concat(tables, ignore_index=True)
        targets = table[list(self.FINDINGS)].to_numpy(np.float32)
        return _records(Path(root), table, self.LABELS, targets, table["split"])


def boxes_file(root: str | Path) -> Path:
    """Finds ``BBox_List_2017.csv``: where radiologists saw a finding, in 983 of NIH's images.

    Raises:
        InputError: there is none.
    """
    return find_table(find_home(root, _BOXES), _BOXES)


def _read_list(path: Path) -> list[str]:
    """Reads a list of image names, one a line.

    Raises:
        InputError: it is not text, or a line is not the name of an image.
    """
    names = read_lines(path)
    for number, name in enumerate(names, 1):
        if not name.lower().endswith(IMAGE_SUFFIXES) or "," in name or len(name.split()) > 1:
            raise InputError(f"{path}: name {number} is not the name of an image: give one name a line")
    return names


def _records(
    root: Path, table: pd.DataFrame, labels: tuple[str, ...], targets: np.ndarray, splits: np.ndarray
) -> Records:
    names = list(table["Image Index"])
    paths = _paths(root, names)
    patients = [p or _patient(n) or path for p, n, path in zip(table["Patient ID"], names, paths, strict=True)]
    return Records(
        labels,
        paths,
        targets,
        patients,
        studies=(f"{p}_{n}" for p, n in zip(patients, table["Follow-up #"], strict=True)),
        views=map(normal_view, table["View Position"]),
        sexes=map(normal_sex, table["Patient Gender"]),
        ages=years(table["Patient Age"]),
        splits=splits,
        root=str(root),
    )


def _patient(name: str) -> str:
    """Finds the patient in a published name, ``"2"`` in ``00000002_001.png``; ``""`` where there is none."""
    number = name.partition("_")[0]
    return str(int(number)) if number.isdecimal() else ""


def _paths(root: Path, names: list[str]) -> list[str]:
    folders = [f for pattern in _FOLDERS for f in sorted(root.glob(pattern)) if f.is_dir()]
    if not folders:
        raise InputError(f"{root} has no folder images/")
    inside = [str(f.relative_to(root)) for f in folders]
    where = {}
    if len(folders) > 1:
        where = {file.name: name for folder, name in zip(folders, inside, strict=True) for file in folder.iterdir()}
    return [f"{where.get(name, inside[0])}/{name}" for name in names]
