"""What each collection's tables become, counted by hand on made folders."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest

from mxa.data import create_dataset
from mxa.data.chexpert import apply_policies
from mxa.data.records import in_validation
from mxa.errors import InputError
from mxa.labels import CHEXPERT, NIH

NAN = float("nan")


def counts(dataset) -> dict[str, int]:
    """Positives of each label that has any."""
    positives = (dataset.records.targets == 1).sum(0)
    return {name: int(n) for name, n in zip(dataset.labels, positives, strict=True) if n}


def column(dataset, label: str) -> np.ndarray:
    return dataset.records.targets[:, dataset.labels.index(label)]


def names(dataset) -> set[str]:
    return set(dataset.filenames(basename=True))


# NIH


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
    assert set(val.records.patients) == {"4", "21"}
    assert set(train.records.patients) == {"1", "2", "3", "5", "6", "7"}
    assert len(train) + len(val) == 24
    with pytest.raises(InputError, match=r"no test_list.txt.*--split all"):
        create_dataset("nih", root, "test")


def test_nih_lists_give_the_split(made_nih):
    root = made_nih(lists=True)
    sizes = {"train": 12, "val": 6, "test": 6, "all": 24, None: 6}
    parts = {split: create_dataset("nih", root, split) for split in sizes}
    assert {split: len(part) for split, part in parts.items()} == sizes
    assert names(parts["test"]) == names(parts[None]) == set((root / "test_list.txt").read_text().split())
    assert names(parts["train"]) | names(parts["val"]) == set((root / "train_val_list.txt").read_text().split())


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


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_table_without_rows_is_an_error(made_nih):
    table = made_nih() / "Data_Entry_2017.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="has no rows"):
        create_dataset("nih", table.parent)


# CheXpert


def test_policies_for_uncertain_and_blank_cells():
    cells = np.array([[1, 0, -1], [-1, NAN, 0], [NAN, -1, 1]], dtype=np.float32)
    labels = ("Edema", "Mass", "Effusion")

    def targets(**kwargs) -> list:
        result = apply_policies(cells, labels, **kwargs)
        assert result.dtype == np.float32
        return [[None if np.isnan(x) else float(x) for x in row] for row in result]

    assert targets() == [[1, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert targets(uncertain="U-Zeros") == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert targets(uncertain="U-Ignore") == [[1, 0, None], [None, 0, 0], [0, None, 1]]
    assert targets(uncertain="U-Ignore", blank="ignore") == [[1, 0, None], [None, None, 0], [None, None, 1]]
    override = {"default": "U-Zeros", "Pleural Effusion": "U-Ones"}  # by name, whatever its spelling
    assert targets(uncertain=override) == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert targets(uncertain={"mass": "U-Ignore"}) == [[1, 0, 1], [1, 0, 0], [0, None, 1]]


def test_lsr_smooths_uncertain_cells_only_and_is_seeded():
    cells = np.tile(np.array([1, 0, -1, NAN], dtype=np.float32), (500, 1))
    labels = ("a", "b", "c", "d")
    targets = apply_policies(cells, labels, "LSR")
    np.testing.assert_array_equal(targets[:, [0, 1, 3]], np.tile(np.float32([1, 0, 0]), (500, 1)))
    smooth = targets[:, 2]
    assert smooth.min() >= 0.55 and smooth.max() <= 0.85
    assert smooth.min() < 0.57 and smooth.max() > 0.83 and len(np.unique(smooth)) > 400
    np.testing.assert_array_equal(targets, apply_policies(cells, labels, "LSR"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"uncertain": "U-Twos"}, "unknown policy U-Twos.*U-Ones, U-Zeros, U-Ignore, LSR"),
        ({"uncertain": {"Edema": "U-Twos"}}, "unknown policy U-Twos"),
        ({"uncertain": {"Odema": "U-Ones"}}, "unknown label 'Odema'; known: Edema"),
        ({"blank": "zero"}, "unknown policy 'zero' for blank"),
    ],
)
def test_unknown_policies_are_named(kwargs, message):
    with pytest.raises(InputError, match=message):
        apply_policies(np.zeros((1, 1)), ("Edema",), **kwargs)


def test_minus_one_is_one_thing_however_it_is_written(made_chexpert):
    spellings = ["-1", "-1.0", "-1.00", "", "1", "1.0", "0", "0.0"]
    root = made_chexpert(cells=[spellings + ["0.0"] * 6] * 2)
    for policy, value in (("U-Ones", 1.0), ("U-Zeros", 0.0), ("U-Ignore", NAN)):
        targets = create_dataset("chexpert", root, "train", uncertain=policy).records.targets
        expected = np.float32([value, value, value, 0, 1, 1, 0, 0] + [0] * 6)
        np.testing.assert_array_equal(targets, np.stack([expected] * 2))


def test_chexpert_rows_are_the_tables(made_chexpert):
    dataset = create_dataset("chexpert", made_chexpert(), "train", uncertain="U-Ignore", views="all")
    assert dataset.labels == CHEXPERT
    assert len(dataset) == 18  # six patients, three images
    turn = np.float32([0, 0, NAN, 1])  # blank, negative, uncertain, positive
    rows = [i for i in range(24) if i // 3 not in (2, 3)]
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
    sizes = {"train": 12, "val": 4, "valid": 4, "all": 16, None: 4}
    parts = {split: create_dataset("chexpert", root, split) for split in sizes}
    assert {split: len(part) for split, part in parts.items()} == sizes
    assert set(parts["val"].records.patients) == {"patient00003", "patient00004"}
    assert set(parts["train"].records.patients).isdisjoint(parts["val"].records.patients)
    assert parts[None].filenames() == parts["valid"].filenames()
    assert set(parts["valid"].records.patients) == {"patient64541", "patient64542"}
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
    cells = [["-1.0"] * 14, ["-1.0"] * 14]
    root = made_chexpert(cells=cells)
    dataset = create_dataset("chexpert", root, "train", uncertain={"Edema": "U-Ones", "default": "U-Zeros"})
    assert counts(dataset) == {"Edema": 2}
    blank = create_dataset("chexpert", made_chexpert(cells=[[""] * 14] * 2), "train", blank="ignore")
    assert np.isnan(blank.records.targets).all()


def test_views(made_chexpert):
    root = made_chexpert()
    sizes = {
        str(views): len(create_dataset("chexpert", root, "train", views=views))
        for views in ("frontal", "lateral", "all", "AP", "pa", ["AP", "lateral"])
    }
    assert sizes == {"frontal": 12, "lateral": 6, "all": 18, "AP": 6, "pa": 6, "['AP', 'lateral']": 12}
    assert set(create_dataset("chexpert", root, "train", views="lateral").records.views) == {"LATERAL"}
    with pytest.raises(InputError, match="unknown view OBLIQUE: give frontal, lateral, all"):
        create_dataset("chexpert", root, "train", views="oblique")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Pleural Other", "Pleural", "no column 'Pleural Other'"),
        ("-1.0", "maybe", "label cell is no number.*maybe"),
        ("-1.0", "2.0", "of CheXpert.* is 2 "),
        ("-1.0", "0.7", "of CheXpert.* is 0.7 "),
    ],
)
def test_bad_chexpert_tables_are_named(made_chexpert, old, new, message):
    root = made_chexpert()
    edit(root / "train.csv", old, new)
    with pytest.raises(InputError, match=rf"train\.csv.*{message}"):
        create_dataset("chexpert", root, "train")


# A table of one's own


def test_table_rows_are_the_tables(made_table):
    path = made_table()
    dataset = create_dataset("table", path, "all", views="all")
    assert dataset.labels == ("Edema", "Mass", "Effusion")
    np.testing.assert_array_equal(column(dataset, "Edema"), [i % 2 for i in range(24)])
    np.testing.assert_array_equal(column(dataset, "Mass"), [(NAN, 0, 1)[i % 3] for i in range(24)])
    np.testing.assert_array_equal(column(dataset, "Effusion"), [1 if i % 4 else NAN for i in range(24)])
    assert dataset.records.views[:3].tolist() == ["AP", "PA", "LATERAL"]
    assert dataset.filename(5) == str(path.parent / "files/5.png")
    assert dataset[5][0].size == (44, 40)
    dataset.check()
    negative = create_dataset("table", path, "all", views="all", blank="negative")
    np.testing.assert_array_equal(column(negative, "Mass"), [(0, 0, 1)[i % 3] for i in range(24)])


def test_table_split_column(made_table):
    path = made_table()
    sizes = {"train": 12, "val": 6, "test": 6, "all": 24, None: 6}
    parts = {split: create_dataset("table", path, split, views="all") for split in sizes}
    assert {split: len(part) for split, part in parts.items()} == sizes
    assert set(parts["val"].records.patients) == {"p2", "p6", "p10"}
    assert parts[None].filenames() == parts["test"].filenames()
    assert np.isnan(column(parts["val"], "Effusion")).sum() == 3  # uncertain: masked in val, 1 in train
    assert column(parts["train"], "Effusion").tolist() == [1] * 12


def test_table_splits_in_other_spellings(made_table):
    path = made_table()
    expected = create_dataset("table", path, "val", views="all").filenames()
    for word in ("valid", "Validation", " VAL"):
        text = path.read_text()
        edit(path, ",val,", f",{word},")
        assert create_dataset("table", path, "val", views="all").filenames() == expected
        path.write_text(text)
    edit(path, ",val,", ",holdout,")
    with pytest.raises(InputError, match=r"table\.csv: unknown split 'holdout': give train, val or test"):
        create_dataset("table", path, "all")


def test_table_without_val_rows_cuts_them_from_train(made_table):
    path = made_table()
    edit(path, ",val,", ",train,")
    train, val = (create_dataset("table", path, split, views="all") for split in ("train", "val"))
    assert set(val.records.patients) == {"p1"}  # p7 and p11, by the hash too, are test patients
    assert len(train) == 16 and len(val) == 2
    assert set(train.records.patients).isdisjoint({"p1", "p3", "p7", "p11"})


def test_table_without_split_column(made_table):
    path = made_table(without=("split", "view"))
    train, val = (create_dataset("table", path, split) for split in ("train", "val"))
    assert set(val.records.patients) == {"p1", "p7", "p11"}
    assert len(train) == 18 and len(val) == 6
    assert len(create_dataset("table", path)) == 24
    assert set(train.records.views) == {""}
    with pytest.raises(InputError, match=r"no rows with split test: use --split all"):
        create_dataset("table", path, "test")


def test_table_without_patients_warns(made_table):
    path = made_table(without=("patient",))
    with pytest.warns(UserWarning, match=r"table\.csv has no column 'patient'"):
        dataset = create_dataset("table", path, "all", views="all")
    assert len(set(dataset.records.patients)) == 24


def test_table_with_bom_crlf_and_pandas_index_reads_the_same(made_table):
    path = made_table()
    plain = create_dataset("table", path, "all").records
    text = path.read_text()
    index = "\n".join(f"{i - 1 if i else ''},{line}" for i, line in enumerate(text.splitlines()))
    trailing = text.replace("\n", ",\n").replace("Effusion,", "Effusion", 1)
    for variant in ("\ufeff" + text, text.replace("\n", "\r\n"), index, trailing):
        path.write_bytes(variant.encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas says that it drops the trailing cells
            other = create_dataset("table", path, "all").records
        assert other.labels == plain.labels
        assert other.paths.tolist() == plain.paths.tolist()
        np.testing.assert_array_equal(other.targets, plain.targets)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path,", "file,", "no column 'path'; it has file"),
        (",AP,train,0,,-1", ",AP,train,0,,yes", "column 'Effusion' is no label"),
        (",AP,train,0,,-1", ",AP,train,0,,2", "column 'Effusion' has values that are no label"),
        (",AP,train,0,,-1", ",AP,train,0,,-0.5", "column 'Effusion' has values that are no label"),
        (",AP,train,0,,-1", ",AP,train,0,,inf", "column 'Effusion' has values that are no label"),
    ],
)
def test_bad_tables_are_named(made_table, old, new, message):
    path = made_table()
    edit(path, old, new)
    with pytest.raises(InputError, match=rf"table\.csv.*{message}"):
        create_dataset("table", path)


def test_a_table_needs_labels_and_a_file(made_table):
    path = made_table()
    with pytest.raises(InputError, match="is a folder: --root must name the CSV"):
        create_dataset("table", path.parent)
    with pytest.raises(InputError, match="none of the labels Hernia; it has Edema, Mass, Effusion"):
        create_dataset("table", path, labels="Hernia")
    edit(path, "Edema,Mass,Effusion", "age,sex,study")
    with pytest.raises(InputError, match=r"no label columns; it has path, patient"):
        create_dataset("table", path)
    edit(path, "sex,study", "Effusion,pleural effusion")
    with pytest.raises(InputError, match="'Effusion' and 'pleural effusion' mean the same"):
        create_dataset("table", path)


# Every collection


def test_labels_are_aligned_by_name_and_masked_where_missing(made_nih):
    own = create_dataset("nih", made_nih())
    dataset = create_dataset("nih", made_nih(), labels="chexpert")
    assert dataset.labels == CHEXPERT
    np.testing.assert_array_equal(column(dataset, "Pleural Effusion"), column(own, "Effusion"))
    np.testing.assert_array_equal(column(dataset, "No Finding"), column(own, "No Finding"))
    masked = [name for name in CHEXPERT if np.isnan(column(dataset, name)).all()]
    lacking = ["Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "Pleural Other", "Fracture"]
    assert masked == [*lacking, "Support Devices"]
    assert not np.isnan(column(dataset, "Edema")).any()
    few = create_dataset("nih", made_nih(), labels="Edema, pleural effusion")
    assert few.labels == ("Edema", "pleural effusion")
    assert counts(few) == {"Edema": 5, "pleural effusion": 10}


def test_table_labels_are_picked_by_name(made_table):
    dataset = create_dataset("table", made_table(), "all", labels=["pleural effusion", "Hernia", "Edema"], views="all")
    assert dataset.labels == ("pleural effusion", "Hernia", "Edema")
    assert np.isnan(column(dataset, "Hernia")).all()
    assert np.nansum(column(dataset, "pleural effusion")) == 18
    assert column(dataset, "Edema").sum() == 12


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"source": "mnist"}, "unknown data source 'mnist': give one of phantom, nih, chexpert, table"),
        ({"split": "valid"}, "unknown split 'valid': give one of train, val, test, all"),
        ({"labels": "Nonsense"}, "unknown label Nonsense: give names of chexpert, nih, xrv"),
        ({"labels": "Edema, Nonsense"}, "unknown label Nonsense"),
        ({"labels": ["Edema", "edema"]}, "'Edema' and 'edema' mean the same"),
        ({"labels": []}, "list of labels is empty"),
        ({"labels": ["Scoliosis", "Rickets"]}, "none of the labels Scoliosis, Rickets is in the collection's: At"),
        ({"views": "lateral"}, r"nih .*has no image \(views: lateral\)"),
        ({"root": None}, "data source 'nih' needs --root"),
    ],
)
def test_unknown_names_are_named(made_nih, kwargs, message):
    with pytest.raises(InputError, match=message):
        create_dataset(**{"source": "nih", "root": made_nih(), **kwargs})


def test_the_validation_cut_is_a_tenth_of_the_patients_and_of_nothing_else():
    patients = np.array([str(i) for i in range(5000)])
    cut = in_validation(patients)
    assert 0.08 < cut.mean() < 0.12
    order = np.random.default_rng(0).permutation(5000)[:1000]
    np.testing.assert_array_equal(in_validation(patients[order]), cut[order])
    np.testing.assert_array_equal(in_validation(np.repeat(patients, 2)), np.repeat(cut, 2))
    assert in_validation(patients, percent=20)[cut].all()


def test_records_say_which_split_they_are(made_nih, made_chexpert, made_table):
    for source, root, default in (
        ("nih", made_nih(lists=True), "test"),
        ("chexpert", made_chexpert(), "valid"),
        ("table", made_table(), "test"),
        ("phantom", None, "test"),
    ):
        for split in ("train", "val", "all", None):
            assert create_dataset(source, root, split).records.split == (split or default)
    (made_nih() / "test_list.txt").unlink()
    assert create_dataset("nih", made_nih()).records.split == "all"


# Real X-rays


def test_nih_8k(nih_8k):
    import pandas as pd

    everything = create_dataset("nih", nih_8k, "all")
    table = pd.read_csv(nih_8k / "Data_Entry_2017.csv")
    assert len(everything) == len(table) == 7992
    expected = table["Finding Labels"].str.split("|").explode().value_counts()
    assert counts(everything) == {name: int(n) for name, n in expected.items()}
    parts = {split: create_dataset("nih", nih_8k, split) for split in ("train", "val", "test")}
    lists = {part: set((nih_8k / f"{part}_list.txt").read_text().split()) for part in ("train_val", "test")}
    assert names(parts["test"]) == lists["test"]
    assert names(parts["train"]) | names(parts["val"]) == lists["train_val"]
    assert sum(map(len, parts.values())) == 7992
    patients = [set(part.records.patients) for part in parts.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 2173
    assert 0.05 < len(parts["val"]) / len(lists["train_val"]) < 0.15
    for part in parts.values():
        assert part[len(part) // 2][0].mode == "L"
        part.check()


def test_nih_sample_has_no_lists(nih_sample):
    dataset = create_dataset("nih", nih_sample)
    assert len(dataset) == 713 and len(set(dataset.records.patients)) == 488
    assert counts(dataset)["Pneumonia"] + counts(dataset)["No Finding"] == pytest.approx(713, abs=1)
    parts = [create_dataset("nih", nih_sample, split).records for split in ("train", "val")]
    assert sum(map(len, parts)) == 713
    assert set(parts[0].patients).isdisjoint(parts[1].patients)
    assert dataset[0][0].size == (320, 320)


def test_nih_boxes_cannot_be_trained_on(nih_boxes):
    assert len(create_dataset("nih", nih_boxes)) == 594
    with pytest.raises(InputError, match=r"nih-boxes: split train has no image"):
        create_dataset("nih", nih_boxes, "train")
