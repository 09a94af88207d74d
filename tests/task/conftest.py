"""TorchXRayVision's networks and a cache of their files."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mxa.labels import CHEXPERT
from mxa.task.teacher import Teacher

from .teachers import IMAGENET, gray, xrv_input


@pytest.fixture(scope="session")
def models():
    with warnings.catch_warnings():
        import torchxrayvision
    return torchxrayvision.models


@pytest.fixture(scope="session")
def network(models) -> nn.Module:
    """TorchXRayVision's own, with statistics and a head that give logits of both signs."""
    torch.manual_seed(0)
    model = models.DenseNet()
    nn.init.normal_(model.classifier.weight, std=0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(xrv_input(gray()))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@pytest.fixture(scope="session")
def files(network, models, tmp_path_factory) -> Path:
    """A home folder with TorchXRayVision's cache: ``chex`` in the legacy format, ``nih`` in the zip format."""
    home = tmp_path_factory.mktemp("home")
    cache = home / ".torchxrayvision" / "models_data"
    cache.mkdir(parents=True)
    for name, zipped in (("chex", False), ("nih", True)):
        path = cache / models.model_urls[name]["weights_url"].rpartition("/")[2]
        torch.save(network, path, _use_new_zipfile_serialization=zipped)
    return home


@pytest.fixture
def home(files, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(files))
    return files


@pytest.fixture(scope="session")
def chex(files) -> Teacher:
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(files))
    teacher = Teacher("xrv:densenet121-res224-chex", CHEXPERT, IMAGENET)
    patch.undo()
    return teacher
