"""Teachers from TorchXRayVision's files: found by name or path, hashed, and refused if they hold anything else."""

from __future__ import annotations

import hashlib
import logging
import os
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mxa.labels import CHEXPERT
from mxa.task.teacher import Teacher
from mxa.utils.errors import InputError

from .teachers import IMAGENET, batch, file_of, gray, xrv_input


@pytest.mark.parametrize(("name", "count"), [("densenet121-res224-nih", 7), ("nih", 7), ("chex", 11)])
def test_any_name_in_either_format(home, network, name, count):
    teacher = Teacher(f"xrv:{name}", CHEXPERT, IMAGENET, no_finding="mask")
    assert teacher.adapter.mask.sum() == count
    for key, value in network.state_dict().items():
        assert torch.equal(teacher.model.state_dict()[key], value), key


def test_file(home, network, models, tmp_path):
    """A file has its names from the registry by its own name, else from what it holds."""
    assert Teacher(f"xrv:{file_of(home, 'chex')}", CHEXPERT, IMAGENET).adapter.mask.sum() == 12
    mine = tmp_path / "mine.pt"
    torch.save(network, mine)
    with pytest.raises(InputError, match="18 outputs and 0 names: give names"):
        Teacher(f"xrv:{mine}", CHEXPERT, IMAGENET)
    network.pathologies = list(CHEXPERT) + [""] * 4
    torch.save(network, mine)
    del network.pathologies
    assert Teacher(f"xrv:{mine}", CHEXPERT, IMAGENET).adapter.mask.all()
    torch.save(network.state_dict(), mine)
    teacher = Teacher(f"xrv:{mine}", CHEXPERT, IMAGENET, names=["Edema"] + [""] * 17)
    assert teacher.adapter.mask.sum() == 2
    with pytest.raises(InputError, match="18 outputs and 1 names"):
        Teacher(f"xrv:{mine}", CHEXPERT, IMAGENET, names=["Edema"])


def test_fine_tuned_head(network, tmp_path):
    """The paper's teacher (appendix P): another classifier for the student's labels."""
    state = network.state_dict() | {"classifier.weight": torch.randn(14, 1024), "classifier.bias": torch.randn(14)}
    torch.save(state, tmp_path / "tuned.pt")
    teacher = Teacher(f"xrv:{tmp_path / 'tuned.pt'}", CHEXPERT, IMAGENET, names=CHEXPERT)
    logits, mask = teacher(batch(gray()))
    assert mask.all()
    features = network.features2(xrv_input(gray()))
    expected = F.linear(features, state["classifier.weight"], state["classifier.bias"])
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-3, atol=1e-3)


def test_resnet(home, models):
    """Its file is a state dict, its input 512."""
    net = models.torchvision.models.resnet50(num_classes=18)
    net.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    url = models.model_urls["resnet50-res512-all"]["weights_url"]
    path = home / ".torchxrayvision" / "models_data" / url.rpartition("/")[2]
    torch.save(net.state_dict(), path)
    teacher = Teacher("xrv:resnet50-res512-all", CHEXPERT, IMAGENET)
    images = gray(512, 1)
    logits, _ = teacher(batch(images))
    assert teacher.input_size == (1, 512, 512)
    with torch.no_grad():
        expected = net.eval()(xrv_input(images))
    edema = models.model_urls["resnet50-res512-all"]["labels"].index("Edema")
    torch.testing.assert_close(logits[:, CHEXPERT.index("Edema")], expected[:, edema], rtol=1e-3, atol=1e-3)
    own = Teacher(models.ResNet(weights="resnet50-res512-all"), CHEXPERT, IMAGENET)
    torch.testing.assert_close(own(batch(images))[0], logits, rtol=0, atol=0)
    path.unlink()


def test_missing_file_names_url_and_path(monkeypatch, tmp_path, models):
    monkeypatch.setenv("HOME", str(tmp_path))
    url = models.model_urls["chex"]["weights_url"]
    path = tmp_path / ".torchxrayvision" / "models_data" / url.rpartition("/")[2]
    with pytest.raises(InputError, match=f"download {re.escape(url)} to {re.escape(str(path))}"):
        Teacher("xrv:densenet121-res224-chex", CHEXPERT, IMAGENET)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="densenet121-res224-chex"):
        Teacher("xrv:densenet121-res224-cheX", CHEXPERT, IMAGENET)


def test_digest_is_logged_kept_and_pinned(home, caplog):
    path = file_of(home, "nih")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with caplog.at_level(logging.INFO, "mxa"):
        teacher = Teacher("xrv:nih", CHEXPERT, IMAGENET, sha256=digest.upper())
    assert teacher.sha256 == digest
    assert digest in caplog.text
    with pytest.raises(InputError, match=f"{digest}, not the {'0' * 64}"):
        Teacher("xrv:nih", CHEXPERT, IMAGENET, sha256="0" * 64)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_file_does_not_run(monkeypatch, tmp_path, models, zipped):
    monkeypatch.setenv("HOME", str(tmp_path))
    marker = tmp_path / "ran"
    path = tmp_path / ".torchxrayvision" / "models_data" / models.model_urls["chex"]["weights_url"].rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(Hostile(marker), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"system"):
        Teacher("xrv:chex", CHEXPERT, IMAGENET)
    with pytest.raises(InputError, match="SHA-256"):  # the pin comes first
        Teacher("xrv:chex", CHEXPERT, IMAGENET, sha256="0" * 64)
    assert not marker.exists()


def test_other_network_is_refused(tmp_path, models):
    torch.save(models.DenseNet(block_config=(6, 12, 32, 32)), tmp_path / "d169.pt")
    with pytest.raises(InputError, match="neither TorchXRayVision's DenseNet-121"):
        Teacher(f"xrv:{tmp_path / 'd169.pt'}", CHEXPERT, IMAGENET)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="neither TorchXRayVision's DenseNet-121"):
        Teacher(f"xrv:{tmp_path / 'other.pt'}", CHEXPERT, IMAGENET)
