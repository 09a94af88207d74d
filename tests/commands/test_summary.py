import csv
import importlib
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mxa import cli
from mxa.commands import summary as job
from mxa.commands.summary import SummaryConfig, draw_summary, summarize, summary_lines
from mxa.data.create import read_collection
from mxa.labels import CHEXPERT
from mxa.utils.errors import InputError

KINDS = ("positive", "negative", "uncertain", "blank")


def of(data: str, root: Path | None = None, **fields) -> dict:
    return summarize(SummaryConfig(data=data, root=root, **fields))


def kinds(summary: dict, label: str) -> tuple[int, ...]:
    return tuple(summary["labels"][label][kind] for kind in KINDS)


def write_table(path: Path, header: tuple[str, ...], rows: list[tuple]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def colours(path: Path) -> int:
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(1 << 24))


def test_chexperts_uncertain_and_blank_cells_and_views(made_chexpert):
    summary = of("chexpert", made_chexpert())
    # Row i and label j: blank, negative, uncertain, positive in turn, (i + j) % 4; 24 rows, three a patient.
    assert all(kinds(summary, name) == (6, 6, 6, 6) for name in CHEXPERT)
    row = summary["labels"]["No Finding"]  # positive in rows 3, 7, 11, 15, 19, 23: patients 1, 2, 3, 5, 6, 7 of 0 to 7
    assert (row["share_uncertain"], row["share_blank"], row["prevalence"]) == (0.25, 0.25, 0.5)
    assert row["patients_positive"] == 6
    assert (summary["images"], summary["patients"], summary["studies"]) == (24, 8, 24)
    assert summary["views"] == {"AP": 8, "LATERAL": 8, "PA": 8}
    assert set(summary["splits"]) == {"train", "val"} and sum(summary["splits"].values()) == 24
    assert (summary["data"], summary["split"], summary["view_filter"]) == ("chexpert", "all", "all")
    assert list(summary["labels"]) == list(CHEXPERT)


def test_split_and_views_keep_their_rows(made_chexpert, made_table):
    root = made_chexpert()
    frontal = of("chexpert", root, views="frontal")
    assert (frontal["images"], frontal["views"]) == (16, {"AP": 8, "PA": 8})
    # Rows left: i % 3 is 0 or 1. Label 0 is positive where i % 4 is 3: 3, 7, 15, 19.
    assert kinds(frontal, "No Finding") == (4, 4, 4, 4)
    valid = of("chexpert", root, split="valid")
    assert (valid["images"], valid["patients"], valid["splits"], valid["split"]) == (6, 2, {"valid": 6}, "valid")
    val = of("table", made_table(), split="val")  # rows 4, 5, 12, 13, 20, 21
    assert (val["images"], val["patients"], val["splits"]) == (6, 3, {"val": 6})
    assert [kinds(val, name) for name in val["labels"]] == [(3, 3, 0, 0), (2, 2, 0, 2), (3, 0, 3, 0)]
    lateral = of("table", made_table(), split="val", views="lateral")  # rows 5 and 20
    assert (lateral["images"], lateral["views"]) == (2, {"LATERAL": 2}) and kinds(lateral, "Mass") == (2, 0, 0, 0)


def test_nihs_ages_and_sexes(made_nih):
    root = made_nih(lists=True)
    table = root / "Data_Entry_2017.csv"
    rows = list(csv.reader(table.open()))
    ages = ["4", "35", "39", "40", "", "411", *["60"] * 18]
    for i, (row, age) in enumerate(zip(rows[1:], ages, strict=True)):
        row[4], row[5] = age, "F" if i < 9 else "M" if i < 23 else ""
    write_table(table, tuple(rows[0]), rows[1:])
    summary = of("nih", root)
    assert summary["sexes"] == {"M": 14, "F": 9, "unknown": 1}
    assert list(summary["sexes"]) == ["M", "F", "unknown"]
    held = {key: summary["ages"][key] for key in ("known", "unknown", "min", "median", "max")}
    assert held == {"known": 23, "unknown": 1, "min": 4, "median": 60, "max": 411}
    decades = summary["ages"]["decades"]
    assert list(decades) == [f"{a}-{a + 9}" for a in range(0, 120, 10)] + ["120+"]
    filled = {decade: row for decade, row in decades.items() if any(row.values())}
    assert filled == {
        "0-9": {"F": 1, "M": 0, "unknown": 0},
        "30-39": {"F": 2, "M": 0, "unknown": 0},
        "40-49": {"F": 1, "M": 0, "unknown": 0},
        "60-69": {"F": 3, "M": 14, "unknown": 1},
        "120+": {"F": 1, "M": 0, "unknown": 0},
    }
    assert summary["splits"]["test"] == 6 and set(summary["splits"]) == {"train", "val", "test"}
    # Effusion stands in the second and fourth of five findings.
    assert kinds(summary, "Effusion") == (10, 14, 0, 0)
    assert of("nih", root, split="test")["patients"] == 2


