"""The code of docs/clients.md, run as it stands there, and what it must give."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import mxa
from mxa import cli
from mxa.explain import grad_cam
from mxa.metrics import auroc
from mxa.models.hub import SHIPPED
from mxa.models.load import load_model

ROOT = Path(__file__).parents[2]
XRAY = "examples/images/00001373_038.jpg"
BLOCK = re.compile(r"^```(python)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def plain() -> dict[str, float]:
    """The probabilities of the X-ray, not calibrated."""
    return mxa.predict(XRAY, load_model(SHIPPED))


def check_xrv(names):
    pixels = np.asarray(Image.open(XRAY).convert("L"), dtype=np.float32) / 255  # as load_image has them
    found = {name: score for name, score in names["found"].items() if name}
    assert found == pytest.approx(mxa.predict(pixels), abs=1e-5)
    assert names["scores"].shape == (1, 19) and names["vectors"].shape == (1, 192)
    assert f"{found['Atelectasis']:.2f}" == re.search(r'"Atelectasis": (0\.\d\d)', PAGE)[1]


def check_transformers(names):
    found, expected = {one["label"]: one["score"] for one in names["found"]}, plain()
    assert len(found) == 5 and found == pytest.approx({label: expected[label] for label in found}, abs=0.02)
    shown = re.search(r'"label": "(.+?)", "score": (.+?)}', PAGE)
    first = names["found"][0]
    assert (first["label"], f"{first['score']:.2f}") == shown.groups()


def check_timm(names):
    assert len(names["losses"]) == 6 and names["losses"][-1] < names["losses"][0]
    averaged, model = names["average"].module, names["model"]
    assert not torch.equal(averaged.get_classifier().weight, model.get_classifier().weight)


def check_monai(names):
    expected = torch.tensor(list(plain().values()))
    torch.testing.assert_close(names["logits"][0].sigmoid(), expected, atol=0.02, rtol=0)


def check_grad_cam(names):
    heat, x = names["heat"], names["x"]
    assert heat.shape == (160, 160) and heat.min() == 0 and heat.max() == pytest.approx(1, abs=0.01)
    ours = grad_cam(load_model(SHIPPED), x, ["Effusion"], layer="stages.2")[0, 0].numpy()
    assert np.corrcoef(heat.ravel(), ours.ravel())[0, 1] > 0.5


def check_captum(names):
    change, x, model = names["change"], names["x"], names["model"]
    hidden = x.clone()
    hidden[..., 64:96, 64:96] = 0
    with torch.no_grad():
        difference = (model(x) - model(hidden))[0, names["effusion"]]
    assert change.shape == x.shape
    torch.testing.assert_close(change[0, 0, 80, 80], difference, atol=1e-4, rtol=1e-3, check_dtype=False)


def check_torchmetrics(names):
    scores, truth = names["scores"].numpy(), names["truth"].numpy()
    expected = np.array([auroc(*columns) for columns in zip(scores.T, truth.T, strict=True)])
    known = names["known"].numpy()
    assert known.sum() == 8 and np.isnan(expected[~known]).all() and np.isfinite(expected[known]).all()
    np.testing.assert_allclose(names["aucs"].numpy(), expected[known], atol=1e-6)


def check_exported(names):
    found = dict(zip(names["labels"], names["probabilities"].tolist(), strict=True))
    x = torch.from_numpy(names["gray"]).float()[None, None]
    # columns, then rows, in whole gray levels; Pillow differs by up to 2
    for height in (len(names["gray"]), 160):
        x = F.interpolate(x, (height, 160), mode="bicubic", antialias=True).clamp(0, 255).round()
    assert found == pytest.approx(mxa.predict(Image.fromarray(x[0, 0].byte().numpy())), abs=5e-4)


CHECKS = {
    "TorchXRayVision": check_xrv,
    "transformers": check_transformers,
    "timm": check_timm,
    "The loops of others": check_monai,
    "pytorch-grad-cam": check_grad_cam,
    "captum": check_captum,
    "torchmetrics": check_torchmetrics,
    "ONNX Runtime": check_exported,
    "OpenVINO": check_exported,
}
DEPLOYED = ("ONNX Runtime", "OpenVINO")


@pytest.mark.parametrize(
    "section",
    [pytest.param(name, marks=pytest.mark.deploy if name in DEPLOYED else pytest.mark.clients) for name in CHECKS],
)
def test_a_section_does_what_it_says(section, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    for language, text in BLOCK.findall(SECTIONS[section]):
        if language:
            exec(compile(text, f"docs/clients.md, {section}", "exec"), names)
        elif text.startswith("mxa "):
            cli.main(shlex.split(text)[1:])
    CHECKS[section](names)


@pytest.mark.clients
def test_every_section_is_run():
    assert set(SECTIONS) == set(CHECKS)
