"""A Hub on a local port, and the real client that asks it."""

import subprocess
import sys

import pytest
import timm
from huggingface_hub import constants

import mxa
from mxa.models import hub as weights
from mxa.models import save_pretrained

from ..contracts import randomise
from .server import Hub

NAME = "efficientvit_ml_m0_mxa.chexpert"
REPO = f"lab/{NAME}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server; this process's client asks it, with a cache of its own and no token."""
    server = Hub()
    for name in ("HF_TOKEN", "MXA_HUB_ORG", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    yield server
    server.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder of weights for CheXpert."""
    folder = tmp_path_factory.mktemp("weights") / "m0"
    model = randomise(timm.create_model("efficientvit_ml_m0_mxa"))
    mxa.set_label_names(model, mxa.labels.CHEXPERT)
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def published(hub, trained, monkeypatch):
    """The weights on the Hub, and a manifest and a configuration that name them."""
    commit = hub.push(REPO, trained)
    path = trained / "model.safetensors"
    known = {"repo": REPO, "revision": commit, "sha256": weights.digest(path), "size": path.stat().st_size}
    entry = {**weights.manifest()[NAME], **known}
    monkeypatch.setitem(weights.manifest(), NAME, entry)
    return {"hf_hub_id": f"{REPO}@{commit}", "hf_hub_filename": "model.safetensors"}


@pytest.fixture
def python(hub, tmp_path):
    """Starts Python processes whose client asks the server."""

    def start(code: str, **env) -> subprocess.Popen:
        import os

        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", **env}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MXA_"))}
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={**clean, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