def test_quartiles(tmp_path):
    rows = [(f"{i}.png", f"p{i}", age, 1) for i, age in enumerate((10, 20, 30, 40, 90))]
    ages = of("table", write_table(tmp_path / "t.csv", ("path", "patient", "age", "Edema"), rows))["ages"]
    assert [ages[key] for key in ("min", "quartile_1", "median", "quartile_3", "max")] == [10, 20, 30, 40, 90]
    assert ages["decades"]["10-19"] == {"unknown": 1} and ages["decades"]["50-59"] == {"unknown": 0}


def test_an_age_that_is_no_number_is_unknown_and_unknown_stands_last(tmp_path):
    rows = [(f"{i}.png", f"p{i}", age, view, 1) for i, (age, view) in enumerate((("inf", ""), ("50", "PA"), ("?", "")))]
    summary = of("table", write_table(tmp_path / "t.csv", ("path", "patient", "age", "view", "Edema"), rows))
    assert (summary["ages"]["known"], summary["ages"]["unknown"], summary["ages"]["max"]) == (1, 2, 50)
    assert list(summary["views"].items()) == [("PA", 1), ("unknown", 2)]
    json.dumps(summary, allow_nan=False)


def test_a_table_by_hand(made_table):
    summary = of("table", made_table())
    assert kinds(summary, "Edema") == (12, 12, 0, 0)
    assert kinds(summary, "Mass") == (8, 8, 0, 8)
    assert kinds(summary, "Effusion") == (18, 0, 6, 0)
    assert summary["labels"]["Effusion"]["prevalence"] == 1 and summary["labels"]["Edema"]["patients_positive"] == 12
    # Edema: i odd. Mass: i % 3 is 2. Effusion: i % 4 is not 0.
    assert summary["co_occurrence"] == [[12, 4, 12], [4, 8, 6], [12, 6, 18]]
    assert summary["sexes"] == {"unknown": 24} and summary["ages"]["known"] == 0
    assert summary["ages"]["median"] is None and summary["ages"]["decades"] == {}
    assert summary["splits"] == {"train": 12, "test": 6, "val": 6}


def test_columns_are_passed_on(made_table):
    path = made_table()
    path.write_text(path.read_text().replace("path,patient", "where,MRN"))
    assert of("table", path, columns="path=where,patient=MRN")["patients"] == 12


def test_a_study_number_that_recurs_is_another_patients_study(tmp_path):
    header = ("path", "patient", "study", "Edema")
    rows = [("0.png", "a", "1", 1), ("1.png", "a", "1", 0), ("2.png", "b", "1", ""), ("3.png", "b", "2", -1)]
    summary = of("table", write_table(tmp_path / "t.csv", header, rows))
    assert (summary["patients"], summary["studies"]) == (2, 3)


@pytest.mark.parametrize("data", ["phantom", "chexpert"])
def test_co_occurrence_is_that_of_a_slow_loop(made_chexpert, data):
    root = made_chexpert() if data == "chexpert" else None
    records = read_collection(data, root, "all")
    count = len(records.labels)
    slow = [[0] * count for _ in range(count)]
    for cells in records.targets.tolist():
        for a in range(count):
            for b in range(count):
                slow[a][b] += int(cells[a] == 1 and cells[b] == 1)
    assert np.any(slow) and of(data, root)["co_occurrence"] == slow


