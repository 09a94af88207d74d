"""``mxa predict --output``: what the table holds, that it resumes after a kill, and how much memory it takes."""

from __future__ import annotations

import ast
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mxa
from mxa import cli
from mxa.commands import predict_files
from mxa.commands.predict import PredictConfig, predict
from mxa.deployment import runtimes
from mxa.models.hub import SHIPPED
from mxa.utils.errors import InputError

from ..test_shown import children, gone
from ..waiting import wait_until
from .fake_predictor import LABELS, fake_predictor
from .test_predict import write_dicom

SCRIPT = Path(__file__).with_name("fake_predictor.py")


@pytest.fixture
def images(tmp_path):
    """75 images, of which two do not read; some are deeper than 8 bits."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(73):
        pixels = np.add.outer(np.arange(30), np.arange(36)) * 2 + rng.integers(0, 60)
        deep = i % 5 == 0
        Image.fromarray((pixels * 250).astype(np.uint16) if deep else pixels.astype(np.uint8)).save(
            folder / f"{i:03d}.png"
        )
    (folder / "013.png.png").write_bytes(b"no image")
    (folder / "zzz.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def faked(monkeypatch):
    """The model of a few lines, and parts of 8 images."""
    monkeypatch.setattr(runtimes, "open_predictor", fake_predictor)
    monkeypatch.setattr(predict_files, "IMAGES_OF_A_PART", 8)


def start(*arguments, **env) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "predict", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env={**os.environ, **{k: str(v) for k, v in env.items()}}, **pipes)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


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


def test_names_of_files_that_no_table_takes(tmp_path, faked):
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
    os.chdir(folder)
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


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("limit", [500, 5_000])
def test_a_full_disk_is_one_line_and_what_is_whole_stays(images, tmp_path, suffix, limit):
    """No part fits, or each part does and the table does not."""
    output = tmp_path / f"a{suffix}"
    arguments = (images, "--model", "fake", "--calibrated", "f1", "--skip-bad", "--batch-size", 8, "--output", output)
    status, _, error = ended(start(*arguments, "--workers", 0, FAKE_FILE_SIZE=limit, FAKE_PART=8))
    assert status == 1
    assert re.fullmatch(
        r"mxa predict: \S+ could not be written \(File too large\): free space, then run again\n", error
    )
    assert not output.exists() and not list(tmp_path.rglob(".mxa*"))
    assert ended(start(*arguments, "--resume", FAKE_PART=8))[0] == 3
    again = tmp_path / f"b{suffix}"
    assert ended(start(*arguments[:-1], again, FAKE_PART=8))[0] == 3
    assert output.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_run_that_is_killed_and_resumed_writes_the_same_bytes(images, tmp_path, suffix, kills):
    """Every process of the run is killed, at moments spread over all of its time."""
    arguments = (images, "--model", "fake", "--calibrated", "f1", "--skip-bad", "--batch-size", 2, "--workers", 1)
    env = {"FAKE_PART": 4, "FAKE_SECONDS": 0.02}
    whole = tmp_path / f"whole{suffix}"
    begun = time.monotonic()
    assert ended(start(*arguments, "--output", whole, **env))[0] == 3
    seconds = time.monotonic() - begun
    rng, output, parts = random.Random(0), tmp_path / f"a{suffix}", tmp_path / f"a{suffix}.parts"
    killed, seen = 0, set()
    while killed < kills:
        process = start(*arguments, "--resume", "--output", output, **env)
        try:
            process.wait(rng.uniform(0.3, 1) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
            seen.add(len(list(parts.glob("part-*"))))
        else:
            assert process.returncode == 3 and output.read_bytes() == whole.read_bytes() and not parts.exists()
            process.communicate()
            output.unlink()
    status, _, error = ended(start(*arguments, "--resume", "--output", output, **env))
    assert status == 3, error
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["images", whole.name, output.name])
    assert kills < 20 or len(seen) > 4  # it was killed with nothing written, and with more and more


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_bar_where_somebody_looks(images, tmp_path):
    ours, theirs = os.openpty()
    command = [sys.executable, str(SCRIPT), "predict", str(images), "--skip-bad", "--batch-size=2"]
    env = {**os.environ, "FAKE_SECONDS": "0.05", "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "a.csv")], stdout=subprocess.DEVNULL, stderr=theirs, env=env
    )
    os.close(theirs)
    seen = b""
    try:
        while some := os.read(ours, 1 << 16):
            seen += some
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 3
    assert re.search(rb"images .*\d+/75.* \d+/s  left .*0:00:\d\d", seen)
    assert b"75 images; 2 did not read" in seen


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_command(images, tmp_path, how):
    arguments = (images, "--model", "fake", "--skip-bad", "--batch-size", 1, "--workers", 2)
    process = start(*arguments, "--output", tmp_path / "a.csv", FAKE_SECONDS=0.5, FAKE_PART=1)
    wait_until(lambda: len(list(tmp_path.glob("a.csv.parts/part-*"))) >= 2, process)
    workers = children(process.pid)
    assert len(workers) >= 2
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)  # as a terminal does, or the parent alone
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), error
    assert "Traceback" not in error
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not all(map(gone, workers)):
        time.sleep(0.1)
    assert all(map(gone, workers))
    with pytest.raises(InputError, match="--resume to go on"):
        predict(PredictConfig((images,), "fake", output=tmp_path / "a.csv"))


def test_two_commands_do_not_write_one_table(images, tmp_path):
    arguments = (images, "--model", "fake", "--skip-bad", "--output", tmp_path / "a.csv", "--resume")
    first = start(*arguments, "--batch-size", 1, FAKE_SECONDS=5)
    wait_until((tmp_path / "a.csv.parts" / "plan.json").exists, first)
    try:
        status, _, error = ended(start(*arguments))
        assert status == 1 and "mxa predict is at work in" in error
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_a_reader_that_is_killed_is_one_line(images, tmp_path):
    arguments = (images, "--model", "fake", "--skip-bad", "--batch-size", 1, "--workers", 1)
    process = start(*arguments, "--output", tmp_path / "a.csv", FAKE_SECONDS=0.5, FAKE_PART=1)
    wait_until(lambda: len(list(tmp_path.glob("a.csv.parts/part-*"))) >= 2, process)
    for worker in children(process.pid):
        if b"resource_tracker" not in Path(f"/proc/{worker}/cmdline").read_bytes():
            os.kill(worker, signal.SIGKILL)
    status, _, error = ended(process)
    assert status == 1 and error.endswith("was killed (out of memory?): give fewer --workers\n"), error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_files(images, tmp_path, count):
    """Peak resident memory of the process that computes, from when it opens the model to the end; it writes Parquet."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(count):
        os.link(images / f"{i % 70:03d}.png", folder / f"{i:06d}.png")
    status, out, error = ended(start(folder, "--model", "fake", "--output", tmp_path / "a.parquet", "--workers", 2))
    assert status == 0 and error.startswith("written: "), error
    first, last = (float(re.search(f"memory at {when}: (.*)", out)[1]) for when in ("first", "last"))
    print(f"{count} files: {last - first:.0f} MB beyond {first:.0f} MB")
    assert last - first < (150 if count < 20_000 else 300)
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == count


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
cli.main(["predict", image])
cli.main(["predict", image, "--output", output])
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


def test_no_torch_where_the_runtime_needs_none(images, tmp_path):
    for arguments in (("--runtime", "onnx"), ("--runtime", "onnx", "--output", tmp_path / "a.csv")):
        status, out, error = ended(start(images / "000.png", "--model", "fake", *arguments))
        assert status == 0, error
        assert "imported: []" in out
