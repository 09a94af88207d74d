"""The weights that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

import mxa
from mxa.cli import main
from mxa.commands.predict.command import PredictConfig, predict
from mxa.evaluation.calibrate import find_calibration
from mxa.labels import NIH
from mxa.models import hub as weights
from mxa.models.hub import SHIPPED, WeightsError, manifest, packaged
from mxa.models.load import create, init_weights
from mxa.utils.errors import InputError

IMAGES = Path(__file__).parents[2] / "examples" / "images"


def test_they_need_no_network_and_are_checked(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setenv("MXA_HUB_ORG", "lab")  # is not asked for them
    model = timm.create_model(SHIPPED, pretrained=True)
    assert mxa.label_names(model) == NIH and model.img_size == 160
    assert model.pretrained_cfg["tag"] == "r160_nih8k" and next(model.parameters()).dtype == torch.float32
    monkeypatch.setitem(manifest()[SHIPPED], "sha256", "0" * 64)
    with pytest.raises(WeightsError, match="install mxa again"):
        timm.create_model(SHIPPED, pretrained=True)


def test_the_manifest_says_what_they_are():
    entry, file = manifest()[SHIPPED], packaged(manifest()[SHIPPED])
    assert file.stat().st_size == entry["size"] < 5e6 and weights.digest(file) == entry["sha256"]
    assert entry["metrics"]["images"] == 2442 and entry["metrics"]["split"] == "test"
    assert timm.get_pretrained_cfg(SHIPPED.partition(".")[0]).tag == "chexpert"  # they are never the default
    assert SHIPPED in timm.list_pretrained("efficientvit_ml*")


def test_predict_uses_them_by_default(capsys):
    files = tuple(sorted(IMAGES.glob("*.jpg")))
    found = {Path(r["file"]).name: r["probabilities"] for r in predict(PredictConfig(files))}
    assert len(found) == 4 and all(list(p) == list(NIH) for p in found.values())
    assert found["00001369_000.jpg"]["Cardiomegaly"] > found["00001340_000.jpg"]["Cardiomegaly"]
    main(["predict", str(files[0]), "--format", "json"])
    assert json.loads(capsys.readouterr().out)[0]["probabilities"] == pytest.approx(found[files[0].name], abs=1e-5)


def test_they_come_with_a_calibration(capsys, monkeypatch):
    image = str(min(IMAGES.glob("*.jpg")))
    main(["predict", image, "--calibrated", "youden", "--format", "json"])
    found = json.loads(capsys.readouterr().out)[0]
    calibration = find_calibration(SHIPPED)
    assert set(calibration.thresholds["youden"]) <= set(NIH) and len(calibration.thresholds["youden"]) >= 8
    for label, threshold in calibration.thresholds["youden"].items():
        assert (label in found["positive"]) == (found["probabilities"][label] >= threshold)
    assert calibration.provenance["split"] == "val" and calibration.provenance["images"] == 532
    monkeypatch.setitem(manifest()[SHIPPED], "sha256", "0" * 64)
    with pytest.raises(InputError, match="was made for other weights"):
        find_calibration(SHIPPED)


def test_they_are_a_start_for_other_labels():
    model = create("efficientvit_ml_m0_mxa", 224, num_classes=2)
    mxa.set_label_names(model, ("Scoliosis", "Pleural Effusion"))
    filled = init_weights(model, SHIPPED)
    trained = timm.create_model(SHIPPED, pretrained=True)
    row = trained.head.linear.weight[NIH.index("Effusion")]
    assert torch.equal(model.head.linear.weight[1], row) and "stages.0.blocks.0.mixer.mxa.ls.gamma" in filled
    model = mxa.load_labels(trained, ["Edema", "Pneumonia"])
    assert model.num_classes == 2