def test_the_phantom():
    summary = of("phantom")
    assert (summary["images"], summary["patients"], sum(summary["splits"].values())) == (1600, 800, 1600)
    assert set(summary["splits"]) == {"train", "val", "test"}
    assert 0.3 < summary["labels"]["No Finding"]["prevalence"] < 0.5
    assert all(sum(kinds(summary, name)) == 1600 for name in summary["labels"])
    splits = [of("phantom", split=split) for split in ("train", "val", "test")]
    for key in ("images", "patients"):
        assert sum(split[key] for split in splits) == summary[key]
    assert sum(kinds(split, "Edema")[0] for split in splits) == kinds(summary, "Edema")[0]


def test_the_files(made_chexpert, tmp_path):
    output = tmp_path / "new" / "folder"
    summary = of("chexpert", made_chexpert(), output=output)
    assert json.loads((output / "summary.json").read_text()) == summary
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert {file.name for file in output.iterdir()} == {"summary.json", "summary.png"}
    assert colours(output / "summary.png") > 50


def test_nothing_is_written_without_output(made_table, tmp_path, monkeypatch):
    path = made_table()
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    of("table", path)
    assert set(tmp_path.rglob("*")) == before


def test_no_patient_study_or_file_is_named(made_chexpert, tmp_path):
    rows = [(f"f{i}secret.png", f"p{i // 2}secret", f"s{i}secret", "F", 50, i % 2) for i in range(8)]
    path = write_table(tmp_path / "t.csv", ("path", "patient", "study", "sex", "age", "Edema"), rows)
    for summary in (of("table", path), of("chexpert", made_chexpert())):
        text = json.dumps([summary, summary_lines(summary)])
        assert not re.search(r"secret|patient\d|study\d|\.png|\.jpg", text)
        assert str(tmp_path) not in text


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("count", [1, 2, 15, 28])
def test_pictures_of_any_number_of_labels(tmp_path, count):
    rng = np.random.default_rng(count)
    names = [rf"Label $\{i}$ with a name that is too long to be shown" for i in range(count)]
    cells = rng.choice(["", "0", "1", "-1"], (40, count))
    cells[:, -1] = "0"  # nothing is positive: a row of the heat map without a number
    rows = [(f"{i}.png", f"p{i}", *row) for i, row in enumerate(cells)]
    summary = of("table", write_table(tmp_path / "t.csv", ("path", "patient", *names), rows))
    draw_summary(summary, tmp_path / "bare.png")
    people = {"sexes": {"F": 40}, "views": {"PA": 40}}
    ages = {**summary["ages"], "known": 40, "decades": {"50-59": {"F": 40}}}
    draw_summary({**summary, **people, "ages": ages}, tmp_path / "full.png")
    assert colours(tmp_path / "bare.png") > 10
    bare, full = (np.asarray(Image.open(tmp_path / name).convert("L")) < 250 for name in ("bare.png", "full.png"))
    assert bare.shape == full.shape and bare.any(axis=0).mean() > 0.5
    lower = slice(-200, None)  # what is not in the tables is a few words
    assert 0 < bare[lower].sum() < full[lower].sum() / 10


def test_the_lines(made_chexpert, made_table):
    columns, rows, lines = summary_lines(of("chexpert", made_chexpert()))
    assert len(rows) == 14 and all(len(row) == len(columns) and all(isinstance(c, str) for c in row) for row in rows)
    assert rows[0] == ("No Finding", "6", "6", "6 (25.0%)", "6 (25.0%)", "50.00%", "6")
    text = "\n".join(lines)
    assert "chexpert, split all, views all: 24 images of 8 patients, 24 studies" in text
    assert "views: AP 8 (33.3%), LATERAL 8 (33.3%), PA 8 (33.3%)" in text
    assert "sexes: M 24 (100.0%)" in text
    assert "age: median 60 (quartiles 60 and 60), 60 to 60, unknown 0" in text
    path = made_table(without=("view",))
    path.write_text(path.read_text().replace("Edema", "sex").replace("Mass", "age"))
    assert "age: median 0.5" in "\n".join(summary_lines(of("table", path))[2])
    text = "\n".join(summary_lines(of("table", made_table()))[2])
    assert "age: not in the tables" in text and "sexes: unknown 24 (100.0%)" in text


