"""The files that tables come in: rows that fit their header, delimiters, encodings, archives, Parquet, Excel."""

from __future__ import annotations

import gzip
import json

import pandas as pd
import pytest

from mxa.data import create_dataset
from mxa.data.table_files import read_header, read_text_columns
from mxa.data.tables import numbers, read_table_file
from mxa.evaluation.predictions import read_metadata, read_predictions
from mxa.utils.errors import InputError

from .helpers import edit

ROWS = [["path", "patient", "Edema"], ["1.png", "a", "1"], ["2.png", "b", ""], ["3.png", "", "0"]]


def write(folder, text: str | bytes, name: str = "t.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cells(path) -> list[list[str]]:
    header = read_header(path)
    return [header, *read_text_columns(path, None).astype(str).to_numpy().tolist()]


def text(delimiter: str = ",", rows=ROWS) -> str:
    return "".join(delimiter.join(row) + "\n" for row in rows)


# Rows that do not fit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,4,5\n", r"line 3: 3 cells where the header has 2 \(a comma too many, or one in a cell without"),
        ("a,b\n1,2\n3\n", r"line 3: 1 cells where the header has 2 \(cut short\)"),
        ("a,b\n1,2\n3,4,5\n6\n", "lines 3, 4: 3 cells where the header has 2"),
        ('a,b\n1,"2\n3"\n4,5,6\n', "line 4: 3 cells"),
        ("a,b\n1,2,\n3,4,\n", "every row has a comma at its end that the header lacks"),
        ("a,b,,\n1,2,,\n3,4,5,\n", "line 3: 4 cells where the header has 2"),
        ("a,b,,\n1,2,\n3,4,\n", "lines 2, 3: 3 cells where the header has 2"),
        ("a,b,\n1,2,\n3,\n4,5,\n", r"line 3: 2 cells where the other rows have 3 \(a cell is missing, or the comma at"),
        ("a;b;\n1;2;\n3;4\n", r"line 3: 2 cells where the other rows have 3 \(.*, or the semicolon at the end\)"),
        ("a,b,\n1,2\n\n3,4\n5,,\n", r"line 5: 3 cells where the other rows have 2 \(a comma too many\)"),
        ("a;b\n1;2\n3;4;5\n", r"line 3: 3 cells where the header has 2 \(a semicolon too many"),
        ("sep=;\na;b\n1;2\n3\n", "line 4: 1 cells"),
        ("a,b\n\n1,2\n\n3\n", "line 5: 1 cells"),
        ('a,b\n1,"2\n3,4\n', "line 2: a quote is not closed"),
        ('a,b\n1,2\n"3"4,5\n', "line 3: a quote is not closed, or stands in the middle of a cell"),
        ("a,b\n1,2\n3,\0\n", "line 3 holds a NUL byte"),
        ("a,b\n1," + "x" * (1 << 21), "line 2 has over a million characters"),
        ("", "it has no header"),
    ],
)
def test_rows_that_do_not_fit_are_named_by_line(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message):
        cells(path)


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize(("old", "new"), [("Frontal,AP,", "Frontal,AP,,"), ("Frontal,AP,", "Frontal,")])
def test_a_shifted_chexpert_row_is_refused(made_chexpert, split, old, new):
    root = made_chexpert()
    path = root / f"{split}.csv"
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace(old, new)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=rf"{split}\.csv: line 5: {19 + len(new.split(',')) - 3} cells .* has 19"):
        create_dataset("chexpert", root, split)
    path.write_text("\n".join(lines[:4]) + "\n" + lines[5][:60])  # cut in a row
    with pytest.raises(InputError, match=rf"{split}\.csv: line 5: \d cells where the header has 19 \(cut short\)"):
        create_dataset("chexpert", root, split)


def test_ragged_rows_of_nih_tables_and_scores(made_nih, made_table, tmp_path):
    root = made_nih()
    edit(root / "Data_Entry_2017.csv", "Cardiomegaly|Edema,2", "Cardiomegaly,Edema,2")
    with pytest.raises(InputError, match=r"Data_Entry_2017\.csv: lines? \d+.*: 12 cells where the header has 11"):
        create_dataset("nih", root)
    path = made_table()
    edit(path, "files/3.png,p1,", "files/3.png,Smith, p1,")
    with pytest.raises(InputError, match=r"table\.csv: line 5: 8 cells where the header has 7") as error:
        create_dataset("table", path)
    assert "Smith" not in str(error.value)
    scores = write(tmp_path, "path,logit:Edema,target:Edema\n1.png,0.5,1\n2.png,0.5\n")
    with pytest.raises(InputError, match=r"t\.csv: line 3: 2 cells where the header has 3"):
        read_predictions(scores)


