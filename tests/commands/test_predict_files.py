"""``mxa predict --output``: what the table holds, that it resumes after a kill, and how much memory it takes."""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mxa
from mxa import cli
from mxa.commands.predict import files as predict_files
from mxa.commands.predict.command import PredictConfig, predict
from mxa.models.hub import SHIPPED
from mxa.utils.errors import InputError

from .fake_predictor import LABELS
from .test_predict import write_dicom


def test_the_default_model_is_the_one_that_comes_with_mxa():
    assert PredictConfig(()).model == SHIPPED


COLUMNS = ["file", *LABELS, *(f"{label}_{what}" for label in LABELS for what in ("threshold", "call"))]


def read(path: Path) -> list[dict]:
    """Any table, as JSON has it."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [{name: _value(name, cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _value(name: str, cell: str) -> str | float | bool | None:
    if name.endswith("_call") or not cell:
        return {"": None, "true": True, "false": False}[cell]
    return float(cell) if name.startswith(LABELS) else cell


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_table_holds_what_is_printed(images, tmp_path, faked, suffix, workers):
    """Value by value, whatever the number of processes. Parts do not end where batches would not."""
    printed = predict(PredictConfig((images,), "fake", calibrated="youden", skip_bad=True, batch_size=4))
    config = PredictConfig((images,), "fake", calibrated="youden", skip_bad=True, batch_size=4)
    config.output, config.workers = tmp_path / f"scores{suffix}", workers
    found = predict(config)
    assert (found.images, found.bad) == (75, 2)
    rows = read(config.output)
    assert list(rows[0]) == [*COLUMNS, "warning", "error"]
    assert [row["file"] for row in rows] == [row["file"] for row in printed]
    for row, wanted in zip(rows, printed, strict=True):
        assert row["error"] == wanted.get("error")
        for label in LABELS:
            assert row[label] == wanted.get("probabilities", {}).get(label)
            known = "error" not in wanted and label not in wanted["undecided"]
            assert row[f"{label}_call"] == (label in wanted["positive"] if known else None)
            assert row[f"{label}_threshold"] == ({"Bright": 0.5, "Mass": 0.6}[label] if known else None)
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".mxa*"))


def test_one_column_a_label_and_nothing_of_calls_where_none_are_made(images, tmp_path, faked):
    found = predict(PredictConfig((images / "001.png",), "plain", output=tmp_path / "a.parquet"))
    assert (found.images, found.bad) == (1, 0)
    assert pq.read_schema(tmp_path / "a.parquet").names == ["file", *LABELS, "warning", "error"]
    said = pq.read_schema(tmp_path / "a.parquet").metadata
    assert said[b"weights_sha256"] == b"0" * 64 and said[b"model"] == b"plain" and said[b"runtime"] == b"onnx"
    assert said[b"mxa"] == mxa.__version__.encode()


def test_a_parquet_table_of_many_parts_has_few_row_groups(images, tmp_path, faked, monkeypatch):
    monkeypatch.setattr(predict_files, "IMAGES_OF_A_PART", 1)
    predict(PredictConfig((images,), "fake", skip_bad=True, batch_size=1, workers=0, output=tmp_path / "a.parquet"))
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 5


def test_identifiers_and_warnings_are_columns(tmp_path, faked, caplog):
    files = (write_dicom(tmp_path / "a.dcm", "PA"), write_dicom(tmp_path / "b.dcm", "LL"))
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(tmp_path / "dark.png")
    for suffix in (".csv", ".parquet"):
        output = tmp_path / f"out{suffix}"
        found = predict(
            PredictConfig((*files, tmp_path / "dark.png"), "fake", output=output, identifiers=True, workers=0)
        )
        rows = read(output)
        assert [row["SOPInstanceUID"] for row in rows] == ["1.2.3.2", "1.2.3.2", None]
        assert list(rows[0])[1:4] == ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
        assert rows[0]["warning"] is None and "view LL is lateral" in rows[1]["warning"] and found.warned == 2
        assert "it will look dark" in rows[2]["warning"]
    assert not caplog.text


def test_names_of_files_that_no_table_takes(tmp_path, faked, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"a\xff.png", b"=1+1.png", b"b\nc.png", '\u00e4,".png'.encode()):
        Image.linear_gradient("L").save(os.fsdecode(bytes(folder) + b"/" + name))
    config = PredictConfig((folder,), "fake", workers=0)
    for suffix in (".csv", ".parquet", ".jsonl"):
        config.output = tmp_path / f"out{suffix}"
        assert predict(config).images == 4
        names = [Path(row["file"]).name for row in read(config.output)]
        newline = r"b\nc.png" if suffix == ".csv" else "b\nc.png"
        assert names == ["=1+1.png", r"a\xff.png", newline, '\u00e4,".png']
    monkeypatch.chdir(folder)
    config.files, config.output = (Path("=1+1.png"),), tmp_path / "formula.csv"
    predict(config)
    assert read(config.output)[0]["file"] == "'=1+1.png"


def test_the_exit_status_says_whether_all_was_read(images, tmp_path, faked, capsys):
    good, both = images / "000.png", images / "zzz.jpg"
    cli.main(["predict", str(good), "--model", "fake", "--output", str(tmp_path / "a.csv")])
    assert capsys.readouterr().err == f"written: {tmp_path / 'a.csv'}: 1 images\n"
    for where in (["--output", str(tmp_path / "b.csv")], []):
        with pytest.raises(SystemExit) as status:
            cli.main(["predict", str(good), str(both), "--model", "fake", "--skip-bad", *where])
        assert status.value.code == 3 and "did not read" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"zzz\.jpg is not a whole JPEG|zzz\.jpg does not decode"):
        cli.main(["predict", str(good), str(both), "--model", "fake", "--output", str(tmp_path / "c.csv")])
    assert not (tmp_path / "c.csv").exists()


def test_what_was_written_before_a_bad_image_stays(images, tmp_path, faked):
    config = PredictConfig((images,), "fake", output=tmp_path / "a.csv", batch_size=4, workers=0)
    with pytest.raises(InputError, match=r"013\.png\.png does not decode"):
        predict(config)
    assert sorted(path.name for path in (tmp_path / "a.csv.parts").iterdir()) == ["part-000000.csv", "plan.json"]
    with pytest.raises(InputError, match=r"holds a part of a\.csv: add --resume to go on, or delete that folder"):
        predict(config)
    config.resume = config.skip_bad = True
    assert predict(config).bad == 2
    before = config.output.read_bytes()
    os.utime(config.output, (0, 0))
    assert predict(config).bad == 2  # it is written: nothing is done
    assert config.output.stat().st_mtime == 0 and not (tmp_path / "a.csv.parts").exists()
    config.output = tmp_path / "b.csv"
    predict(config)
    assert config.output.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model": "other"}, "weights"),
        ({"calibrated": "f1"}, "--calibrated, calibration"),
        ({"batch_size": 2}, "--batch-size"),
        ({"identifiers": True}, "--identifiers"),
        ({"runtime": "openvino"}, "runtime"),
        ({"files": ("000.png", "001.png")}, "files, images"),
    ],
)
def test_a_run_is_resumed_with_the_same_settings(images, tmp_path, faked, changed, what):
    config = PredictConfig((images,), "fake", output=tmp_path / "a.csv", batch_size=4, workers=0, resume=True)
    with pytest.raises(InputError):
        predict(config)
    for name, value in changed.items():
        setattr(config, name, tuple(images / file for file in value) if name == "files" else value)
    with pytest.raises(InputError, match=f"these differ: {what}; put them back"):
        predict(config)


def test_a_table_of_something_else_is_not_taken_for_the_result(images, tmp_path, faked):
    config = PredictConfig((images / "000.png",), "fake", resume=True)
    for suffix, texts in {
        ".csv": ("", "file,error\n"),
        ".jsonl": ("", "[]\n", "3\n", '{"file": 1}\n'),
        ".parquet": ("",),
    }.items():
        config.output = tmp_path / f"a{suffix}"
        for text in texts:
            config.output.write_text(text)
            with pytest.raises(InputError, match="holds something else than this command writes"):
                predict(config)
            assert config.output.read_text() == text
    config.output.unlink()
    predict(config)
    config.model = "other"
    with pytest.raises(InputError, match="holds something else"):
        predict(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "a.txt"}, "name a .parquet, .csv or .jsonl file"),
        ({"output": "none/a.csv"}, "there is no folder none"),
        ({"output": "there.csv"}, "there.csv exists: delete it, or give another file"),
        ({"output": "folder.csv"}, "is a folder: name a file"),
        ({"workers": 2}, "--workers is for --output"),
        ({"resume": True}, "--resume is for --output"),
        ({"ray": "auto"}, "--ray is for --output"),
        ({"output": "a.csv", "format": "json"}, "leave out --rois and --format"),
        ({"output": "a.csv", "workers": -1}, "--workers must be 0 or more"),
        ({"output": "a.csv", "model": "plain", "calibrated": "f1"}, "plain has no calibration.json"),
        ({"output": "a.csv", "model": "damaged"}, r"Mass of \S*000.png is not a finite number"),
        ({"output": "a.csv", "files": (Path("empty"),)}, "empty holds no image"),
        ({"rois": Path("a.png"), "runtime": "onnx"}, "need a model that PyTorch runs"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(images, tmp_path, faked, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "there.csv").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    options = {"files": (images / "000.png",), "model": "fake", "workers": None, **options}
    options["output"] = Path(options["output"]) if "output" in options else None
    with pytest.raises(InputError, match=message) as error:
        predict(PredictConfig(**options))
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "there.csv").read_text() == "old"


def test_without_pyarrow_there_is_csv(images, tmp_path, faked, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'pyarrow is not installed: run pip install "mxa\[data\]"'):
        predict(PredictConfig((images / "000.png",), "fake", output=tmp_path / "a.parquet"))
    predict(PredictConfig((images / "000.png",), "fake", output=tmp_path / "a.csv"))


BASE = """
import sys

from importlib.machinery import PathFinder

NAMES = {"matplotlib", "pyarrow", "captum", "pydicom", "sklearn", "webdataset", "openpyxl", "onnx", "onnxscript",
         "onnxruntime", "openvino", "ray", "highdicom", "tensorboard", "pynetdicom"}

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import mxa
from mxa import cli
image, output = sys.argv[1:]
cli.main(["predict", image, "--calibrated", "youden"])
cli.main(["predict", image, "--calibrated", "youden", "--output", output])
print(mxa.predict(image))
"""


def test_a_base_install_predicts(images, tmp_path):
    command = [sys.executable, "-c", BASE, str(images / "001.png"), str(tmp_path / "a.csv")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    (row,) = csv.DictReader((tmp_path / "a.csv").open(newline=""))
    printed = ast.literal_eval(shown.stdout.splitlines()[-1])
    assert {name: float(row[name]) for name in printed} == printed and len(printed) == 15
    assert f"{printed['Mass']:.3f}" in shown.stdout
