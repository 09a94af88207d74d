"""The real tables that TorchXRayVision ships, counted against pandas: their first rows, and whole in the slow suite."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mxa.data import create_dataset
from mxa.data.collections.padchest import FINDINGS
from mxa.data.create import read_collection
from mxa.labels import CHEXPERT, NIH, PADCHEST

from ..helpers import boxes_of

TABLES = Path(find_spec("torchxrayvision").origin).parent / "data"


@pytest.fixture(params=[10_000, pytest.param(None, marks=pytest.mark.slow)], ids=["first", "whole"])
def rows(request) -> int | None:
    """How many rows of a table are read, None for all: what is published holds for all."""
    return request.param


def folder(tmp_path: Path, shipped: str, name: str, rows: int | None = None) -> Path:
    (tmp_path / "images").mkdir(exist_ok=True)
    if rows is None:
        (tmp_path / name).symlink_to(TABLES / shipped)
    else:
        first = pd.read_csv(TABLES / shipped, nrows=rows, dtype=str, keep_default_na=False)
        first.to_csv(tmp_path / name, index=False)
    return tmp_path


def kinds(records) -> dict[str, tuple[int, int, int, int]]:
    """Positive, negative, uncertain, blank."""
    t = records.targets
    table = np.stack([(t == 1).sum(0), (t == 0).sum(0), (t == -1).sum(0), np.isnan(t).sum(0)], axis=1)
    return dict(zip(records.labels, map(tuple, table.tolist()), strict=True))


def test_chexpert(tmp_path, rows):
    root = folder(tmp_path, "chexpert_train.csv.gz", "train.csv.gz", rows)
    records = read_collection("chexpert", root, "train")
    table = pd.read_csv(TABLES / "chexpert_train.csv.gz", nrows=rows)
    assert len(records) == len(table) == (rows or 223_414)
    expected = {
        name: tuple(int(n) for n in ((c == 1).sum(), (c == 0).sum(), (c == -1).sum(), c.isna().sum()))
        for name, c in table[list(CHEXPERT)].items()
    }
    assert kinds(records) == expected
    assert rows or sum(row[2] for row in expected.values()) == 139_958
    assert records.path(0) == f"{root}/train/patient00001/study1/view1_frontal.jpg"
    assert len(set(records.patients)) == table["Path"].str.extract(r"(patient\d+)")[0].nunique()
    assert rows or len(set(records.patients)) == 64_540
    assert len(set(records.studies)) == table["Path"].str.extract(r"(patient\d+/study\d+)")[0].nunique()
    views = pd.Series(records.views.astype(object)).value_counts()
    assert views["LATERAL"] == (table["Frontal/Lateral"] == "Lateral").sum()
    assert rows or views["LATERAL"] == 32_387
    assert views["AP"] == (table["AP/PA"] == "AP").sum() and views["PA"] == (table["AP/PA"] == "PA").sum()
    assert rows or (views[""] == 17 and views.sum() == 223_414)
    assert (records.sexes == "F").sum() == (table["Sex"] == "Female").sum()
    assert np.isnan(records.ages).sum() == (table["Age"] == 0).sum()
    assert np.nanmean(records.ages) == pytest.approx(table["Age"][table["Age"] > 0].mean(), rel=1e-5)
    splits = pd.DataFrame({"split": records.splits.astype(object), "patient": records.patients.astype(object)})
    assert splits.drop_duplicates()["patient"].is_unique
    share = splits.drop_duplicates()["split"].value_counts(normalize=True)["val"]
    assert share == pytest.approx(0.1, abs=0.02 if rows else 0.001)


PUBLISHED = {  # Irvin et al., 2019, table 1: studies positive and uncertain
    "No Finding": (16_627, 0),
    "Enlarged Cardiomediastinum": (9_020, 10_148),
    "Cardiomegaly": (23_002, 6_597),
    "Lung Lesion": (6_856, 1_071),
    "Lung Opacity": (92_669, 4_341),
    "Edema": (48_905, 11_571),
    "Consolidation": (12_730, 23_976),
    "Pneumonia": (4_576, 15_658),
    "Atelectasis": (29_333, 29_377),
    "Pneumothorax": (17_313, 2_663),
    "Pleural Effusion": (75_696, 9_419),
    "Pleural Other": (2_441, 1_771),
    "Fracture": (7_270, 484),
    "Support Devices": (105_831, 898),
}


@pytest.mark.slow
def test_chexperts_studies_are_the_published_ones(tmp_path):
    records = read_collection("chexpert", folder(tmp_path, "chexpert_train.csv.gz", "train.csv.gz"), "train")
    studies = records.subset(~pd.Series(records.studies.astype(object)).duplicated().to_numpy())
    assert len(studies) == 187_641
    found = {name: (row[0], row[2]) for name, row in kinds(studies).items()}
    assert found == PUBLISHED


def test_chexperts_policies_give_the_known_prevalences(tmp_path, rows):
    root = folder(tmp_path, "chexpert_train.csv.gz", "train.csv.gz", rows)
    table = pd.read_csv(TABLES / "chexpert_train.csv.gz", nrows=rows)
    edema, view = table["Edema"], table["Frontal/Lateral"] == "Frontal"
    for policy, wanted in (("U-Ones", edema.abs() == 1), ("U-Zeros", edema == 1)):
        train, val = (create_dataset("chexpert", root, p, "Edema", policy).records for p in ("train", "val"))
        assert len(train) + len(val) == view.sum()
        assert rows or view.sum() == 191_027
        assert not np.isnan(train.targets).any()
        uncertain = int(np.isnan(val.targets).sum())  # masked, never remapped
        positive = train.targets.sum() + np.nansum(val.targets) + (uncertain if policy == "U-Ones" else 0)
        assert positive == (wanted & view).sum()


def test_nih(tmp_path, rows):
    root = folder(tmp_path, "Data_Entry_2017_v2020.csv.gz", "Data_Entry_2017_v2020.csv.gz", rows)
    records = read_collection("nih", root)
    table = pd.read_csv(TABLES / "Data_Entry_2017_v2020.csv.gz", nrows=rows)
    total = rows or 112_120
    assert len(records) == len(table) == total
    expected = table["Finding Labels"].str.split("|").explode().value_counts()
    assert kinds(records) == {name: (int(expected[name]), total - int(expected[name]), 0, 0) for name in NIH}
    assert len(set(records.patients)) == table["Patient ID"].nunique()
    assert rows or len(set(records.patients)) == 30_805
    assert {v: int((records.views == v).sum()) for v in ("PA", "AP")} == table["View Position"].value_counts().to_dict()
    assert np.array_equal(records.ages, table["Patient Age"].to_numpy(np.float32))
    assert (records.sexes == "M").sum() == (table["Patient Gender"] == "M").sum()


def test_nih_boxes_of_radiologists(tmp_path):
    boxes = boxes_of(folder(tmp_path, "BBox_List_2017.csv.gz", "BBox_List_2017.csv.gz"))
    table = pd.read_csv(TABLES / "BBox_List_2017.csv.gz")
    assert sum(len(b) for found in boxes.values() for b in found.values()) == len(table) == 984
    assert len(boxes) == table["Image Index"].nunique()
    names = {name for found in boxes.values() for name in found}
    assert len(names) == 8 and names <= set(NIH) and "Infiltration" in names
    row = table.iloc[0]
    expected = np.float32([row["Bbox [x"], row["y"], row["Bbox [x"] + row["w"], row["y"] + row["h]"]]) / 1024
    assert any(np.allclose(box, expected) for box in boxes[row["Image Index"]]["Atelectasis"])
    every = np.concatenate([b for found in boxes.values() for b in found.values()])
    assert (every >= 0).all() and (every <= 1).all() and (every[:, 2:] > every[:, :2]).all()


def test_googles_expert_labels(tmp_path):
    (tmp_path / "images").mkdir()
    records = read_collection("nih-google", tmp_path)
    table = pd.read_csv(TABLES / "google2019_nih-chest-xray-labels.csv.gz")
    assert len(records) == len(table) == 4_376
    columns = ("Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass")
    assert records.labels == ("Fracture", "Pneumothorax", "Lung Opacity", "Nodule/Mass")
    for label, name in zip(records.labels, columns, strict=True):
        yes = int((table[name] == "YES").sum())
        assert kinds(records)[label] == (yes, 4_376 - yes, 0, 0)
    assert {split: int((records.splits == split).sum()) for split in ("test", "val")} == {"test": 1_962, "val": 2_414}
    assert len(create_dataset("nih-google", tmp_path, labels="chexpert")) == 1_962


def test_padchest(tmp_path, rows):
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    records = read_collection("padchest", folder(tmp_path, name, name, rows), labels=("scoliosis",))
    columns = ["ImageID", "Projection", "Labels", "PatientID"]
    table = pd.read_csv(TABLES / name, usecols=columns, keep_default_na=False, nrows=rows)
    total = rows or 160_861
    assert len(records) == len(table) == total
    lists = table["Labels"].map(lambda text: [] if text == "nan" else ast.literal_eval(text))
    exploded = lists.explode().dropna().str.strip()
    says_nothing = lists.map(lambda row: {x.strip() for x in row} <= {"", "unchanged", "exclude", "suboptimal study"})
    blank = int(says_nothing.sum())
    assert records.labels == (*PADCHEST, "scoliosis")
    found = kinds(records)
    for label, parts in {**FINDINGS, "scoliosis": ("scoliosis",)}.items():
        n = exploded.isin(parts).groupby(level=0).any().sum()
        assert found[label] == (n, total - n - blank, 0, blank), label
        assert rows or set(parts) <= set(exploded), label  # each is a name that PadChest has
    names = ("PA", "AP", "AP_horizontal", "L", "COSTAL", "EXCLUDE", "UNK")
    views = table["Projection"].value_counts().reindex(names, fill_value=0)
    shown = {v: int((records.views == v).sum()) for v in ("PA", "AP", "LATERAL", "OTHER", "")}
    others = views["COSTAL"] + views["EXCLUDE"]
    assert shown == {
        "PA": views["PA"],
        "AP": views["AP"] + views["AP_horizontal"],
        "LATERAL": views["L"],
        "OTHER": others,
        "": views["UNK"],
    }
    assert len(set(records.patients)) == table["PatientID"].nunique()


def test_vindr(tmp_path):
    records = read_collection("vindr", folder(tmp_path, "vinbigdata-train.csv.gz", "train.csv.gz"))
    table = pd.read_csv(TABLES / "vinbigdata-train.csv.gz")
    assert len(records) == table["image_id"].nunique() == 15_000
    assert (table.groupby("image_id")["rad_id"].nunique() == 3).all()
    votes = table.drop_duplicates(["image_id", "class_name", "rad_id"]).groupby(["class_name", "image_id"]).size()
    for name in table["class_name"].unique():
        most, fewer = int((votes[name] > 1).sum()), int((votes[name] == 1).sum())
        label = next(n for n in records.labels if n.lower() == name.lower())
        assert kinds(records)[label] == (most, 15_000 - most - fewer, fewer, 0), name
    assert len(records.labels) == 15
