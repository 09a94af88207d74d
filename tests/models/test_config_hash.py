"""The hash in a config.json counts for every architecture, and safetensors alone are read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from mxa.models.load import load_model
from mxa.utils.errors import InputError
from mxa.utils.files import digest

from .folders import KINDS, at, sources


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("upper", [False, True])
def test_the_right_hash(kind, upper, folder, hub):
    path = folder(kind)
    known = digest(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text()) | {"sha256": known.upper() if upper else known}
    (path / "config.json").write_text(json.dumps(config))
    for name in sources(path, hub):
        load_model(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlay", [None, {"crop_pct": 0.9}])
def test_another_hash(kind, overlay, folder, hub):
    path = folder(kind, at("sha256", "1" * 64))
    for name in sources(path, hub):
        with pytest.raises(InputError, match="that of these weights is 1111"):
            load_model(name, **({} if overlay is None else {"pretrained_cfg_overlay": overlay}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pth", "w.pt"])
def test_a_pickle_is_not_read(kind, file, folder, hub):
    path = folder(kind)
    torch.save(load_file(path / "model.safetensors"), path / file)
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=rf"there is no .*mxa convert \S*{file} makes a safe one"):
        load_model(path)
    hub.push("lab/pickle", path)
    with pytest.raises(InputError, match="Entry Not Found"):
        load_model("hf-hub:lab/pickle")
    assert not any(file in asked for asked in hub.asked)


def test_another_safetensors_file_is_not_read(folder):
    path = folder("test_resnet")
    (path / "model.safetensors").rename(path / "open_clip_model.safetensors")
    with pytest.raises(InputError, match="there is no"):
        load_model(path)
