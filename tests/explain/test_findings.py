"""Where a finding head sees findings, as tensors and as pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import mxa
from mxa.commands.explain import ExplainConfig, explain
from mxa.commands.predict.command import PredictConfig, predict
from mxa.explain import FindingAt, draw_findings, predict_findings
from mxa.layers import attach_finding_head
from mxa.models import save_pretrained
from mxa.utils.errors import InputError

NAMES = ("No Finding", "Mass", "Edema", "Effusion", "Nodule")


@pytest.fixture
def model() -> nn.Module:
    """A network with a finding head whose boxes differ, and whose head counts."""
    torch.manual_seed(0)
    model = timm.create_model("efficientvit_ml_m0_mxa", num_classes=5, img_size=96).eval()
    model.pretrained_cfg["input_size"] = (3, 96, 96)
    mxa.set_label_names(model, NAMES)
    attach_finding_head(model, dim=8)
    nn.init.normal_(model.finding_head.head.prior, std=2.0)
    nn.init.ones_(model.finding_head.gate)
    return model


@pytest.fixture
def film(tmp_path):
    """A film of another shape than the model's input."""
    path = tmp_path / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8)).save(path)
    return path


def test_the_head_s_own_numbers(model):
    x = torch.randn(2, 3, 96, 96)
    model.train()
    found = predict_findings(model, x)
    assert model.training and found.rows == [1, 2, 3, 4]
    with torch.no_grad():
        logits, own = model.eval()(x, return_findings=True)
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.boxes, own.boxes)
    assert found.heat_maps.shape == (2, 4, 96, 96)
    peaks = found.heat_maps.flatten(2).argmax(2)
    cells = own.scores.flatten(2).argmax(2)  # of 12 x 12
    assert ((peaks // 96 // 8 - cells // 12).abs() <= 1).all() and ((peaks % 96 // 8 - cells % 12).abs() <= 1).all()
    with pytest.raises(InputError, match="no finding head: train one with --finding-head"):
        predict_findings(timm.create_model("efficientvit_ml_m0", num_classes=2), x)


def test_a_picture(tmp_path):
    heat = torch.zeros(20, 30)
    heat[5:9, 10:14] = 1.0
    film = Image.fromarray(np.full((100, 150), 90, np.uint8))
    found = FindingAt(heat, torch.tensor([0.3, 0.2, 0.5, 0.5]))
    draw_findings(film, {"Mass 0.91": found}, tmp_path / "with.png", "film")
    draw_findings(film, {}, tmp_path / "without.png", "film")
    one, other = (np.asarray(Image.open(tmp_path / name).convert("RGB"), int) for name in ("with.png", "without.png"))
    changed = np.argwhere(np.abs(one - other).sum(2) > 40)
    high, wide = one.shape[:2]
    (top, left), (bottom, right) = changed.min(0) / (high, wide), changed.max(0) / (high, wide)
    assert 0.25 < left < 0.35 and 0.45 < right < 0.6 and top > 0.1 and bottom < 0.6


def test_explained_and_predicted(model, film, tmp_path):
    save_pretrained(model, tmp_path / "run")
    ((row,)) = [explain(ExplainConfig((film,), tmp_path / "why", model=str(tmp_path / "run"), labels="Mass,Nodule"))]
    written = json.loads((tmp_path / "why" / "film.json").read_text())
    assert written == json.loads(json.dumps(row[0])) and (tmp_path / "why" / "film.png").is_file()
    for label in ("Mass", "Nodule"):
        x1, y1, x2, y2 = written["labels"][label]["finding"]["box"]
        x, y = written["labels"][label]["finding"]["peak"]
        assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 120 and 0 < x < 160 and 0 < y < 120
    predict(PredictConfig((film,), str(tmp_path / "run"), rois=tmp_path / "rois.png"))
    assert Image.open(tmp_path / "rois.png").size[0] > 300
