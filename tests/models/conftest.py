from __future__ import annotations

import json
import shutil

import pytest
import torch

from mxa.models import save_pretrained

from .folders import KINDS, build


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads gain nothing on batches this small, and on a shared machine they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("saved")
    for kind in KINDS:
        save_pretrained(build(kind), root / kind)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """Copies the folder of a kind, and edits its configuration."""

    def make(kind, change=None):
        path = shutil.copytree(saved / kind, tmp_path / kind)
        config = json.loads((path / "config.json").read_text())
        if change is not None:
            config = change(config) or config
        (path / "config.json").write_text(json.dumps(config))
        return path

    return make