FULL = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
LOST = r": line 4: \d+ cells where the other rows have \d+ \(a cell is missing, or the comma at the end\)"


def lose(path, cell: int) -> None:
    """Takes a cell from the third row of a table that ends every line in a comma."""
    lines = path.read_text().splitlines()
    row = lines[3].split(",")
    lines[3] = ",".join([*row[:cell], *row[cell + 1 :]])
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("end", ["", ","])
def test_a_header_that_ends_in_a_comma(made_nih, end):
    path = made_nih() / "Data_Entry_2017.csv"  # Kaggle's full table has it in every row
    expected = create_dataset("nih", path.parent).records
    _, *rows = path.read_text().splitlines()
    path.write_text(FULL + "".join(f"{row}{end}\n" for row in rows))
    found = create_dataset("nih", path.parent).records
    assert found.patients.tolist() == expected.patients.tolist() and found.views.tolist() == expected.views.tolist()
    assert (found.targets == expected.targets).all()
    if end:
        lose(path, 2)
        with pytest.raises(InputError, match=f"Data_Entry_2017.csv{LOST}"):
            create_dataset("nih", path.parent)


@pytest.mark.parametrize("name", ["chexpert", "table", "vindr", "scores"])
def test_a_row_that_lost_a_cell_but_not_its_last_comma(made_chexpert, made_table, tmp_path, name):
    if name == "chexpert":
        path = made_chexpert() / "train.csv"
        cell, read = 5, lambda: create_dataset("chexpert", path.parent, "train", views="all").records.targets
    elif name == "table":
        path = made_table()
        cell, read = 2, lambda: create_dataset("table", path, "all").records.targets
    elif name == "vindr":
        rows = [["image_id", "rad_id", "Cardiomegaly", "Edema", ""], *([c, "R1", "1", "0", ""] for c in "abc")]
        path = write(tmp_path, text(rows=[row[:4] for row in rows]), "image_labels_train.csv")
        cell, read = 2, lambda: create_dataset("vindr", tmp_path, "all").records.targets
    else:
        path = write(tmp_path, "path,logit:Edema,target:Edema\n1.png,0.5,1\n2.png,1,0\n3.png,1,1\n")
        cell, read = 1, lambda: read_predictions(path).logits
    expected = read()
    path.write_text(path.read_text().replace("\n", ",\n"))
    assert str(read().tolist()) == str(expected.tolist())
    lose(path, cell)
    with pytest.raises(InputError, match=LOST):
        read()


def test_what_excel_leaves_is_read(tmp_path):
    for content in (
        text().replace("\n", ",,\n"),
        text().replace("\n", ",,\n", 1),  # as in NIH's list of boxes
        text() + "\n  \n,,\n",
        text() + ",\n",
        text().replace("\n", ",,\n") + ",,\n\n,,,,\n",
        text().replace("\n", "\r\n\r\n"),
        "\n" + text(),
        "sep=,\n" + text(),
    ):
        assert cells(write(tmp_path, content)) == ROWS


def test_a_blank_cell_at_the_end_of_a_cut_file_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="ends in a blank cell without a line break: was the file cut"):
        cells(write(tmp_path, "a,b\n1,2\n3,"))


# Delimiters and encodings


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "")])
def test_the_delimiter_is_found_and_said(tmp_path, caplog, delimiter, name):
    with caplog.at_level("INFO", logger="mxa"):
        assert cells(write(tmp_path, text(delimiter))) == ROWS
    assert (f"separated by {name}" in caplog.text) == bool(name)


