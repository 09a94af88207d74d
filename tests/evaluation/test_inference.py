"""Scoring loads planes to the model's device, and changes no dataset."""

from __future__ import annotations

import pytest
import timm
import torch

from mxa.commands.teach import TeachConfig, teach
from mxa.data import create_dataset
from mxa.evaluation.evaluate import EvaluateConfig, score, score_images
from mxa.models.load import load_model
from mxa.models.weights import save_pretrained, set_label_names


@pytest.fixture
def model(tmp_path) -> str:
    """A folder of untrained weights."""
    network = timm.create_model("test_resnet", num_classes=2)
    set_label_names(network, ("Edema", "Bright"))
    save_pretrained(network, tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("command", ["score_images", "teach"])
def test_planes_go_to_the_models_device(model, table, tmp_path, monkeypatch, crossings, command):
    def first(network, loader, amp):
        assert next(network.parameters()).device.type == next(iter(loader))[0].device.type == "meta"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        if command == "teach":
            monkeypatch.setattr("mxa.commands.teach.predict_logits", first)
            options = {"data": "table", "root": table, "workers": 0, "batch_size": 4, "device": "meta"}
            teach(TeachConfig(teacher=model, output=tmp_path / "t.parquet", **options))
        monkeypatch.setattr("mxa.evaluation.evaluate.predict_logits", first)
        score_images(load_model(model).to("meta"), create_dataset("table", table, "test"), {}, 4, 0)
    assert crossings == [("meta", torch.uint8, (4, 1, 160, 160))]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_scoring_changes_no_dataset(model, table, tmp_path, monkeypatch, skip_bad):
    dataset = create_dataset("table", table, "test")
    dataset.on_bad = "replace"
    before = dict(vars(dataset))
    monkeypatch.setattr("mxa.evaluation.evaluate._each_split", lambda config, run, *rest: run(dataset))
    options = {"data": "table", "root": table, "workers": 0, "skip_bad": skip_bad}
    assert len(score(EvaluateConfig(models=(model,), output=tmp_path, **options), model).logits) == 12
    assert vars(dataset) == before
