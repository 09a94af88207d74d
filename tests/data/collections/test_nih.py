"""NIH ChestX-ray14: rows, splits, boxes and expert labels."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from mxa.data import create_dataset
from mxa.labels import NIH
from mxa.utils.errors import InputError

from ..helpers import boxes_of, column, counts, edit, names


def test_nih_rows_are_the_tables(made_nih):
    dataset = create_dataset("nih", made_nih())
    assert dataset.labels == NIH
    assert len(dataset) == 24
    assert counts(dataset) == {"Effusion": 10, "Cardiomegaly": 5, "Infiltration": 5, "Edema": 5, "No Finding": 9}
    assert np.isin(dataset.records.targets, (0, 1)).all()
    row = dataset.records.targets[3]  # Effusion|Infiltration
    assert [name for name, on in zip(NIH, row, strict=True) if on] == ["Effusion", "Infiltration"]
    assert dataset.records.patients[3] == "2"
    assert dataset.records.views[:4].tolist() == ["PA", "AP", "PA", "AP"]


def test_nih_splits_without_lists_are_by_patient(made_nih):
    root = made_nih()
    train, val = (create_dataset("nih", root, split) for split in ("train", "val"))
    assert set(val.records.patients) == {"3"}
    assert set(train.records.patients) == {"1", "2", "4", "5", "6", "7", "21"}
    assert len(train) + len(val) == 24
    with pytest.raises(InputError, match=r"nih .*has no test split: train with --test-fraction"):
        create_dataset("nih", root, "test")


def test_nih_lists_give_the_split(made_nih):
    root = made_nih(lists=True)
    sizes = {"train": 15, "val": 3, "test": 6, "all": 24, None: 6}
    splits = {split: create_dataset("nih", root, split) for split in sizes}
    assert {split: len(records) for split, records in splits.items()} == sizes
    assert names(splits["test"]) == names(splits[None]) == set((root / "test_list.txt").read_text().split())
    assert names(splits["train"]) | names(splits["val"]) == set((root / "train_val_list.txt").read_text().split())


def test_nih_as_downloaded_in_several_folders(made_nih):
    root = made_nih()
    for number, pattern in (("001", "*_000.png"), ("002", "*.png")):
        (root / f"images_{number}" / "images").mkdir(parents=True)
        for path in sorted((root / "images").glob(pattern)):
            shutil.move(path, root / f"images_{number}" / "images")
    (root / "images").rmdir()
    dataset = create_dataset("nih", root)
    assert len({str(path).split("/")[-3] for path in dataset.records.paths}) == 2
    assert all(dataset[i][0].mode == "L" for i in range(24))
    dataset.check()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "Data_Entry_2017.csv").unlink(), "no table .*Data_Entry_2017.csv"),
        (lambda root: shutil.rmtree(root / "images"), "no folder images/"),
        (lambda root: shutil.rmtree(root), "no such folder or file: .*nih"),
        (lambda root: edit(root / "Data_Entry_2017.csv", "Patient ID", "Patient"), "no column 'Patient ID'; it has Im"),
        (lambda root: edit(root / "Data_Entry_2017.csv", "Cardiomegaly|Edema", "Oedema"), "'Oedema' of 00000001_002"),
        (lambda root: (root / "Data_Entry_2017.csv").write_text(""), "is not a CSV table"),
        (lambda root: (root / "Data_Entry_2017.csv").write_bytes(b"Image Index\n\xff\xfe\n"), "is not a CSV table"),
    ],
    ids=["table", "images", "folder", "column", "finding", "empty", "bytes"],
)
def test_nih_errors_name_the_thing(made_nih, spoil, message):
    root = made_nih()
    spoil(root)
    with pytest.raises(InputError, match=message):
        create_dataset("nih", root)


def test_a_table_without_rows_is_an_error(made_nih):
    table = made_nih() / "Data_Entry_2017.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="has no rows"):
        create_dataset("nih", table.parent)


def test_nih_8k(nih_8k):
    everything = create_dataset("nih", nih_8k, "all")
    table = pd.read_csv(nih_8k / "Data_Entry_2017.csv")
    assert len(everything) == len(table) == 7992
    expected = table["Finding Labels"].str.split("|").explode().value_counts()
    assert counts(everything) == {name: int(n) for name, n in expected.items()}
    splits = {split: create_dataset("nih", nih_8k, split) for split in ("train", "val", "test")}
    lists = {split: set((nih_8k / f"{split}_list.txt").read_text().split()) for split in ("train_val", "test")}
    assert names(splits["test"]) == lists["test"]
    assert names(splits["train"]) | names(splits["val"]) == lists["train_val"]
    assert sum(map(len, splits.values())) == 7992
    patients = [set(split.records.patients) for split in splits.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 2173
    assert 0.05 < len(splits["val"]) / len(lists["train_val"]) < 0.15
    for split in splits.values():
        assert split[len(split) // 2][0].mode == "L"
        split.check()


def test_nih_sample_has_no_lists(nih_sample):
    dataset = create_dataset("nih", nih_sample)
    assert len(dataset) == 713 and len(set(dataset.records.patients)) == 488
    assert counts(dataset)["Pneumonia"] + counts(dataset)["No Finding"] == pytest.approx(713, abs=1)
    splits = [create_dataset("nih", nih_sample, split).records for split in ("train", "val")]
    assert sum(map(len, splits)) == 713
    assert set(splits[0].patients).isdisjoint(splits[1].patients)
    assert dataset[0][0].size == (320, 320)


def test_nih_boxes_cannot_be_trained_on(nih_boxes):
    assert len(create_dataset("nih", nih_boxes)) == 594
    with pytest.raises(InputError, match=r"nih-boxes: split train has no image"):
        create_dataset("nih", nih_boxes, "train")


def test_nih_study_sex_and_age(made_nih):
    root = made_nih()
    edit(root / "Data_Entry_2017.csv", ",60,F,", ",060Y,F,")
    records = create_dataset("nih", root).records
    assert set(records.sexes) == {"F"} and set(records.ages) == {60.0}
    assert records.studies[:2].tolist() == ["1_0", "1_1"]


def test_googles_published_tables_win_over_the_shipped_one(made_nih):
    root = made_nih()
    header = "Image Index,Patient ID,Fracture,Pneumothorax,Airspace opacity,Nodule or mass"
    tables = {"test": ["00000001_000.png,1,YES,NO,NO,YES"], "validation": ["00000002_001.png,2,NO,NO,YES,NO"]}
    for split, rows in tables.items():
        (root / f"four_findings_expert_labels_{split}_labels.csv").write_text("\n".join([header, *rows]))
    dataset = create_dataset("nih-google", root)
    assert dataset.filenames() == [str(root / "images/00000001_000.png")]
    assert counts(dataset) == {"Fracture": 1, "Nodule/Mass": 1}
    assert counts(create_dataset("nih-google", root, "val")) == {"Lung Opacity": 1}
    merged = create_dataset("nih-google", root, labels="chexpert", merge=True)
    assert column(merged, "Lung Lesion").tolist() == [1] and counts(merged) == {"Lung Lesion": 1, "Fracture": 1}
    with pytest.raises(InputError, match="split train has no image"):
        create_dataset("nih-google", root, "train")
    edit(root / "four_findings_expert_labels_test_labels.csv", "YES,NO", "MAYBE,NO")
    with pytest.raises(InputError, match="column 'Fracture', row 1: a label cell is"):
        create_dataset("nih-google", root)


def test_boxes_of_the_shared_images(nih_boxes):
    boxes = boxes_of(nih_boxes)
    files = {path.name for path in (nih_boxes / "images").iterdir()}
    assert set(boxes) == files and len(files) == 594
    assert sum(len(b) for found in boxes.values() for b in found.values()) == 661
    dataset = create_dataset("nih", nih_boxes, "all")
    labelled = dict(zip(dataset.filenames(basename=True), dataset.records.targets, strict=True))
    agree = [labelled[f][NIH.index(name)] for f, found in boxes.items() for name in found]
    assert np.mean(agree) > 0.9


def test_a_list_of_other_images_warns(made_nih):
    root = made_nih(lists=True)
    (root / "test_list.txt").write_text("99999999_000.png\n")
    with pytest.warns(UserWarning, match=r"test_list\.txt names no image of Data_Entry_2017\.csv, such as 99999999"):
        create_dataset("nih", root, "train")


def test_nih_patients_where_the_column_is_blank(made_nih):
    path = made_nih() / "Data_Entry_2017.csv"
    rows = pd.read_csv(path, dtype=str)
    rows["Patient ID"] = ""
    rows.to_csv(path, index=False)
    assert create_dataset("nih", path.parent, "all").records.patients[3] == "2"
    edit(path, "00000001_000.png", "image.png")
    with pytest.warns(UserWarning, match="1 of 24 images have no patient"):
        assert create_dataset("nih", path.parent, "all").records.patients[0] == "images/image.png"


def test_googles_labels_as_words(made_nih):
    header = "Image Index,Fracture,Pneumothorax,Airspace opacity,Nodule or mass"
    root = made_nih()
    for name in ("test", "validation"):
        path = root / f"four_findings_expert_labels_{name}_labels.csv"
        path.write_text(f"{header}\n0000000{1 + (name == 'test')}_000.png,yes,No,1,FALSE\n")
    assert create_dataset("nih-google", root, "test").records.targets.tolist() == [[1, 0, 1, 0]]
    edit(path, "yes", "uncertain")
    with pytest.raises(InputError, match=r"validation_labels\.csv: column 'Fracture': a finding is neither YES nor NO"):
        create_dataset("nih-google", root, "test")
