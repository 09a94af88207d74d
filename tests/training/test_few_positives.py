"""Weights of positives, and what is said where a label has few."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import yaml

from mxa.data import create_dataset
from mxa.task import masked_bce_with_logits
from mxa.training.checks import few_positives
from mxa.training.loop import build_model, train
from mxa.training.start import create_task, positive_weights
from mxa.utils.errors import InputError

LABELS = ("Edema", "Hernia", "Pleural Effusion")
TARGETS = np.array([[1, 0, np.nan], [0, 0, 1], [0, 0, 0], [np.nan, 0, 0]], float)


def test_weights_of_positives():
    assert positive_weights(None, LABELS, TARGETS) is None
    assert positive_weights("balanced", LABELS, TARGETS).tolist() == [2, 1, 2]  # Hernia has no positive
    assert positive_weights("Effusion: 3, Hernia: 2.5", LABELS, TARGETS).tolist() == [1, 2.5, 3]
    assert positive_weights({"Edema": 4}, LABELS, TARGETS).tolist() == [4, 1, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("balance", 'unless it is balanced, must be like "name: value'),
        ("Mass: 2", "no label Mass, only Edema, Hernia, Pleural Effusion"),
        ("Edema: 0", "Edema must be a number above 0, got 0"),
        ("Edema: yes", "must be a number above 0"),
        ("Edema: .inf", "must be a number above 0"),
    ],
)
def test_wrong_weights_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        positive_weights(given, LABELS, TARGETS)


def test_the_loss_of_a_run_has_them(config, tmp_path):
    settings = config(pos_weight="balanced")
    dataset = settings.resolved().open("train")
    model = build_model(settings, dataset.labels)
    task, _, _ = create_task(settings, model, dataset, {})
    images, target = torch.rand(4, 3, 64, 64), torch.from_numpy(dataset.records.targets[:4])
    task.eval()
    result = task(images, target)
    present = ~np.isnan(dataset.records.targets)
    share = (dataset.records.targets > 0.5).sum(0) / present.sum(0)
    share[share == 0] = 0.5  # Mass has no positive: weight 1
    wanted = masked_bce_with_logits(result["output"], target, pos_weight=torch.from_numpy((1 - share) / share))
    assert result["loss"].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_run_keeps_them_and_says_which_labels_are_few(config, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mxa"):
        train(config(pos_weight="Mass: 2", epochs=1))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["pos_weight"] == "Mass: 2"
    assert "labels with few positives: " in caplog.text and "--eval-metric loss" in caplog.text
    with pytest.raises(InputError, match="--pos-weight goes with --loss bce, not with asl"):
        train(config(pos_weight="balanced", loss="asl", output=tmp_path / "other"))


def test_few_positives_are_named():
    dataset = create_dataset("phantom", split="val")
    counts = dict(zip(dataset.labels, (dataset.records.targets > 0.5).sum(0), strict=True))
    said = few_positives(dataset)
    for label, count in counts.items():
        assert (f"{label} ({count})" in said) == (0 < count < 20)
