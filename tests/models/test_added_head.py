"""The finding head that comes with the small model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import mxa
from mxa.data import create_transform
from mxa.explain import predict_findings
from mxa.layers.attach import finding_rows
from mxa.models import add_finding_head, finding
from mxa.models.hub import SHIPPED, WeightsError
from mxa.models.load import load_model

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "images").glob("*.jpg"))


@pytest.fixture
def small():
    return timm.create_model(SHIPPED, pretrained=True).eval()


@torch.no_grad()
def test_the_outputs_do_not_change(small):
    images = torch.rand(2, 3, 160, 160)
    before = small(images)
    logits, found = add_finding_head(small)(images, return_findings=True)
    torch.testing.assert_close(logits, before)
    assert [mxa.label_names(small)[row] for row in finding_rows(small)][:2] == ["Atelectasis", "Cardiomegaly"]
    assert found.boxes.shape == (2, 8, 4) and not small.training
    assert (found.boxes[..., 2:] > found.boxes[..., :2]).all()


def test_a_heart_is_found_in_films_that_the_head_has_not_seen(small):
    """Its box holds a point in the heart of each film, marked by eye, and much less than the film."""
    add_finding_head(small)
    hearts = {"00001340_000": 0.65, "00001369_000": 0.45, "00001373_038": 0.65, "00001429_002": 0.65}
    for path in EXAMPLES:
        found = predict_findings(small, create_transform(small)(Image.open(path).convert("L"))[None])
        left, top, right, bottom = found.boxes[0, 1].tolist()
        assert left < 0.55 < right and top < hearts[path.stem] < bottom, path.name
        assert (right - left) * (bottom - top) < 0.4, path.name


def test_only_that_model_has_it(small):
    for other in (timm.create_model("efficientvit_ml_m0_mxa", num_classes=15), timm.create_model("resnet10t")):
        with pytest.raises(ValueError, match="train one for another model"):
            add_finding_head(other)
    with pytest.raises(ValueError, match="has a finding head already"):
        add_finding_head(add_finding_head(small))


def test_a_damaged_file_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "__file__", str(tmp_path / "finding.py"))
    with pytest.raises(WeightsError, match="there is no"):
        add_finding_head(small)
    original = next(mxa.models.__path__.__iter__())
    name = f"{SHIPPED}.finding.safetensors"
    shutil.copy(f"{original}/{name}", tmp_path / name)
    with (tmp_path / name).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(WeightsError, match="damaged or was replaced"):
        add_finding_head(small)
    assert finding_rows(small) is None


def test_the_commands_ask_for_it():
    assert finding_rows(load_model(SHIPPED)) is None
    assert finding_rows(load_model(SHIPPED, finding_head=True)) is not None
