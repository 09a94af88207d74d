"""``mxa predict --output`` as processes: kills, a full disk, memory, a terminal, and what is imported."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mxa.commands.predict.command import PredictConfig, predict
from mxa.utils.errors import InputError

from ..test_shown import children, gone
from ..waiting import wait_until

SCRIPT = Path(__file__).with_name("fake_predictor.py")


def start(*arguments, **env) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "predict", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env={**os.environ, **{k: str(v) for k, v in env.items()}}, **pipes)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


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


def test_no_torch_where_the_runtime_needs_none(images, tmp_path):
    for arguments in (("--runtime", "onnx"), ("--runtime", "onnx", "--output", tmp_path / "a.csv")):
        status, out, error = ended(start(images / "000.png", "--model", "fake", *arguments))
        assert status == 0, error
        assert "imported: []" in out
