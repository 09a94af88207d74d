"""Mixtures of images, and batches in which rare labels are as frequent as common ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target

from mxa.data import create_dataset, create_transform, make_loader
from mxa.data.loader import TrainSampler, balanced_shares
from mxa.training.engine import mixup
from mxa.training.loop import train
from mxa.utils.errors import InputError

# patients a and b have the first label, b alone the second, c none
TARGETS = np.array([[1, 0], [1, np.nan], [1, 1], [0, 0], [np.nan, 0]], np.float32)
PATIENTS = np.array(["a", "a", "b", "c", "c"])


def test_each_label_then_each_patient_then_each_image_is_as_likely():
    shares = balanced_shares(TARGETS, PATIENTS)
    first, second, none = [1 / 4, 1 / 4, 1 / 2, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1 / 2, 1 / 2]
    np.testing.assert_allclose(shares, np.mean([first, second, none], 0))
    np.testing.assert_allclose(balanced_shares(np.ones((3, 1)), np.array(["a", "a", "b"])), [1 / 4, 1 / 4, 1 / 2])


def test_the_shares_are_those_of_drawing_one_after_the_other():
    rng = np.random.default_rng(0)
    targets, patients = (rng.random((40, 3)) < 0.2).astype(float), rng.integers(0, 15, 40).astype(str)
    groups = [set(np.flatnonzero(column == 1)) for column in targets.T] + [set(np.flatnonzero(~targets.any(1)))]
    wanted = np.zeros(40)
    for group in groups:
        theirs = {patients[row] for row in group}
        for row in group:
            images = sum(patients[other] == patients[row] for other in group)
            wanted[row] += 1 / len(groups) / len(theirs) / images
    np.testing.assert_allclose(balanced_shares(targets, patients), wanted)
    assert wanted.sum() == pytest.approx(1)


def test_rows_are_drawn_by_their_shares_and_shared_by_processes(made_nih, monkeypatch):
    dataset = create_dataset("nih", made_nih())
    dataset.seed = 3
    shares = np.arange(len(dataset), dtype=float)
    counts = np.zeros(len(dataset))
    for epoch in range(400):
        dataset.set_epoch(epoch)
        sampler = TrainSampler(dataset, 6, shares)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == len(dataset) // 6 * 6 and drawn == list(sampler)
        counts += np.bincount(drawn, minlength=len(dataset))
    expected = shares / shares.sum() * counts.sum()
    assert counts[0] == 0 and (np.abs(counts - expected) < 5 * np.sqrt(expected + 1)).all()
    monkeypatch.setattr("mxa.data.loader.world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr("mxa.data.loader.rank", lambda rank=rank: rank)
        halves.append(np.array(list(TrainSampler(dataset, 3, shares))))
    assert sorted(np.concatenate(halves)) == sorted(drawn)


def test_shards_are_read_in_their_order(made_nih, tmp_path):
    from mxa.commands.prepare import PrepareConfig, prepare

    prepare(PrepareConfig(data="nih", root=str(made_nih()), output=tmp_path / "shards", size=32, workers=0))
    dataset = create_dataset("shards", str(tmp_path / "shards"), "train")
    cfg = {"input_size": (1, 24, 24), "mean": (0.5,), "std": (0.5,), "interpolation": "bicubic"}
    with pytest.raises(InputError, match="--sampler needs images as files"):
        make_loader(dataset, create_transform(cfg), 2, is_training=True, shares=np.ones(len(dataset)))


def test_a_mixture_is_timms():
    images, targets = torch.rand(4, 3, 8, 8), (torch.rand(4, 5) < 0.5).float()
    targets[0, 0] = torch.nan
    torch.manual_seed(0)
    mixed, labels = mixup(images, targets, 0.4)
    share = ((mixed - images.flip(0)) / (images - images.flip(0))).median()
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    torch.testing.assert_close(labels, mixup_target(targets, 5, float(share), multi_label=True), equal_nan=True)
    assert labels.isnan().nonzero().tolist() == [[0, 0], [3, 0]]  # the masked cell, and that of its partner
    assert targets.isnan().sum() == 1


def test_shares_follow_beta():
    torch.manual_seed(0)
    ones = torch.cat([torch.ones(1, 1), torch.zeros(1, 1)])
    drawn = torch.stack([mixup(ones, ones, 0.4)[1][0, 0] for _ in range(2000)])
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)


def test_a_run_with_both_can_be_repeated(config, tmp_path):
    from safetensors.torch import load_file

    aids = {"mixup": 0.2, "sampler": "balanced", "epochs": 2}
    train(config(output=tmp_path / "whole", **aids))
    plain = train(config(output=tmp_path / "plain", epochs=2))
    assert plain["epochs"] == 2
    whole, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "plain"))
    assert not all(torch.equal(whole[key], other[key]) for key in whole)
    train(config(output=tmp_path / "again", **aids))
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_file_of_logits_knows_no_mixture(config, tmp_path):
    with pytest.raises(InputError, match=r"--mixup makes images that the teacher of t\.parquet has not seen"):
        train(config(teacher="t.parquet", mixup=0.2))
    with pytest.raises(InputError, match="--mixup must be between 0 and 100"):
        train(config(mixup=-1.0))