def test_a_delimiter_in_cells_is_not_taken(tmp_path):
    rows = [["path", "findings, all", "note"], ["1.png", "Edema|Mass|Hernia", "a,b;c"], ["2.png", "Mass", "x,y;z"]]
    assert cells(write(tmp_path, text(";", [[*row[:2], f'"{row[2]}"'] for row in rows]))) == rows
    assert cells(write(tmp_path, text(",", [[f'"{cell}"' for cell in row] for row in rows]))) == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_encodings_by_their_mark_and_archives_by_their_content(tmp_path, encoding, pack):
    rows = [["path", "Œdème"], ["größer.png", "1"]]
    for name in ("t.csv", "t.csv.gz"):
        assert cells(write(tmp_path, pack(text(rows=rows).encode(encoding)), name)) == rows


def test_other_encodings_are_named_with_the_line(tmp_path):
    path = write(tmp_path, "path,note\n1.png,a\n2.png,größer\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.csv is not a CSV table: line 3 is not UTF-8: save as UTF-8"):
        cells(path)
    with pytest.raises(InputError, match=r"it is not whole: save as UTF-8"):
        cells(write(tmp_path, text().encode("utf-16")[:-1]))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_encodings_without_a_mark(tmp_path, encoding):
    for pack in (bytes, gzip.compress):
        with pytest.raises(InputError, match=r"t\.csv is not a CSV table: it is UTF-16 without .*: save as UTF-8"):
            cells(write(tmp_path, pack(text().encode(encoding))))


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-9], lambda b: b[:-8] + bytes(8), lambda b: b[:20] + b"\xff" * 20 + b[40:]]
)
def test_damaged_archives(tmp_path, spoil):
    path = write(tmp_path, spoil(gzip.compress(text(rows=[ROWS[0], *ROWS[1:] * 99]).encode())), "t.csv.gz")
    with pytest.raises(InputError, match=r"t\.csv\.gz is not a CSV table: the gzip archive is damaged or cut short"):
        cells(path)


def test_decimal_commas(tmp_path):
    path = write(tmp_path, "path;patient;Edema\n1.png;a;1,0\n2.png;b;-1,0\n3.png;c;0,00\n")
    assert create_dataset("table", path, "all", uncertain="U-Ignore").records.targets[:, 0].tolist()[::2] == [1, 0]
    assert numbers(pd.Series(["1,5", " -2 ", "x", ""])).tolist()[:2] == [1.5, -2]
    scores = write(tmp_path, "path;logit:Edema;target:Edema\n1.png;0,25;1\n")
    assert read_predictions(scores).logits.tolist() == [[0.25]]


# Parquet and Excel


@pytest.mark.parametrize("index", [["patient"], ["path"], ["Edema"], ["patient", "path"], ["path", "patient", "Edema"]])
def test_the_index_of_a_parquet_table_is_columns(made_table, index):
    path = made_table()
    plain = create_dataset("table", path, "train")
    frame = pd.read_csv(path).set_index(index)
    frame.to_parquet(path.with_suffix(".parquet"))
    assert set(read_header(path.with_suffix(".parquet"))) == set(read_header(path))
    found = create_dataset("table", path.with_suffix(".parquet"), "train", labels=plain.labels)
    assert found.records.patients.tolist() == plain.records.patients.tolist()
    assert found.filenames() == plain.filenames()
    assert (found.records.targets == plain.records.targets)[plain.records.targets == plain.records.targets].all()


def test_an_index_without_a_name_is_no_label(made_table):
    path = made_table()
    frame = pd.read_csv(path).sample(frac=1, random_state=0)
    frame.to_parquet(path.with_suffix(".pq"))
    assert create_dataset("table", path.with_suffix(".pq"), "train").labels == ("Edema", "Mass", "Effusion")


def test_whole_numbers_with_blanks_keep_every_digit(tmp_path):
    frame = pd.DataFrame({"path": ["1.png", "2.png"], "patient": pd.array([2**60 + 1, None], dtype="Int64")})
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_table_file(tmp_path / "t.parquet", ())["patient"].tolist() == [str(2**60 + 1), ""]


@pytest.mark.parametrize("name", ["t.parquet.gzip", "t.parquet.gz", "t.csv"])
def test_parquet_by_its_content(tmp_path, name):
    pd.DataFrame(ROWS[1:], columns=ROWS[0]).to_parquet(tmp_path / name, compression="gzip")
    assert cells(tmp_path / name) == ROWS
    write(tmp_path, gzip.compress((tmp_path / name).read_bytes()), name)
    with pytest.raises(InputError, match=f"{name} is a Parquet table in a gzip archive: unpack it"):
        cells(tmp_path / name)