def test_a_label_without_any_decided_cell(tmp_path):
    rows = [(f"{i}.png", f"p{i}", "", i % 2) for i in range(4)]
    summary = of("table", write_table(tmp_path / "t.csv", ("path", "patient", "Mass", "Edema"), rows))
    assert summary["labels"]["Mass"]["prevalence"] is None
    assert [row[5] for row in summary_lines(summary)[1]] == ["-", "50.00%"]
    assert "4 images of 4 patients (one image each)" in summary_lines(summary)[2][0]


def test_the_real_chexpert_table(tmp_path):
    shipped = Path(find_spec("torchxrayvision").origin).parent / "data" / "chexpert_train.csv.gz"
    (tmp_path / "train.csv.gz").symlink_to(shipped)
    summary = of("chexpert", tmp_path)
    table = pd.read_csv(shipped)
    patient = table["Path"].str.extract(r"(patient\d+)")[0]
    for name in CHEXPERT:
        cell = table[name]
        counted = tuple(int(n) for n in ((cell == 1).sum(), (cell == 0).sum(), (cell == -1).sum(), cell.isna().sum()))
        row = summary["labels"][name]
        assert kinds(summary, name) == counted
        assert row["share_uncertain"] == pytest.approx((cell == -1).mean(), abs=1e-6)
        assert row["share_blank"] == pytest.approx(cell.isna().mean(), abs=1e-6)
        assert row["prevalence"] == pytest.approx((cell[cell >= 0] == 1).mean(), abs=1e-6)
        assert row["patients_positive"] == patient[cell == 1].nunique()
    positive = (table[list(CHEXPERT)] == 1).astype(int)
    assert summary["co_occurrence"] == positive.T.dot(positive).to_numpy().tolist()
    assert summary["patients"] == 64_540 and summary["views"]["LATERAL"] == 32_387 and summary["views"]["unknown"] == 17
    ages = table["Age"][table["Age"] > 0]
    assert summary["ages"]["known"] == len(ages)
    assert [summary["ages"][key] for key in ("quartile_1", "median", "quartile_3")] == list(
        ages.quantile([0.25, 0.5, 0.75])
    )
    decades = {decade: sum(row.values()) for decade, row in summary["ages"]["decades"].items()}
    assert decades == {f"{10 * d}-{10 * d + 9}": n for d, n in (ages // 10).value_counts().sort_index().items()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": "lateral"}, r"phantom: split all has no image \(views: lateral\)"),
        ({"split": "valid"}, "unknown split 'valid'"),
        ({"views": "sideways"}, "unknown view SIDEWAYS"),
        ({"data": "nih"}, "needs --root"),
        ({"data": "nih", "root": Path("/no/such")}, "no such folder or file: /no/such"),
        ({"data": "xray"}, "unknown collection 'xray'"),
        ({"columns": "path=a"}, "--columns is for --data table"),
    ],
)
def test_errors_name_the_thing(fields, message):
    with pytest.raises(InputError, match=message):
        summarize(SummaryConfig(**fields))


def test_a_column_that_is_not_a_label_is_passed_over_where_labels_are_named(tmp_path, capsys):
    rows = [("a.png", "p", 1, 170, 0), ("b.png", "q", 0, 181, 1)]
    table = write_table(tmp_path / "t.csv", ("path", "patient", "Edema", "height", "Mass"), rows)
    with pytest.raises(InputError, match=r"column 'height', .* is not a label, name the labels with --labels"):
        of("table", table)
    summary = of("table", table, labels="Mass")
    assert list(summary["labels"]) == ["Mass"] and kinds(summary, "Mass") == (1, 1, 0, 0)
    assert summary["co_occurrence"] == [[1]]
    with pytest.raises(InputError, match="the collection has no Hernia; it has Edema, Mass"):
        of("table", table, labels="Edema, Hernia")
    cli.main(["data", "summary", "--data", "table", "--root", str(table), "--labels", "Mass,Edema"])
    assert re.search(r"Mass .*\n.*Edema ", capsys.readouterr().out)


