"""The examples, run as their docstrings say, with small settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

import mxa
from mxa.deployment.export import ExportConfig, export
from mxa.models.hub import SHIPPED

from ..running import EXAMPLES, run_example

XRAY = EXAMPLES / "images" / "00001373_038.jpg"


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda name, *arguments: run_example(name, monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_says_how_it_is_run(path):
    text = path.read_text(encoding="utf-8")
    if path.name in ("dicom_node.py", "input_check_alarms.py", "nih_sample_folds.py"):  # programs
        return
    assert len(text.splitlines()) <= 70
    assert f"python examples/{path.name}" in text.partition('"""\n')[0] or path.name == "demo.py"


def test_a_dicom_is_predicted_as_the_image_that_it_holds(run, tmp_path):
    out = run("predict_dicom.py", "--picture", tmp_path / "boxes.png")
    found = dict(re.findall(r"^(\S.*?) +(0\.\d+)", out, re.MULTILINE))
    expected = mxa.predict(np.asarray(Image.open(XRAY).convert("L"), dtype=np.float32) / 255)  # a DICOM is no 8 bits
    assert {label: float(value) for label, value in found.items()} == pytest.approx(expected, abs=2e-3)
    assert re.search(r"^Effusion +0\.\d+  called", out, re.MULTILINE)
    assert Image.open(tmp_path / "boxes.png").width > 100


def test_a_picture_of_what_the_model_looks_at(run, tmp_path):
    out = run("explain_image.py", "--output", tmp_path / "why.png", "--findings", "2")
    assert len(re.findall(r"most at row \d+, column \d+ of 160", out)) == 2
    assert Image.open(tmp_path / "why.png").width > 500


def test_a_turned_copy_finds_its_original(run):
    out = run("neighbours.py", "--phantoms", "12", "--count", "2").splitlines()
    assert out[0].startswith("a copy of 00001340_000.jpg") and out[1].endswith("00001340_000.jpg") and len(out) == 3
    out = run("neighbours.py", XRAY, "--count", "1")
    assert out.endswith(f"1.000  {XRAY.name}\n")


@pytest.mark.slow
def test_a_table_is_trained_on_and_scored(run, tmp_path):
    out = run("finetune_csv.py", "--output", tmp_path / "out", "--images", "60", "--epochs", "1")
    kept, low, high = map(float, re.search(r"test macro AUC (\S+) \((\S+) to (\S+)\), \d+ images", out).groups())
    assert 0 <= low <= kept <= high <= 1
    assert (tmp_path / "out" / "evaluation" / "report.html").is_file()


@pytest.mark.slow
def test_a_student_comes_closer_to_its_teacher(run):
    out = run("distil_own_teacher.py", "--steps", "100", "--size", "64")
    before, after = map(float, re.search(r"(\S+) before, (\S+) after", out).groups())
    assert after < before / 2


@pytest.mark.slow
def test_two_models_are_compared(run, tmp_path):
    out = run("compare_models.py", "--output", tmp_path, "--seeds", "1", "--epochs", "1", "--size", "64")
    gap, low, high = map(float, re.search(r"minus the first (\S+) \((\S+) to (\S+)\)", out).groups())
    assert low <= gap <= high
    assert ("not told apart" in out) == (low <= 0 <= high)
    aucs = [float(value) for value in re.findall(r"macro AUC (\S+) \(", out)]
    assert gap == pytest.approx(aucs[1] - aucs[0], abs=2e-3)


@pytest.mark.slow
def test_torchrun_starts_two(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [EXAMPLES / "two_processes.py", "--output", tmp_path / "run", "--epochs", "1", "--size", "64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^2 process\(es\): validation macro AUC 0\.\d+", done.stdout, re.MULTILINE)) == 1


@pytest.mark.deploy
def test_an_exported_model_is_served_without_torch(tmp_path):
    export(ExportConfig(model=SHIPPED, output=tmp_path / "exported"))
    command = [sys.executable, EXAMPLES / "serve_without_torch.py", tmp_path / "exported", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(mxa.__file__).parents[1])])}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        line = server.stdout.readline()
        assert line.endswith("answers, without PyTorch\n"), line
        ask = partial(urlopen, line.split()[0], timeout=60)
        found = json.load(ask(data=XRAY.read_bytes()))
        assert found == pytest.approx(mxa.predict(XRAY), abs=2e-3)
        with pytest.raises(HTTPError) as refused:
            ask(data=b"no image")
        assert refused.value.code == 400 and "error" in json.load(refused.value)
        assert json.load(ask(data=XRAY.read_bytes())) == found  # it still answers
    finally:
        server.kill()
        server.wait()
