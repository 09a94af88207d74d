"""CheXpert in its published layouts, its cells and views."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mxa.commands.prepare import PrepareConfig, prepare
from mxa.data import create_dataset
from mxa.labels import CHEXPERT
from mxa.utils.errors import InputError

from ..helpers import NAN, counts, edit


def test_minus_one_is_one_thing_however_it_is_written(made_chexpert):
    spellings = ["-1", "-1.0", "-1.00", "", "1", "1.0", "0", "0.0"]
    root = made_chexpert(cells=[spellings + ["0.0"] * 6] * 4)
    for policy, value in (("U-Ones", 1.0), ("U-Zeros", 0.0), ("U-Ignore", NAN)):
        targets = create_dataset("chexpert", root, "train", uncertain=policy).records.targets
        expected = np.float32([value, value, value, 0, 1, 1, 0, 0] + [0] * 6)
        np.testing.assert_array_equal(targets, np.stack([expected] * 3))


def test_chexpert_rows_are_the_tables(made_chexpert):
    dataset = create_dataset("chexpert", made_chexpert(), "train", uncertain="U-Ignore", views="all")
    assert dataset.labels == CHEXPERT
    assert len(dataset) == 21  # seven patients, three images
    turn = np.float32([0, 0, NAN, 1])  # blank, negative, uncertain, positive
    rows = [i for i in range(24) if i // 3 != 5]  # the sixth validates
    expected = turn[(np.array(rows)[:, None] + np.arange(14)) % 4]
    np.testing.assert_array_equal(dataset.records.targets, expected)
    assert dataset.records.patients[:4].tolist() == ["patient00001"] * 3 + ["patient00002"]
    assert dataset.records.views[:4].tolist() == ["AP", "PA", "LATERAL", "AP"]


def test_chexpert_paths_lose_their_published_prefix(made_chexpert):
    root = made_chexpert()
    dataset = create_dataset("chexpert", root, "train")
    assert dataset.filename(0) == str(root / "train/patient00001/study1/view1_frontal.jpg")
    assert dataset[0][0].size == (44, 40)
    edit(root / "train.csv", "CheXpert-v1.0-small/", "")
    assert create_dataset("chexpert", root, "train").filenames() == dataset.filenames()
    dataset.check()


def test_chexpert_splits(made_chexpert):
    root = made_chexpert()
    sizes = {"train": 14, "val": 2, "valid": 4, "all": 16, None: 4}
    splits = {split: create_dataset("chexpert", root, split) for split in sizes}
    assert {split: len(records) for split, records in splits.items()} == sizes
    assert set(splits["val"].records.patients) == {"patient00006"}
    assert set(splits["train"].records.patients).isdisjoint(splits["val"].records.patients)
    assert splits[None].filenames() == splits["valid"].filenames()
    assert set(splits["valid"].records.patients) == {"patient64541", "patient64542"}
    with pytest.raises(InputError, match=r"no table .*test\.csv"):
        create_dataset("chexpert", root, "test")
    shutil.copy(root / "valid.csv", root / "test.csv")
    assert create_dataset("chexpert", root).filenames() == create_dataset("chexpert", root, "test").filenames()


@pytest.mark.parametrize("split", ["val", "valid", "test", "all", None])
@pytest.mark.parametrize("policy", ["U-Ones", "U-Zeros", "LSR"])
def test_uncertain_cells_are_masked_outside_training(made_chexpert, split, policy):
    root = made_chexpert()
    shutil.copy(root / "valid.csv", root / "test.csv")
    targets = create_dataset("chexpert", root, split, uncertain=policy).records.targets
    assert np.isin(targets[~np.isnan(targets)], (0, 1)).all()
    assert np.isnan(targets).mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(
        targets, create_dataset("chexpert", root, split, uncertain="U-Ignore").records.targets
    )


def test_chexpert_policies_by_label_reach_the_dataset(made_chexpert):
    cells = [["-1.0"] * 14] * 3
    root = made_chexpert(cells=cells)
    dataset = create_dataset("chexpert", root, "train", uncertain={"Edema": "U-Ones", "default": "U-Zeros"})
    assert counts(dataset) == {"Edema": 2}
    blank = create_dataset("chexpert", made_chexpert(cells=[[""] * 14] * 3), "train", blank="ignore")
    assert np.isnan(blank.records.targets).all()


def test_views(made_chexpert):
    root = made_chexpert()
    sizes = {
        str(views): len(create_dataset("chexpert", root, "train", views=views))
        for views in ("frontal", "lateral", "all", "AP", "pa", ["AP", "lateral"])
    }
    assert sizes == {"frontal": 14, "lateral": 7, "all": 21, "AP": 7, "pa": 7, "['AP', 'lateral']": 14}
    assert set(create_dataset("chexpert", root, "train", views="lateral").records.views) == {"LATERAL"}
    with pytest.raises(InputError, match="unknown view OBLIQUE: give frontal, lateral, all"):
        create_dataset("chexpert", root, "train", views="oblique")


NO_LABEL = r"a label cell is 1, 0, -1 or blank \(also yes or no\)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Pleural Other", "Pleural", "no column 'Pleural Other'"),
        (
            "-1.0",
            "maybe",
            r"column 'No Finding', row 3: a label cell is 1, 0, -1 or blank \(also yes or no\); found 'maybe'$",
        ),
        (
            "-1.0",
            "2.0",
            r"column 'No Finding', row 3: a label cell is 1, 0, -1 or blank \(also yes or no\); found '2.0'$",
        ),
        (
            "-1.0",
            "0.7",
            r"column 'No Finding', row 3: a label cell is 1, 0, -1 or blank \(also yes or no\); found '0.7'$",
        ),
    ],
)
def test_bad_chexpert_tables_are_named(made_chexpert, old, new, message):
    root = made_chexpert()
    edit(root / "train.csv", old, new)
    with pytest.raises(InputError, match=rf"train\.csv.*{message}"):
        create_dataset("chexpert", root, "train")


def test_the_test_table_lacks_columns(made_chexpert):
    root = made_chexpert()
    with (root / "valid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = ["Path", *[name for name in CHEXPERT if name != "Fracture"]]
    with (root / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    dataset = create_dataset("chexpert", root, labels="chexpert")
    assert dataset.records.split == "test"
    assert np.isnan(dataset.records.targets[:, CHEXPERT.index("Fracture")]).all()
    assert len(dataset) == 4  # laterals are told by their name
    assert set(dataset.records.views) == {""}
    edit(root / "test.csv", "Edema", "Oedema")
    (root / "test.csv").rename(root / "test_labels.csv")
    assert np.isnan(create_dataset("chexpert", root, labels="chexpert").records.targets).all(0).sum() == 2


def test_chexpert_study_sex_and_age(made_chexpert):
    root = made_chexpert()
    edit(root / "train.csv", "Male,60", "Female,0")
    records = create_dataset("chexpert", root, "all", views="all").records
    assert records.studies[:3].tolist() == [f"patient00001/study{i}" for i in (1, 2, 3)]
    assert set(records.sexes) == {"F"} and np.isnan(records.ages).all()  # 0 years stand for unknown


PLUS_HEADER = (
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order"),
    *("report", "age", "sex", "race", "split"),
)


@pytest.fixture
def plus(tmp_path) -> Path:
    """CheXpert Plus: its table, CheXbert's labels as lines of JSON, PNG images."""
    rows, lines = [], []
    for i in range(8):
        split = "valid" if i == 7 else "train"
        kind = ("frontal", "lateral")[i % 2]
        inside = f"{split}/patient{i // 2:05d}/study1/view{i % 2 + 1}_{kind}"
        rows.append(
            (
                f"{inside}.jpg",
                f"{inside}.dcm",
                kind.title(),
                "AP" if i % 2 == 0 else "",
                f"patient{i // 2:05d}",
                1,
                "a report, with a comma",
                61.0,
                "Female",
                "Other",
                split,
            )
        )
        cells = {name: (None, 0.0, -1.0, 1.0)[(i + j) % 4] for j, name in enumerate(sorted(CHEXPERT))}
        lines.append(json.dumps({"path_to_image": f"{inside}.jpg", **cells}))
        path = tmp_path / "PNG" / f"{inside}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 20), 99, np.uint8)).save(path)
    with (tmp_path / "df_chexpert_plus_240401.csv").open("w", newline="") as file:
        csv.writer(file).writerows([PLUS_HEADER, *rows])
    (tmp_path / "chexbert_labels").mkdir()
    (tmp_path / "chexbert_labels" / "impression_fixed.json").write_text("\n".join(reversed(lines)))
    return tmp_path