def test_bytes_of_parquet_are_text(tmp_path):
    frame = pd.DataFrame(
        {"path": ["größer.png".encode(), None], "labels": [[b"Mass"], []], "image": [b"\xff\xd8", b""]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table_file(tmp_path / "t.parquet", ())
    assert table["path"].tolist() == ["größer.png", ""] and table["labels"].tolist() == ["['Mass']", "[]"]


def test_damaged_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"path": [f"{i}.png" for i in range(999)], "Edema": 1.0}).to_parquet(path)
    whole = path.read_bytes()
    for spoilt in (b"", whole[:-9], whole[:99], bytes(len(whole)), whole[:50] + bytes(400) + whole[450:], b"PAR1PAR1"):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match=r"t\.parquet is not a Parquet table"):
            cells(path)


def test_pandas_own_metadata_do_not_matter(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"path": ["1.png"], "Edema": [1]}).replace_schema_metadata({"pandas": b"{not JSON"})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert cells(tmp_path / "t.parquet") == [["path", "Edema"], ["1.png", "1"]]


@pytest.mark.parametrize("metadata", [b"{not JSON", b"[1]", b"\xff", b"[" * 100_000])
def test_damaged_metadata_of_scores(tmp_path, metadata):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"path": ["1.png"], "logit:Edema": [0.1], "target:Edema": [1]})
    parquet.write_table(table.replace_schema_metadata({"mxa": metadata}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"the metadata of .*t\.parquet (is not|must hold|is nested)"):
        read_metadata(tmp_path / "t.parquet")
    parquet.write_table(table.replace_schema_metadata({"mxa": json.dumps({"a": 1})}), tmp_path / "t.parquet")
    assert read_metadata(tmp_path / "t.parquet") == {"a": 1}


def test_excel_reads_as_its_csv_does(made_table, caplog):
    pytest.importorskip("openpyxl")
    path = made_table()
    plain = create_dataset("table", path, "train")
    with pd.ExcelWriter(path.with_suffix(".xlsx")) as book:
        pd.read_csv(path).to_excel(book, index=False, sheet_name="one")
        pd.DataFrame({"x": [1]}).to_excel(book, sheet_name="two")
    with caplog.at_level("INFO", logger="mxa"):
        found = create_dataset("table", path.with_suffix(".xlsx"), "train")
    assert caplog.text.count("only the first of 2 sheets is read") == 1
    assert found.labels == plain.labels and found.filenames() == plain.filenames()
    assert str(found.records.targets.tolist()) == str(plain.records.targets.tolist())
    whole = path.with_suffix(".xlsx").read_bytes()
    for spoilt in (b"", whole[:500], whole[:900] + bytes(300) + whole[1200:]):
        path.with_suffix(".xlsx").write_bytes(spoilt)
        with pytest.raises(InputError, match=r"table\.xlsx is not an Excel table"):
            create_dataset("table", path.with_suffix(".xlsx"))


@pytest.mark.filterwarnings("error")
def test_a_cell_right_of_an_excel_header(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    rows = [*([*row, ""] for row in ROWS), ["", "", "", ""], ["4.png", "d", "1", "x"]]
    pd.DataFrame(ROWS).to_excel(path, index=False, header=False)
    assert cells(path) == ROWS
    pd.DataFrame(rows).to_excel(path, index=False, header=False)
    with pytest.raises(InputError, match=r"t\.xlsx: row 6: a cell to the right of the header's last name: name its"):
        cells(path)
    pd.DataFrame([[*row, "", ""] for row in ROWS]).to_excel(path, index=False, header=False)
    assert cells(path) == ROWS


def test_excel_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"mxa\[excel\]"):
        read_header(write(tmp_path, b"", "t.xlsx"))


@pytest.mark.parametrize("name", ["t.xls", "t.ods", "t.json", "t.feather"])
def test_what_is_not_read_is_said(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name} is not read as a table: save it as CSV or Parquet"):
        read_header(write(tmp_path, b"", name))
    with pytest.raises(InputError, match=r"t\.csv is not a CSV table: it is a zip archive or an Excel file"):
        read_header(write(tmp_path, b"PK\3\4"))