def test_a_split_that_the_folder_lacks(made_nih):
    with pytest.raises(InputError, match="split test has no image"):
        of("nih", made_nih(), split="test")


def test_without_matplotlib_only_the_picture_is_missing(tmp_path, monkeypatch):
    def missing(name):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return real(name)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", missing)
    assert of("phantom")["images"] == 1600
    monkeypatch.setattr(job, "read_collection", lambda *a, **k: pytest.fail("it says so before the work"))
    with pytest.raises(InputError, match=r'pip install "mxa\[explain\]"'):
        of("phantom", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def drawn(path: Path) -> np.ndarray:
    """Where a picture has the colour of boxes, ``(H, W)`` bool."""
    with Image.open(path) as image:
        return (np.asarray(image.convert("RGB")).astype(int) == (0xE6, 0x9F, 0x00)).all(2)


def test_boxes_are_counted_and_drawn(made_nih, tmp_path, capsys):
    root = made_nih(lists=True)
    header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
    rows = [("00000001_000.png", "Mass", 256, 256, 512, 512), ("00000001_000.png", "Mass", 0, 0, 100, 100)]
    rows += [("00000006_001.png", "Infiltrate", 0, 256, 512, 256), ("00000007_002.png", "Mass", 0, 0, 1024, 512)]
    write_table(root / "BBox_List_2017.csv", header, rows)
    summary = of("nih", root, boxes="own", output=tmp_path / "out")
    assert summary["boxes"] == {"Infiltration": {"boxes": 1, "images": 1}, "Mass": {"boxes": 3, "images": 2}}
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    assert "boxes: Infiltration 1 (images: 1), Mass 3 (images: 2)" in summary_lines(summary)[2]
    rows = drawn(tmp_path / "out/boxes.png").any(1)
    assert min(rows[: len(rows) // 2].mean(), rows[len(rows) // 2 :].mean()) > 0.1  # a row of pictures each
    cli.main(["data", "summary", "--data", "nih", "--root", str(root), "--output", str(tmp_path / "plain")])
    assert not (tmp_path / "plain/boxes.png").exists() and "boxes: " not in capsys.readouterr().out
    test = of("nih", root, split="test", boxes=str(root / "BBox_List_2017.csv"), labels="Mass")
    assert test["boxes"] == {"Mass": {"boxes": 1, "images": 1}}
    with pytest.raises(InputError, match="no image of split val has a box"):
        of("nih", root, split="val", boxes="own")


def test_a_drawn_box_is_where_the_finding_is(tmp_path, monkeypatch):
    """A bright rectangle on a dark image, in a table of one's own: the drawn line is its edge."""
    pixels = np.zeros((100, 200), np.uint8)
    pixels[20:60, 50:150] = 255
    Image.fromarray(pixels).save(tmp_path / "1.png")
    table = write_table(tmp_path / "t.csv", ("path", "patient", "Mass"), [("1.png", "p", 1)])
    boxes = write_table(
        tmp_path / "b.csv", ("path", "label", "x1", "y1", "x2", "y2"), [("1.png", "Mass", 50, 20, 150, 60)]
    )
    of("table", table, boxes=str(boxes), output=tmp_path / "out")
    line = drawn(tmp_path / "out/boxes.png")
    with Image.open(tmp_path / "out/boxes.png") as image:
        gray = np.asarray(image.convert("L"))
    rows, columns = np.flatnonzero(line.any(1)), np.flatnonzero(line.any(0))
    inside = gray[rows[0] + 5 : rows[-1] - 4, columns[0] + 5 : columns[-1] - 4]
    assert inside.size and (inside == 255).all()
    for y, x in ((rows[0] - 4, columns[0] + 9), (rows[-1] + 4, columns[0] + 9), (rows[0] + 9, columns[0] - 4)):
        assert gray[y, x] < 30