def test_chexpert_plus(plus):
    dataset = create_dataset("chexpert", plus, "all", uncertain="U-Ignore", views="all")
    assert dataset.labels == CHEXPERT and len(dataset) == 7
    assert dataset.filename(0) == str(plus / "PNG/train/patient00000/study1/view1_frontal.png")
    assert dataset[0][0].size == (20, 30)
    turn = np.float32([0, 0, np.nan, 1])
    by_name = np.stack([dataset.records.targets[:, CHEXPERT.index(name)] for name in sorted(CHEXPERT)], axis=1)
    np.testing.assert_array_equal(by_name, turn[(np.arange(7)[:, None] + np.arange(14)) % 4])
    assert dataset.records.views[:2].tolist() == ["AP", "LATERAL"]
    assert set(dataset.records.sexes) == {"F"} and set(dataset.records.ages) == {61.0}
    assert len(create_dataset("chexpert", plus, "valid", views="all")) == 1
    (plus / "chexbert_labels" / "impression_fixed.json").write_text("{}\n")
    with pytest.raises(InputError, match=r"impression_fixed\.json: CheXpert Plus' labels .* do not read"):
        create_dataset("chexpert", plus, "train")


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_patient_of_another_table_is_found_from_either(made_chexpert, split):
    root = made_chexpert()
    edit(root / "valid.csv", "patient64541", "patient00002")
    with pytest.raises(InputError, match=r"\.csv has patients of .*\.csv, such as the one of .*patient00002"):
        create_dataset("chexpert", root, split)


