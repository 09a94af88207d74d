"""A run that was killed, stopped or continued ends with the bits of one that was not."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxa import cli
from mxa.training.checkpoint import NAME
from mxa.training.loop import TrainConfig, train
from mxa.utils.errors import InputError

from ..waiting import wait_until

OPTIONS = ("--data", "table", "--model", "efficientvit_ml_m0_mxa", "--img-size", "64", "--epochs", "3")
OPTIONS += ("--batch-size", "4", "--ema", "0.9", "--drop-path-rate", "0.2", "--drop-rate", "0.1")
OPTIONS += ("--checkpoint-steps", "1")


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def arguments(table, output, *more) -> list[str]:
    return ["train", *OPTIONS, "--root", str(table), "--output", str(output), *more]


def start(table, output, *more) -> subprocess.Popen:
    command = [sys.executable, "-m", "mxa", *arguments(table, output, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def written(path) -> int:
    """When a file was written; 0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    """A run that nothing interrupts, without worker processes."""
    output = tmp_path_factory.mktemp("whole") / "run"
    cli.main(arguments(table, output, "--workers", "0"))
    return output


def same(one, other) -> None:
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert rows(one / "log.csv") == rows(other / "log.csv")
    a, b = (torch.load(run / NAME, weights_only=True) for run in (one, other))
    for split in ("model", "ema"):
        assert all(torch.equal(a[split][k], b[split][k]) for k in a[split])


@pytest.mark.parametrize("kills", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_random_moments(table, whole, tmp_path, kills):
    moments, run, killed = random.Random(0), tmp_path / "run", 0
    for workers in ("1", "0", "1", "0", "0", "0"):
        process = start(table, run, "--resume", "auto", "--workers", workers)
        before = written(run / NAME)
        wait_until(lambda before=before: written(run / NAME) != before, process)  # it has gone on
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is None and killed < kills:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        _, error = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error
    assert process.returncode == 0 and killed >= 2, "the run ended before it was killed twice"
    same(whole, run)


@pytest.mark.parametrize("send", [os.kill, os.killpg])  # to the main process, or to its workers too
def test_terminated_saves_and_exits_cleanly(table, whole, tmp_path, send, caplog):
    run = tmp_path / "run"
    process = start(table, run, "--workers", "1")
    wait_until((run / "log.csv").exists, process)
    send(process.pid, signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "stopped after epoch" in out and "SIGTERM" in out
    saved = torch.load(run / NAME, weights_only=True)
    assert 0 < saved["epoch"] < 3
    caplog.set_level("INFO", "mxa")
    cli.main(arguments(table, run, "--resume", "auto", "--workers", "0"))
    assert f"resumed from epoch {saved['epoch'] + 1} step {saved['step']}" in caplog.text
    same(whole, run)


def test_auto_starts_goes_on_and_leaves_a_finished_run_alone(config, tmp_path, caplog):
    caplog.set_level("INFO", "mxa")
    first = train(config(resume="auto", epochs=1))
    assert "holds no run to resume: starting" in caplog.text
    before = written(tmp_path / "run" / NAME)
    again = train(config(resume="auto", epochs=1))
    assert "resumed from its end" in caplog.text
    assert written(tmp_path / "run" / NAME) == before
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_a_folder_of_weights_is_no_run_to_resume(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"someone's")
    with pytest.raises(InputError, match=r"holds model\.safetensors"):
        train(config(resume="auto"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, tmp_path, caplog):
    train(config(epochs=3))
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    damaged = tmp_path / "cut" / NAME
    damaged.write_bytes(damaged.read_bytes()[:5000])
    train(config(epochs=3, output=tmp_path / "cut", resume="auto"))
    assert "checkpoint.pt: " in caplog.text and "the one before it is used" in caplog.text
    a, b = (load_file(tmp_path / run / "model.safetensors") for run in ("run", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_full_disk_loses_nothing(config, tmp_path, monkeypatch):
    train(config(epochs=1))
    save, calls = torch.save, []

    def full(state, path):
        calls.append(path)
        save({"half": torch.zeros(1)}, path)
        raise OSError(28, "No space left on device")

    (tmp_path / "run" / "config.yaml").write_text(
        (tmp_path / "run" / "config.yaml").read_text().replace("epochs: 1", "epochs: 2")
    )
    saved = torch.load(tmp_path / "run" / NAME, weights_only=True)
    saved["config"]["epochs"] = 2
    save(saved, tmp_path / "run" / NAME)
    monkeypatch.setattr("mxa.training.checkpoint.torch.save", full)
    with pytest.raises(InputError, match=r"could not be written .*No space left"):
        train(config(epochs=2, resume="auto"))
    monkeypatch.undo()
    assert calls and torch.load(tmp_path / "run" / NAME, weights_only=True)["epoch"] == 1
    assert train(config(epochs=2, resume="auto"))["epochs"] == 2


def test_other_labels_or_another_teacher_do_not_go_on(config, run, table, tmp_path):
    train(config(epochs=1))
    flipped = table.parent / "flipped.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    flipped.write_text("\n".join(",".join([*row[:-1], row[-1].translate({48: "1", 49: "0"})]) for row in lines))
    with pytest.raises(InputError, match="other images, labels or logits of the teacher than the run had"):
        train(config(epochs=1, root=flipped, resume="auto"))
    teacher = shutil.copytree(run, tmp_path / "teacher")
    options = {"epochs": 1, "teacher": str(teacher), "output": tmp_path / "taught"}
    train(config(**options))
    weights = load_file(teacher / "model.safetensors")
    save_file({k: v + 1 if v.is_floating_point() else v for k, v in weights.items()}, teacher / "model.safetensors")
    with pytest.raises(InputError, match=r"other weights of the teacher \(its SHA-256\) than"):
        train(config(**options, resume="auto"))


@pytest.fixture(scope="module")
def once(table, tmp_path_factory):
    """A run of one epoch."""
    output = tmp_path_factory.mktemp("once") / "run"
    small = {"img_size": 64, "epochs": 1, "batch_size": 8, "workers": 0}
    train(TrainConfig(model="efficientvit_ml_m0_mxa", data="table", root=table, output=output, **small))
    return output


@pytest.mark.parametrize(
    "change",
    [
        *(lambda state, key=key: state.pop(key) for key in ("config", "same", "bad", "model", "optimizer", "best")),
        lambda state: state["model"].pop("head.linear.weight"),
        lambda state: state.update(model=3),
        lambda state: state.update(config=None),
        lambda state: state.update(bad=[10**6]),
        lambda state: state["optimizer"].update(param_groups=[]),
    ],
)
def test_a_checkpoint_without_what_it_should_hold(change, once, tmp_path, config):
    folder = shutil.copytree(once, tmp_path / "run")
    state = torch.load(folder / NAME, weights_only=True)
    change(state)
    torch.save(state, folder / NAME)
    with pytest.raises(InputError, match=r"is no checkpoint of a run|is of another model") as error:
        train(config(epochs=1, resume="auto"))
    assert "\n" not in str(error.value)


def test_a_run_that_has_lost_its_weights_says_so(once, tmp_path, config):
    folder = shutil.copytree(once, tmp_path / "run")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has lost its model\.safetensors"):
        train(config(epochs=1, resume="auto"))


def test_a_damaged_log_is_named(once, tmp_path, config):
    folder = shutil.copytree(once, tmp_path / "run")
    (folder / "log.csv").write_bytes(b'\xff\xfe,,\n"')
    with pytest.raises(InputError, match=r"log\.csv is damaged: delete it"):
        train(config(epochs=1, resume="auto"))
