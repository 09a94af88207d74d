"""A table of one's own: CSV or Parquet, any column names."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from mxa.data import create_dataset
from mxa.data.create import read_collection
from mxa.utils.errors import InputError

from ..helpers import NAN, column, edit


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
    splits = {split: create_dataset("table", path, split, views="all") for split in sizes}
    assert {split: len(records) for split, records in splits.items()} == sizes
    assert set(splits["val"].records.patients) == {"p2", "p6", "p10"}
    assert splits[None].filenames() == splits["test"].filenames()
    assert np.isnan(column(splits["val"], "Effusion")).sum() == 3  # uncertain: masked in val, 1 in train
    assert column(splits["train"], "Effusion").tolist() == [1] * 12


def test_table_splits_in_other_spellings(made_table):
    path = made_table()
    expected = create_dataset("table", path, "val", views="all").filenames()
    for word in ("valid", "Validation", " VAL", "dev", "Tuning"):
        text = path.read_text()
        edit(path, ",val,", f",{word},")
        assert create_dataset("table", path, "val", views="all").filenames() == expected
        path.write_text(text)
    test = create_dataset("table", path, "test", views="all").filenames()
    for word in ("Testing", "holdout", "Hold-out"):
        text = path.read_text()
        edit(path, ",test,", f",{word},")
        assert create_dataset("table", path, "test", views="all").filenames() == test
        path.write_text(text)
    edit(path, ",val,", ",third,")
    with pytest.raises(
        InputError, match=r"table\.csv: column 'split', row 5: a split is .* or test; found 'third'; wr"
    ):
        create_dataset("table", path, "all")


def test_table_without_val_rows_cuts_them_from_train(made_table):
    path = made_table()
    edit(path, ",val,", ",train,")
    train, val = (create_dataset("table", path, split, views="all") for split in ("train", "val"))
    assert set(val.records.patients) == {"p0", "p2"}
    assert len(train) == 14 and len(val) == 4
    assert set(train.records.patients).isdisjoint({"p0", "p2", "p3", "p7", "p11"})


def test_table_without_split_column(made_table):
    path = made_table(without=("split", "view"))
    train, val = (create_dataset("table", path, split) for split in ("train", "val"))
    assert set(val.records.patients) == {"p0", "p7"}
    assert len(train) == 20 and len(val) == 4
    assert len(create_dataset("table", path)) == 24
    assert set(train.records.views) == {""}
    with pytest.raises(InputError, match=r"no test split: train with --test-fraction 0\.2 to cut one"):
        create_dataset("table", path, "test")


def test_table_without_patients_warns(made_table):
    path = made_table(without=("patient",))
    with pytest.warns(
        UserWarning, match=r"table\.csv: 24 of 24 images have no patient, and each counts as a patient of its own"
    ):
        dataset = create_dataset("table", path, "all", views="all")
    assert len(set(dataset.records.patients)) == 24


def test_table_with_bom_crlf_and_pandas_index_reads_the_same(made_table):
    path = made_table()
    plain = create_dataset("table", path, "all").records
    text = path.read_text()
    index = "\n".join(f"{i - 1 if i else ''},{line}" for i, line in enumerate(text.splitlines()))
    trailing = text.replace("\n", ",,\n")  # as Excel writes it
    empty = text.replace("\n", ",\n\n").replace("files/3", ",,,,,,\nfiles/3", 1)
    for variant in ("\ufeff" + text, text.replace("\n", "\r\n"), index, trailing, empty, text.replace("\n", "\n\n")):
        path.write_bytes(variant.encode())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = create_dataset("table", path, "all").records
        assert other.labels == plain.labels
        assert other.paths.tolist() == plain.paths.tolist()
        np.testing.assert_array_equal(other.targets, plain.targets)


NO_LABEL = r"a label cell is 1, 0, -1 or blank \(also yes or no\)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path,", "scan,", "no column 'path' \\(or --columns path=...\\); it has scan"),
        (
            ",AP,train,0,,-1",
            ",AP,train,0,,perhaps",
            rf"column 'Effusion', row 1: {NO_LABEL}; found 'perhaps'; if the column is not a label, name",
        ),
        (
            ",AP,train,0,,-1",
            ",AP,train,0,,2",
            rf"column 'Effusion', row 1: {NO_LABEL}; found '2'; if the column is not a label, name",
        ),
        (
            ",AP,train,0,,-1",
            ",AP,train,0,,-0.5",
            rf"column 'Effusion', row 1: {NO_LABEL}; found '-0.5'; if the column is not a label, name",
        ),
        (
            ",AP,train,0,,-1",
            ",AP,train,0,,inf",
            rf"column 'Effusion', row 1: {NO_LABEL}; found 'inf'; if the column is not a label, name",
        ),
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
    with pytest.raises(InputError, match="none of the labels Hernia; the collection has Edema, Mass, Effusion"):
        create_dataset("table", path, labels="Hernia")
    edit(path, "Edema,Mass,Effusion", "age,sex,study")
    with pytest.raises(InputError, match=r"no label columns; it has path, patient"):
        create_dataset("table", path)
    edit(path, "sex,study", "Effusion,pleural effusion")
    with pytest.raises(InputError, match="'Effusion' and 'pleural effusion' mean the same"):
        create_dataset("table", path)


def test_table_labels_are_picked_by_name(made_table):
    dataset = create_dataset("table", made_table(), "all", labels=["pleural effusion", "Hernia", "Edema"], views="all")
    assert dataset.labels == ("pleural effusion", "Hernia", "Edema")
    assert np.isnan(column(dataset, "Hernia")).all()
    assert np.nansum(column(dataset, "pleural effusion")) == 18
    assert column(dataset, "Edema").sum() == 12


# Names of columns, and other formats

OTHER_NAMES = {"path": "File Name", "patient": "PatientID", "view": "View-Position", "split": "subset"}


def renamed(path, names: dict[str, str]):
    head, _, rest = path.read_text().partition("\n")
    path.write_text(",".join(names.get(name, name) for name in head.split(",")) + "\n" + rest)
    return path


def same(one, other) -> None:
    assert one.labels == other.labels
    for name in ("paths", "patients", "views", "splits"):
        assert getattr(one.records, name).tolist() == getattr(other.records, name).tolist()
    np.testing.assert_array_equal(one.records.targets, other.records.targets)


def test_usual_names_of_columns_are_known(made_table):
    plain = create_dataset("table", made_table(), "train")
    same(create_dataset("table", renamed(made_table(), OTHER_NAMES), "train"), plain)


def test_other_names_are_told(made_table):
    plain = create_dataset("table", made_table(), "train")
    path = renamed(made_table(), {"path": "scan", "patient": "MRN", "view": "kind", "split": "use"})
    columns = "path=scan, patient=MRN, view=kind, split=use"
    same(create_dataset("table", path, "train", columns=columns), plain)
    same(
        create_dataset("table", path, "train", columns=dict(path="scan", patient="MRN", view="kind", split="use")),
        plain,
    )


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        ({}, "path", "give NAME=COLUMN pairs, NAME one of path, patient"),
        ({}, "label=Edema", "give NAME=COLUMN pairs"),
        ({}, "patient=MRN", r"table\.csv has no column 'MRN'; it has path"),
        ({"view": "subject_id"}, None, r"'patient' and 'subject_id' could both be the patient: say --columns patient="),
    ],
)
def test_column_errors(made_table, names, columns, message):
    with pytest.raises(InputError, match=message):
        create_dataset("table", renamed(made_table(), names), columns=columns)


def test_columns_are_for_tables(made_nih):
    with pytest.raises(InputError, match="--columns is for --data table"):
        create_dataset("nih", made_nih(), columns="path=x")


def test_study_sex_and_age(made_table):
    path = made_table()
    head, *rows = path.read_text().splitlines()
    rows = [f"{row},s{i // 4},{'female' if i % 2 else 'M'},{50 + i}Y" for i, row in enumerate(rows)]
    path.write_text("\n".join([f"{head},StudyInstanceUID,Gender,Age", *rows]))
    records = create_dataset("table", path, "all", views="all").records
    assert records.studies[:5].tolist() == ["s0"] * 4 + ["s1"]
    assert records.sexes[:2].tolist() == ["M", "F"] and records.ages[3] == 53


def test_parquet_reads_as_its_csv_does(made_table):
    import pandas as pd

    path = made_table()
    plain = create_dataset("table", path, "train")
    parquet = path.with_suffix(".parquet")
    pd.read_csv(path).to_parquet(parquet)
    same(create_dataset("table", parquet, "train"), plain)
    parquet.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"table\.parquet is not a Parquet table"):
        create_dataset("table", parquet)


def test_numbers_as_patients_stay_themselves(made_table):
    import pandas as pd

    path = made_table()
    for i in reversed(range(12)):
        edit(path, f",p{i},", f",00{i},")
    assert create_dataset("table", path, "all").records.patients[0] == "000"
    table = pd.read_csv(path, dtype={"patient": int})
    table.to_parquet(path.with_suffix(".pq"))
    assert create_dataset("table", path.with_suffix(".pq"), "all").records.patients[-1] == "11"


# What would be taken for something else


def write(folder, text: str):
    path = folder / "own.csv"
    path.write_text(text)
    return path


def test_errors_quote_no_cell(tmp_path):
    path = write(tmp_path, "path,patient,name,split,Edema\n1.png,7,Smith^John,train,1\n")
    with pytest.raises(InputError, match=r"column 'name', row 1") as error:
        create_dataset("table", path, "all")
    assert "Smith" not in str(error.value)
    path = write(tmp_path, "path,patient,split,Edema\n1.png,7,Smith^John,1\n")
    with pytest.raises(InputError, match=r"column 'split', row 1") as error:
        create_dataset("table", path, "all")
    assert "Smith" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,Edema,Edema", "more than one column 'Edema': rename or remove one"),
        ("path;patient;Edema", "line 2: 1 cells where the header has 3"),
        ("path\tpatient\tEdema", "line 2: 1 cells where the header has 3"),
    ],
)
def test_headers_that_pandas_would_take(tmp_path, header, message):
    with pytest.raises(InputError, match=message):
        create_dataset("table", write(tmp_path, f"{header}\n1.png,1,0\n"), "all")


def test_one_file_has_one_name(tmp_path):
    for twin in ("./a/1.png", "a//1.png", "a/b/../1.png", str(tmp_path / "a" / "1.png"), " a/1.png"):
        path = write(tmp_path, f"path,patient,Edema\na/1.png,1,1\n{twin},2,0\n")
        with pytest.raises(InputError, match=r"1 image\(s\) have more than one row, such as a/1\.png"):
            create_dataset("table", path, "all")
    path = write(tmp_path, "path,patient,Edema\n../1.png,1,1\n/elsewhere/2.png,2,0\n")
    assert create_dataset("table", path, "all").filenames() == [str(tmp_path / "../1.png"), "/elsewhere/2.png"]
    with pytest.raises(InputError, match=r"row 2 names no image \('path' is blank\)"):
        create_dataset("table", write(tmp_path, "path,patient,Edema\na.png,1,1\n ,2,0\n"), "all")


def test_patients_are_who_they_are(tmp_path):
    path = write(tmp_path, "path,patient,Edema\n1.png,7,1\n2.png, 7,0\n3.png,,1\n4.png,  ,0\n")
    with pytest.warns(UserWarning, match=r"2 of 4 images have no patient, and each counts as a patient of its own"):
        dataset = create_dataset("table", path, "all")
    assert dataset.records.patients.tolist() == ["7", "7", "3.png", "4.png"]


def test_whole_floats_of_parquet_are_integers(tmp_path):
    import pandas as pd

    table = pd.DataFrame(
        {"path": ["1.png", "2.png"], "patient": [7.0, NAN], "Edema": [1.0, NAN], "Mass": [True, False]}
    )
    table.to_parquet(tmp_path / "own.parquet")
    with pytest.warns(UserWarning, match="1 of 2 images have no patient"):
        dataset = create_dataset("table", tmp_path / "own.parquet", "all")
    assert dataset.records.patients.tolist() == ["7", "2.png"]
    np.testing.assert_array_equal(dataset.records.targets, [[1, 1], [NAN, 0]])


def test_cells_that_mean_blank_true_and_false(tmp_path):
    words = ("", " ", "null", "N/A", "None", "nan", "<NA>", "True", "false", "-1.00", " 1 ")
    rows = "".join(f"{i}.png,{i},{word}\n" for i, word in enumerate(words))
    dataset = create_dataset("table", write(tmp_path, "path,patient,Edema\n" + rows), "train", views="all")
    expected = {f"{i}.png": v for i, v in enumerate([NAN] * 7 + [1, 0, 1, 1])}
    found = {name: target for name, target in zip(dataset.filenames(True), column(dataset, "Edema"), strict=True)}
    np.testing.assert_array_equal([expected[name] for name in found], list(found.values()))


def test_merge_finds_its_parts_in_a_table(made_table, caplog):
    path = made_table()
    for options in ({"labels": "Lung Lesion"}, {"labels": "Edema,Lung Lesion"}):
        merged = create_dataset("table", path, "all", views="all", merge=True, **options)
        np.testing.assert_array_equal(column(merged, "Lung Lesion"), [(NAN, NAN, 1)[i % 3] for i in range(24)])
    negative = create_dataset("table", path, "all", views="all", merge=True, labels="Lung Lesion", blank="negative")
    assert set(column(negative, "Lung Lesion")[np.arange(24) % 3 == 2]) == {1}
    assert np.isnan(column(negative, "Lung Lesion")).sum() == 16  # Mass alone never says no
    with pytest.raises(InputError, match="--merge needs --labels"):
        create_dataset("table", path, "all", merge=True)


def test_a_view_is_seen_under_chexperts_name_too(tmp_path):
    path = write(tmp_path, "path,patient,Frontal/Lateral,Edema\n1.png,1,Frontal,1\n2.png,2,Lateral,0\n")
    assert create_dataset("table", path, "all").filenames(basename=True) == ["1.png"]


def test_labels_that_are_not_there_are_said(made_table, caplog):
    with caplog.at_level("INFO", logger="mxa"):
        create_dataset("table", made_table(), "all", labels=["Edema", "Edeema", "pleural-effusion"])
    assert "has no Edeema: masked" in caplog.text


def test_a_fold_that_is_no_split(tmp_path):
    path = write(tmp_path, "path,patient,fold,Edema\n1.png,1,0,1\n2.png,2,1,0\n")
    with pytest.raises(
        InputError, match=r"'fold', row 1: a split is .*--columns split=NAME, or rename this one if it is"
    ):
        read_collection("table", path)


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("hold_out", "test"),
        ("Hold-Out set", "test"),
        ("training set", "train"),
        ("test_set", "test"),
        ("Testset", "test"),
    ],
)
def test_spellings_of_splits(tmp_path, word, split):
    path = write(tmp_path, f"path,patient,split,Edema\n1.png,1,{word},1\n2.png,2,validation set,0\n")
    assert read_collection("table", path).splits.tolist() == [split, "val"]
