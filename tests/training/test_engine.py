"""Precision, accumulation, several processes: what changes the speed does not change the result."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mxa.data import create_dataset
from mxa.evaluation.evaluate import score_images
from mxa.models.load import load_model
from mxa.task import masked_bce_with_logits
from mxa.training import loop
from mxa.training.config import check_config
from mxa.training.engine import deterministic
from mxa.training.loop import fit, train
from mxa.utils.errors import InputError

PLAIN = {"model": "test_vit", "img_size": 64, "lr": 1e-3}  # no batch norm, nothing random


def weights(path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def log(path) -> list[dict[str, str]]:
    with (path / "log.csv").open() as file:
        return list(csv.DictReader(file))


def assert_close(one, other, tolerance=1e-5) -> None:
    a, b = weights(one), weights(other)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance)
    for x, y in zip(log(one), log(other), strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert float(x[name]) == pytest.approx(float(y[name]), rel=1e-4, abs=1e-5), name


def train_in_two_processes(one, output) -> str:
    """Trains as a configuration says, into another folder; returns what is printed."""
    two = {k: str(v) if k in ("output", "root") else v for k, v in asdict(one).items() if k != "output"}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**two, "scale": list(one.scale), "ratio": list(one.ratio)}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "mxa"]
    command += ["train", "--config", str(path), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_are_one(config, run, tmp_path):
    """Masked labels, a teacher and an average: losses, metrics and weights of the same global batches."""
    options = {**PLAIN, "teacher": str(run), "ema": 0.9, "agc": 0.05, "opt": "sgd", "lr": 0.05}
    one = config(**options)
    train(one)
    assert train_in_two_processes(one, tmp_path / "two").count("kept: epoch") == 1
    assert_close(tmp_path / "run", tmp_path / "two")
    assert log(tmp_path / "run")[-1]["eval_macro_auc"] == log(tmp_path / "two")[-1]["eval_macro_auc"]


def test_two_processes_validate_the_model_that_is_kept(config, table, tmp_path):
    """Its batch norms have one process's statistics, in both processes."""
    train_in_two_processes(config(model="resnet10t", img_size=32, epochs=1, ema=0.9), tmp_path / "two")
    model = load_model(tmp_path / "two")
    found = score_images(model, create_dataset("table", table, "val"), {}, 4, 0)
    loss = masked_bce_with_logits(torch.from_numpy(found.logits), torch.from_numpy(found.targets))
    assert float(log(tmp_path / "two")[0]["eval_loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_parts_of_a_batch_are_the_batch(config, tmp_path):
    options = {**PLAIN, "labels": "Bright", "opt": "sgd", "lr": 0.05}  # no label is masked
    train(config(**options))
    train(config(**options, grad_accum=4, output=tmp_path / "splits"))
    assert_close(tmp_path / "run", tmp_path / "splits")
    with pytest.raises(InputError, match="--batch-size 8 is not divisible by 3"):
        train(config(grad_accum=3, output=tmp_path / "other"))


def test_a_micro_batch_of_one_image_is_refused(config, table, monkeypatch):
    train_set = create_dataset("table", table, "train")  # 24 images
    message = "--batch-size 4 leaves one image to each of 4 micro-batches .*: give --batch-size 8 or more"
    with pytest.raises(InputError, match=message):
        train(config(batch_size=4, grad_accum=4))
    with pytest.raises(InputError, match=r"^4 micro-batches .* need two images each.*--batch-size is 4 and"):
        fit(config(batch_size=4, grad_accum=4), train_set)
    with pytest.raises(InputError, match=r"^16 micro-batches .* need two images each.* split has 24: use fewer"):
        fit(config(batch_size=64, grad_accum=16), train_set)
    monkeypatch.setattr("mxa.utils.distributed.world_size", lambda: 2)
    with pytest.raises(InputError, match="--batch-size 2 leaves one image to each of 2 micro-batches"):
        check_config(config(batch_size=2))
    check_config(config(batch_size=4))


def test_fewer_activations_are_the_same_training(config, tmp_path):
    options = {**PLAIN, "opt": "sgd", "lr": 0.05}
    train(config(**options))
    train(config(**options, grad_checkpointing=True, channels_last=True, output=tmp_path / "other"))
    assert_close(tmp_path / "run", tmp_path / "other")
    with pytest.raises(InputError, match="--sync-bn needs several processes on CUDA"):
        train(config(**PLAIN, sync_bn=True, output=tmp_path / "third"))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_is_near(config, tmp_path, amp):
    options = {**PLAIN, "opt": "sgd", "lr": 0.01}
    train(config(**options))
    train(config(**options, amp=amp, output=tmp_path / amp))
    for x, y in zip(log(tmp_path / "run"), log(tmp_path / amp), strict=True):
        assert float(x["train_loss"]) == pytest.approx(float(y["train_loss"]), rel=0.02)
    saved = torch.load(tmp_path / amp / "checkpoint.pt", weights_only=True)
    assert ("scaler" in saved) == (amp == "fp16")
    assert all(v.dtype == torch.float32 for v in weights(tmp_path / amp).values() if v.is_floating_point())


def test_a_loss_scale_is_resumed(config, tmp_path, monkeypatch):
    import mxa.training.loop as job

    options = {**PLAIN, "amp": "fp16", "epochs": 2}
    train(config(**options))
    save = job.save_checkpoint

    def stop(state, run):
        save(state, run)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(**options, output=tmp_path / "cut"))
    monkeypatch.undo()
    train(config(**options, output=tmp_path / "cut", resume="auto"))
    a, b = (torch.load(tmp_path / r / "checkpoint.pt", weights_only=True) for r in ("run", "cut"))
    assert a["scaler"] == b["scaler"]
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])


