"""Inputs that people bring, each as a new user would give it: files beside the repository, which it does not hold."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mxa.cli import main
from mxa.data import create_dataset
from mxa.utils.errors import InputError

CASES = Path(os.environ.get("MXA_CASES") or Path(__file__).resolve().parents[2] / "shared" / "cases")


@pytest.fixture(scope="module")
def cases() -> Path:
    if not CASES.is_dir():
        reason = f"needs the inputs of {CASES}: set MXA_CASES to their folder"
        (pytest.fail if os.environ.get("MXA_REQUIRE_DATA") else pytest.skip)(reason)
    return CASES


@pytest.fixture(scope="module")
def trees(cases, tmp_path_factory) -> Path:
    """CheXpert as its four archives unpack, and MIMIC-CXR as DICOM and as PNG."""
    out = tmp_path_factory.mktemp("trees")
    subprocess.run([sys.executable, cases / "make_trees.py", out], check=True)
    return out


def predicted(capsys, *files: Path, **options: str) -> list[dict]:
    main(["predict", *map(str, files), "--format", "json", *(f"--{k}={v}" for k, v in options.items())])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["lut_says16_is12.dcm", "minisblack16.tif", "miniswhite16.tif", "miniswhite8.tif"])
def test_the_same_picture_has_the_same_finding(cases, capsys, name):
    plain, row = predicted(capsys, cases / "plain.dcm", cases / name)
    assert plain["probabilities"]["Effusion"] > 0.2
    assert row["probabilities"]["Effusion"] == pytest.approx(plain["probabilities"]["Effusion"], abs=0.012)


def test_a_pacs_export_is_found_by_content(cases, capsys, caplog):
    caplog.set_level(logging.INFO, "mxa")
    rows = predicted(capsys, cases / "export")
    assert [Path(row["file"]).name for row in rows] == ["1.2.392.200036.9125.9.0.1", "IM000001", "scan.ima"]
    assert all(0 < p < 1 for row in rows for p in row["probabilities"].values())
    assert "README" in caplog.text


def labelled(path: Path, **options) -> tuple[tuple[str, ...], dict[str, list[float]]]:
    """The labels of a table, and the targets of each image that it names; every image is there."""
    splits = [create_dataset("table", path, split, views="all", **options) for split in ("train", "val", "test")]
    targets = {}
    for dataset in splits:
        for i in range(len(dataset)):
            assert Path(dataset.records.path(i)).is_file()
            targets[Path(dataset.records.path(i)).name] = dataset.records.targets[i].tolist()
    return splits[0].labels, targets


#: Of tables/, whose rows are the same but for how they are written.
EFFUSION = {
    "00001336_000.jpg": 0,
    "00001377_000.jpg": 1,
    "00001339_000.jpg": 1,
    "00001475_000.jpg": 0,
}


@pytest.mark.parametrize("name", ["pipe", "yesno", "semicolon", "backslash", "utf16", "parts_named_otherwise"])
def test_tables_of_one_kind_and_another_read_the_same(cases, name):
    labels, targets = labelled(cases / "tables" / f"{name}.csv")
    assert len(targets) > len(EFFUSION)
    for image, value in EFFUSION.items():
        assert targets[image][labels.index("Effusion")] == value


@pytest.mark.parametrize(("name", "said"), [("pipe", "|"), ("semicolon", ";")])
def test_what_was_found_is_said(cases, caplog, name, said):
    caplog.set_level(logging.INFO, "mxa")
    create_dataset("table", cases / "tables" / f"{name}.csv", "train")
    assert f"{said!r}" in caplog.text or {"|": "bar", ";": "semicolon"}[said] in caplog.text


def test_a_table_that_is_not_utf8_names_the_line_and_the_remedy(cases):
    with pytest.raises(InputError, match=r"latin1\.csv.*line 2.*UTF-8"):
        create_dataset("table", cases / "tables" / "latin1.csv", "train", labels="Effusion")


def test_a_label_with_a_comma_can_be_asked_for(cases, tmp_path):
    path = cases / "tables" / "comma_in_label.csv"
    labels, targets = labelled(path, labels='"Effusion, pleural",Edema')
    assert labels == ("Effusion, pleural", "Edema") and targets["00001339_000.jpg"] == [1, 0]
    small = [
        "--img-size",
        "32",
        "--epochs",
        "1",
        "--workers",
        "0",
        "--batch-size",
        "2",
        "--model",
        "efficientvit_ml_m0",
    ]
    run = tmp_path / "run"
    main(
        [
            "train",
            "--data",
            "table",
            "--root",
            str(path),
            "--labels",
            '"Effusion, pleural",Edema',
            *small,
            "--output",
            str(run),
        ]
    )
    main(["evaluate", str(run), "--output", str(tmp_path / "out"), "--workers", "0", "--replicates", "2"])
    assert '"Effusion, pleural"' in (tmp_path / "out" / "metrics.json").read_text()


def test_kaggles_sample_is_read_as_it_unpacks(cases):
    dataset = create_dataset("nih", cases / "kaggle_sample", "all")
    assert len(dataset) == 6 and dataset[0][0].size[0] > 100
    assert 15 in dataset.records.ages.tolist()


@pytest.mark.parametrize(
    "where", ["chexpertchestxrays-u20210408", "chexpertchestxrays-u20210408/CheXpert-v1.0 batch 1 (validate & csv)"]
)
def test_chexpert_as_its_four_archives_unpack(trees, where):
    for split, count in (("train", None), ("val", None), ("valid", 6), ("all", 30)):
        dataset = create_dataset("chexpert", trees / where, split)
        assert len(dataset) == (count or len(dataset))
        assert all(dataset[i][0].size[0] > 100 for i in range(len(dataset)))


@pytest.mark.parametrize("kind", ["mimic-dcm", "mimic-png"])
def test_mimic_as_dicom_and_as_png(trees, kind):
    seen = 0
    for split in ("train", "val", "test"):
        dataset = create_dataset("mimic", trees / kind, split, views="all")
        assert dataset[0][0].size[0] > 100
        seen += len(dataset)
    assert seen == 24


def test_every_case_but_one_is_summarised(cases, trees, capsys):
    roots = {
        "table": sorted((cases / "tables").glob("*.csv")),
        "nih": [cases / "kaggle_sample"],
        "chexpert": [trees / "chexpertchestxrays-u20210408"],
        "mimic": [trees / "mimic-dcm", trees / "mimic-png"],
    }
    for data, paths in roots.items():
        for path in paths:
            refused = pytest.raises(SystemExit) if path.name == "latin1.csv" else contextlib.nullcontext()
            with refused:
                main(["data", "summary", "--data", data, "--root", str(path)])
    assert "Effusion" in capsys.readouterr().out
