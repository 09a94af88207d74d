"""Tables as people bring them: a column of findings, words for labels, paths of other computers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mxa.data import create_dataset
from mxa.data.create import read_collection
from mxa.utils.errors import InputError

from ..helpers import NAN


def write(folder, header: str, rows: list[str]):
    path = folder / "own.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def findings(folder, cells: list[str], name: str = "findings", **options):
    path = write(folder, f"path,patient,{name}", [f'{i}.png,{i},"{cell}"' for i, cell in enumerate(cells)])
    return read_collection("table", path, **options)


SAID = [("No Finding",), ("Effusion", "Edema"), ("effusion",), ()]
ROWS = [[0, 0, 1], [1, 1, 0], [0, 1, 0], [NAN, NAN, NAN]]  # Edema, Effusion, No Finding


@pytest.mark.parametrize(
    ("join", "how"),
    [
        ("|".join, "separated by a bar"),
        ("; ".join, "separated by a semicolon"),
        (",".join, "separated by a comma"),
        (lambda names: str(list(names)), "each cell a list"),
        (lambda names: str(list(names)).replace("'", '""'), "each cell a list"),
        (lambda names: f"[{', '.join(names)}]", "each cell a list"),
    ],
)
def test_a_column_of_findings_makes_labels(tmp_path, caplog, join, how):
    with caplog.at_level("INFO", logger="mxa"):
        records = findings(tmp_path, list(map(join, SAID)))
    assert f"labels are made of the column 'findings', {how}" in caplog.text
    assert records.labels == ("Edema", "Effusion", "No Finding")
    empty = [0, 0, 0] if join(()) else ROWS[3]  # a list of none
    np.testing.assert_array_equal(records.targets, [*ROWS[:3], empty])


def test_one_finding_a_cell_and_lists_of_parquet(tmp_path):
    records = findings(tmp_path, ["Edema", "nan", "Normal", "Edema"], "Diagnosis")
    assert records.labels == ("Edema", "Normal")
    np.testing.assert_array_equal(records.targets, [[1, 0], [NAN, NAN], [0, 1], [1, 0]])
    frame = pd.DataFrame({"path": list("abcd"), "patient": list("abcd"), "labels": [list(names) for names in SAID]})
    frame.to_parquet(tmp_path / "own.parquet")
    targets = read_collection("table", tmp_path / "own.parquet").targets
    np.testing.assert_array_equal(targets, [*ROWS[:3], [0, 0, 0]])


def columned(folder, cells: list):
    pd.DataFrame({"path": list(map(str, range(len(cells)))), "findings": cells}).to_parquet(folder / "own.parquet")
    return read_collection("table", folder / "own.parquet")


@pytest.mark.parametrize("empty", ["[]", "()", "{}", "[ ]"])
def test_an_empty_list_is_negative_and_an_empty_cell_is_blank(tmp_path, empty):
    records = findings(tmp_path, ["['Edema']", empty, "", "nan", "['', 'nan']"])
    np.testing.assert_array_equal(records.targets[:, 0], [1, 0, NAN, NAN, NAN])


def test_empty_lists_of_parquet_are_negative(tmp_path):
    records = columned(tmp_path, [["Edema", "Mass"], [], None, ["Mass"]])
    np.testing.assert_array_equal(records.targets, [[1, 1], [0, 0], [NAN, NAN], [0, 1]])


def test_lists_tuples_sets_and_bare_names_in_one_column(tmp_path, caplog):
    said = [
        "['Edema', 'Mass']",
        "('Edema', 'Mass')",
        "{'Mass', 'Edema'}",
        "('Mass',)",
        "('Mass')",
        "Edema|Mass",
        "Mass",
    ]
    said += ["[Edema|Mass]", "[]"]
    with caplog.at_level("INFO", logger="mxa"):
        records = findings(tmp_path, said)
    assert "separated by a bar, or a list" in caplog.text
    assert records.labels == ("Edema", "Mass")
    np.testing.assert_array_equal(records.targets, [[1, 1]] * 3 + [[0, 1]] * 2 + [[1, 1], [0, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("{'Edema': 1, 'Mass': 0}", r"\"'Edema': 1\", \"'Mass': 0\""),
        ('{"Edema": true}', "'\"Edema\": true'"),
        ("Edema:1|Mass:0", "'Edema:1', 'Mass:0'"),
        ("[['Edema'], ['Mass']]", r"\"\['Edema'\]\""),
        ("['Edema'", r"\"\['Edema'\""),
        ("('Edema', 0.5)|Mass", r"\"\('Edema', 0\.5\)\""),
        ("Edema\nMass", r"'Edema\\nMass'"),
        ("Edema\tMass", r"'Edema\\tMass'"),
        ("'Edema'", r"\"'Edema'\""),
        ("[" + "x" * 50, rf"'\[{'x' * 29}'"),
    ],
)
def test_names_that_are_pieces_of_something_else(tmp_path, cell, shown):
    with pytest.raises(
        InputError, match=f"column 'findings' makes findings such as {shown}.*: write names alone, as E"
    ):
        columned(tmp_path, [cell, "Mass", "Edema"])


def test_names_may_hold_a_word_in_brackets_and_an_apostrophe(tmp_path):
    said = ["Nodule (calcified)|Hampton's hump", "Kerley B: lines", ""]
    assert findings(tmp_path, said).labels == ("Hampton's hump", "Kerley B: lines", "Nodule (calcified)")


def test_which_column_has_the_findings(tmp_path):
    said = ["Effusion", "Mass|Edema", "No Finding"]
    assert findings(tmp_path, said, "what").labels == ("Edema", "Effusion", "Mass", "No Finding")  # known findings
    assert findings(tmp_path, ["ni", "ne|ni", "ne"], "what", columns="findings=what").labels == ("ne", "ni")
    with pytest.raises(InputError, match="column 'what', row 1: a label cell is"):
        findings(tmp_path, ["ni", "ne|ni", "ne"], "what")
    assert findings(tmp_path, ["yes", "no", ""], "label").labels == ("label",)  # a label of that name
    with pytest.raises(InputError, match=r"column 'what' holds label cells, not the names of findings"):
        findings(tmp_path, ["1", "0", ""], "what", columns="findings=what")
    with pytest.raises(InputError, match=r"column 'findings' names 150 findings, more than 100: it is free text"):
        findings(tmp_path, [f"word {i}" for i in range(150)])
    with pytest.raises(InputError, match="names no finding"):
        findings(tmp_path, ["", "nan"], columns="findings=findings")


def test_findings_beside_labels_must_be_told(tmp_path):
    path = write(tmp_path, "path,patient,diagnosis,Edema", ["1.png,1,Mass,1", "2.png,2,Hernia|Mass,0"])
    with pytest.raises(
        InputError, match=r"made of 'diagnosis' or be 'Edema': say --columns findings=diagnosis, or name"
    ):
        read_collection("table", path)
    assert read_collection("table", path, labels=["Edema"]).labels == ("Edema",)
    for options in ({"labels": ["Mass"]}, {"columns": "findings=diagnosis"}):
        assert read_collection("table", path, **options).labels == ("Hernia", "Mass")


# Words


def test_words_for_labels(tmp_path):
    words = {
        1: "yes Y True t POSITIVE pos Present 1,0",
        0: "No n FALSE f negative Neg absent 0,00",
        -1: "Uncertain equivocal",
    }
    pairs = [(word, value) for value, spelt in words.items() for word in spelt.split()]
    path = write(tmp_path, "path,patient,Edema", [f'{i}.png,{i},"{word}"' for i, (word, _) in enumerate(pairs)])
    assert read_collection("table", path).targets[:, 0].tolist() == [value for _, value in pairs]


def labelled(folder, cells: list[str], name: str = "Edema"):
    return write(folder, f"path,patient,{name}", [f"{i}.png,{i},{cell}" for i, cell in enumerate(cells)])


def test_words_that_are_not_known_are_listed(tmp_path):
    long = "not to be told from the picture"
    with pytest.raises(InputError, match=r"column 'Edema', row 1: .* found 'ja', 'nein', 'not to be told from '") as e:
        read_collection("table", labelled(tmp_path, ["ja", "nein", "ja", "nein", "ja", long] * 3))
    assert long not in str(e.value)


def test_a_word_of_patients_within_another_word_is_none(tmp_path):
    with pytest.raises(InputError, match=r"column 'Consolidated', row 1: .* found 'ja', 'nein'$|found 'ja', 'nein';"):
        read_collection("table", labelled(tmp_path, ["ja", "nein", "ja", "nein"] * 3, "Consolidated"))


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("Patient Name", ["Smith"] * 9),
        ("reader_name", ["Smith", "1"] * 9),
        ("referrer", ["Smith^John"] * 9),
        ("referrer", ["Smith", "Jones", "Miller", "Smith"]),
        ("referrer", [f"Smith{i}" for i in range(9)] * 9),
        ("date_of_birth", ["Smith"] * 9),
        ("StudyDateTime", ["Smith"] * 9),
        ("birthdate", ["Smith"] * 9),
        ("doctors notes", ["Smith"] * 9),
    ],
)
def test_cells_that_may_be_about_a_patient_are_not(tmp_path, name, cells):
    with pytest.raises(InputError, match=rf"column '{name}', row 1: a label cell is") as error:
        read_collection("table", labelled(tmp_path, cells, name))
    assert "Smith" not in str(error.value)


# Paths


@pytest.fixture
def images(tmp_path):
    for name in ("img/a/1.png", "img/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "start",
    ["", ".\\", "D:\\data\\x ray\\", "d:/", "\\\\server\\share\\", "/home/else/where/", "C:\\Users\\a\\img\\"],
)
def test_paths_of_other_computers(images, start):
    mark = "/" if start.startswith("/") else "\\"
    names = [mark.join(("img", *name.split("/"))) for name in ("a/0.png", "a/1.png", "b/2.png")]
    path = write(images, "path,patient,Edema", [f"{start}{name},{i},1" for i, name in enumerate(names)])
    records = read_collection("table", path)
    assert records.paths.tolist() == ["img/a/0.png", "img/a/1.png", "img/b/2.png"]  # the first is missing
    assert records.path(1) == str(images / "img/a/1.png")


def test_a_drive_whose_images_are_not_here_is_an_error(images):
    path = write(images, "path,patient,Edema", [r"D:\x\9.png,1,1", r"D:\y\8.png,2,0"])
    with pytest.raises(InputError, match=r"no end of a path such as D:/x/9\.png exists below .*: put the table beside"):
        read_collection("table", path)


def test_a_file_named_with_a_backslash_is_found(images):
    (images / r"odd\1.png").write_bytes((images / "img/a/1.png").read_bytes())
    path = write(images, "path,patient,Edema", [r"odd\1.png,1,1", "img/b/2.png,2,0"])
    assert read_collection("table", path).paths.tolist() == [r"odd\1.png", "img/b/2.png"]


def test_many_paths_are_found_by_a_few(images, monkeypatch):
    import os

    asked = []
    real = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or real(path))
    rows = [rf"D:\data\img\a\{i + 1}.png,{i},1" for i in range(3000)]
    assert read_collection("table", write(images, "path,patient,Edema", rows)).paths[-1] == "img/a/3000.png"
    assert len(asked) < 100


def test_labels_with_a_comma(images):
    path = write(images, 'path,patient,"Effusion, left",Edema', ["img/a/1.png,1,1,0", "img/b/2.png,2,0,1"])
    dataset = create_dataset("table", path, "all", labels='Edema, "Effusion, left"')
    assert dataset.labels == ("Edema", "Effusion, left")
    with pytest.raises(
        InputError, match=r"unknown label left: .*; put a name that holds a comma in double quotes, '.Eff"
    ):
        create_dataset("table", path, "all", labels="Edema, Effusion, left")
    assert dataset.records.targets.tolist() == [[0, 1], [1, 0]]
    columns = create_dataset(
        "table", path, "all", columns='path=path,"view=Effusion, left"', labels="Edema", views="all"
    )
    assert len(columns) == 2