@pytest.mark.slow
def test_compiled_is_the_same_training(config, tmp_path):
    options = {"model": "efficientvit_ml_m0_mxa", "epochs": 1, "opt": "sgd", "lr": 0.01}
    train(config(**options))
    train(config(**options, compile=True, output=tmp_path / "other"))
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "other").keys()
    for x, y in zip(log(tmp_path / "run"), log(tmp_path / "other"), strict=True):
        assert float(x["train_loss"]) == pytest.approx(float(y["train_loss"]), rel=1e-3)
    other = weights(tmp_path / "other")
    for key, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, other[key], rtol=1e-2, atol=1e-2)


def test_patience(config, tmp_path):
    summary = train(config(**PLAIN, epochs=30, patience=2))
    assert summary["stopped"] == "patience"
    assert summary["epochs"] == summary["epoch"] + 3 < 30
    again = train(config(**PLAIN, epochs=30, patience=2, resume="auto"))
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_the_bad_batch_is_named(config, table, tmp_path, monkeypatch):
    from mxa.task import MultiLabelTask

    forward, calls = MultiLabelTask.forward, []

    def broken(self, *args):
        calls.append(1)
        result = forward(self, *args)
        return {**result, "loss": result["loss"] * (float("nan") if len(calls) == 5 else 1)}

    monkeypatch.setattr(MultiLabelTask, "forward", broken)
    with pytest.raises(InputError, match=r"nan in epoch 2, step 2 \(its images: (\S+)\.png, (\S+)\.png") as error:
        train(config(workers=1))
    monkeypatch.undo()
    from mxa.data.loader import TrainSampler

    dataset = create_dataset("table", table, "train")
    dataset.seed = 0
    dataset.set_epoch(1)
    rows = TrainSampler(dataset, 8).rows(1)
    assert all(dataset.records.path(int(row)) in str(error.value) for row in rows[:3])


def test_every_loss_is_checked_once(config, monkeypatch):
    checked, check = [], loop.check_losses

    def watched(losses, first, epoch, *args):
        checked.append((epoch, first, len(losses)))
        check(losses, first, epoch, *args)

    monkeypatch.setattr(loop, "check_losses", watched)
    train(config(**PLAIN))
    assert checked == [(epoch, step, 1) for epoch in range(2) for step in range(3)]


def test_tensorboard_and_summary(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = train(config(**PLAIN, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([float(row["train_loss"]) for row in log(tmp_path / "run")])
    assert summary["epochs"] == 2 and summary["images_per_second"] > 0 and summary["processes"] == 1


def test_deterministic_is_undone(config):
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    train(config(**PLAIN, deterministic=True, epochs=1))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("loss", ["asl", "poly", "twoway", "zlpr", "db"])
def test_timms_losses_learn(config, tmp_path, loss, caplog):
    caplog.set_level(logging.ERROR)
    train(config(**PLAIN, loss=loss, epochs=3))
    values = [float(row["train_loss"]) for row in log(tmp_path / "run")]
    assert values[-1] < values[0]


def test_fit_takes_a_seedless_dataset_and_leaves_it_so(config, table):
    sets = [create_dataset("table", table, split) for split in ("train", "val")]
    before = [dict(vars(dataset)) for dataset in sets]
    assert fit(config(**PLAIN, epochs=1), *sets)["epochs"] == 1
    assert [vars(dataset) for dataset in sets] == before and sets[0].seed is None


def test_planes_go_to_the_device(config, table, monkeypatch, crossings):
    devices, make = [], loop.make_loader
    monkeypatch.setattr(loop, "make_loader", lambda *args, **kw: devices.append(kw["device"]) or make(*args, **kw))
    fit(config(**PLAIN, epochs=1, grad_accum=2), create_dataset("table", table, "train"))
    assert crossings == [("cpu", torch.uint8, (4, 1, 64, 64))] * 6
    train(config(**PLAIN, epochs=1, output=config().output / "validated"))
    assert devices == [torch.device("cpu")] * 3
