"""A table of one's own: CSV or Parquet, any column names."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from mxa.data import create_dataset
from mxa.errors import InputError

from .helpers import NAN, column, edit


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
    with pytest.raises(InputError, match=r"no test part: use --split all"):
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
        ("path,", "scan,", "no column 'path' \\(or --columns path=...\\); it has scan"),
        (",AP,train,0,,-1", ",AP,train,0,,yes", "column 'Effusion' is no label"),
        (",AP,train,0,,-1", ",AP,train,0,,2", "column 'Effusion' is no label"),
        (",AP,train,0,,-1", ",AP,train,0,,-0.5", "column 'Effusion' is no label"),
        (",AP,train,0,,-1", ",AP,train,0,,inf", "column 'Effusion' is no label"),
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
    for name in ("paths", "patients", "views", "parts"):
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