def test_a_folder_with_the_official_validation_only(made_chexpert, tmp_path):
    root = made_chexpert()
    (root / "train.csv").unlink()
    assert len(create_dataset("chexpert", root, views="all")) == 6
    assert (
        prepare(PrepareConfig(tmp_path / "out", data="chexpert", root=str(root), views="all", workers=1))["images"] == 6
    )


@pytest.mark.parametrize(
    "start",
    [
        "CheXpert-v1.0-small/",
        "D:\\data\\CheXpert-v1.0-small\\",
        "/home/patients/x/CheXpert-v1.0/",
        "chexpert/",
        "\\\\a\\b\\",
    ],
)
@pytest.mark.parametrize("mark", ["/", "\\"])
def test_paths_of_other_computers(made_chexpert, start, mark):
    root = made_chexpert()
    expected = create_dataset("chexpert", root, "all").records
    for name in ("train.csv", "valid.csv"):
        lines = (root / name).read_text().splitlines()
        lines = [line.replace("CheXpert-v1.0-small/", start) for line in lines]
        head = [line.partition(",") for line in lines]
        rows = [path.replace("/", mark) + comma + rest for path, comma, rest in head[1:]]
        (root / name).write_text("\n".join([lines[0], *rows]) + "\n")
    found = create_dataset("chexpert", root, "all")
    assert found.records.paths.tolist() == expected.paths.tolist()
    assert found.records.patients.tolist() == expected.patients.tolist()
    found[0]
    edit(root / "valid.csv", "patient64541", "patient00002")
    with pytest.raises(InputError, match=r"\.csv has patients of"):
        create_dataset("chexpert", root, "all")


def test_images_that_are_nowhere_are_warned_about(made_chexpert):
    root = made_chexpert()
    shutil.move(root / "train", root / "pictures")
    assert create_dataset("chexpert", root, "train")[0]  # a folder of patients, whatever its name
    shutil.rmtree(root / "pictures")
    with pytest.warns(
        UserWarning, match=rf"none of the images, such as train/patient.*, is in {root}.*: --root must name"
    ):
        create_dataset("chexpert", root, "train")


def test_a_path_that_is_too_long_for_a_file(made_chexpert):
    """As of a cell without its closing quote: the system refuses to look for it, and the other rows are read."""
    root = made_chexpert()
    edit(root / "train.csv", "patient00001", "patient00001" + "A" * 5000)
    assert any("AAAA" in path for path in create_dataset("chexpert", root, "train").records.paths)


def test_images_of_another_copy_are_not_taken(made_chexpert, tmp_path):
    made = made_chexpert()
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        shutil.copytree(made, tmp_path / "both" / name)
    shutil.rmtree(tmp_path / "both" / "CheXpert-v1.0" / "train")
    with pytest.warns(UserWarning, match="none of the images"):
        create_dataset("chexpert", tmp_path / "both" / "CheXpert-v1.0", "train")
