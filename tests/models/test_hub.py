"""Weights from a Hub: found, cached, checked, refused."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

import mxa
from mxa.data import create_transform
from mxa.data.collections.phantom import draw
from mxa.models import hub as weights
from mxa.models import save_pretrained
from mxa.models.hub import WeightsError
from mxa.models.load import load_model
from mxa.utils.errors import InputError

from ..conftest import HUB_NAME as NAME
from ..conftest import HUB_REPO as REPO
from ..contracts import holds

ARCHITECTURE = NAME.partition(".")[0]


def load(overlay=None, name=NAME, **kwargs):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def refuse(message, overlay=None, **kwargs):
    with pytest.raises(WeightsError, match=message) as error:
        load(overlay, **kwargs)
    return str(error.value)


def blob(tmp_path) -> Path:
    return next((tmp_path / "home" / "hub").rglob("*.safetensors")).resolve()


class TestPublished:
    def test_loaded_to_the_bit_then_from_the_cache_then_offline(self, hub, published, trained, monkeypatch):
        model = load(published)
        assert holds(model, load_file(trained / "model.safetensors"))
        assert mxa.label_names(model) == mxa.labels.CHEXPERT
        cfg = model.pretrained_cfg
        assert cfg["hf_hub_id"] == published["hf_hub_id"] and "state_dict" not in cfg and "file" not in cfg
        before = dict(hub.asked)
        assert holds(load(published), model.state_dict())
        assert hub.asked == before  # a pinned revision that is in the cache asks nobody
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert holds(load(published), model.state_dict())

    def test_a_damaged_cache_is_reported(self, published, tmp_path):
        """The hash is checked at every load: size and time of a file say nothing about what is in it."""
        load(published)
        path = blob(tmp_path)
        data, time = bytearray(path.read_bytes()), path.stat().st_mtime_ns
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(time, time))
        message = refuse("is damaged or was replaced", published)
        assert f"delete {path}" in message
        path.unlink()
        load(published)

    def test_a_truncated_cache_is_reported(self, published, tmp_path):
        load(published)
        path = blob(tmp_path)
        path.write_bytes(path.read_bytes()[:1000])
        refuse("is damaged or was replaced", published)

    def test_another_hash_than_the_manifests(self, hub, published, monkeypatch):
        monkeypatch.setitem(weights.manifest()[NAME], "sha256", "0" * 64)
        refuse("that of these weights is 0000", published)

    def test_a_download_that_breaks_off_is_resumed(self, hub, published, trained, monkeypatch):
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
        hub.cut = [1_000_000]
        assert holds(load(published), load_file(trained / "model.safetensors"))
        assert hub.ranges and int(hub.ranges[0].removeprefix("bytes=").rstrip("-")) > 0

    def test_an_error_of_the_server_then_success(self, hub, published):
        hub.statuses[("HEAD", "model.safetensors")] = [500]
        load(published)
        assert hub.asked[f"HEAD /{REPO}/resolve/{published['hf_hub_id'].partition('@')[2]}/model.safetensors"] == 2

    def test_a_slow_server(self, hub, published):
        hub.delay = 0.3
        load(published)

    def test_the_registry_has_no_weights_for_it(self):
        assert timm.get_pretrained_cfg(NAME).hf_hub_id is None
        refuse("no weights are published for efficientvit_ml_m0_mxa.chexpert yet")
        shipped = r"efficientvit_ml_m0_mxa\.r160_nih8k, without a download"
        for size, known in (("m0", True), ("m0_mxa", True), ("m1_mxa", False), ("m5", False)):
            with pytest.raises(RuntimeError, match="no weights are published") as error:
                timm.create_model(f"efficientvit_ml_{size}", pretrained=True)
            assert bool(re.search(shipped, str(error.value))) == known

    def test_heads_channels_and_sizes(self, published, trained):
        whole, gray = load(published).eval(), load(published, in_chans=1).eval()
        picture = Image.fromarray(draw(3).image)
        with torch.inference_mode():
            wide, narrow = (model(create_transform(model)(picture)[None]).sigmoid() for model in (whole, gray))
        assert (wide - narrow).abs().max() < 0.005
        assert load(published, num_classes=3).head.linear.weight.shape[0] == 3
        assert load(published, img_size=320).eval()(torch.zeros(1, 3, 320, 320)).isfinite().all()
        features = load(published, features_only=True)
        assert len(features(torch.zeros(1, 3, 224, 224))) == 6

    def test_the_manifests_hash_counts_under_any_name(self, published, monkeypatch):
        name = f"hf-hub:{published['hf_hub_id']}"
        timm.create_model(name, pretrained=True)
        monkeypatch.setitem(weights.manifest()[NAME], "sha256", "0" * 64)
        with pytest.raises(WeightsError, match="that of these weights is 0000"):
            timm.create_model(name, pretrained=True)

    def test_the_hash_in_a_configuration(self, hub, trained, tmp_path):
        metadata = json.loads((trained / "config.json").read_text()) | {"sha256": "1" * 64}
        (tmp_path / "config.json").write_text(json.dumps(metadata))
        (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
        hub.push("lab/damaged", tmp_path)
        for name in (f"local-dir:{tmp_path}", "hf-hub:lab/damaged"):
            with pytest.raises(WeightsError, match="that of these weights is 1111"):
                timm.create_model(name, pretrained=True)

    @pytest.mark.parametrize(("status", "message"), [(403, "your token"), (500, "500 Internal Server Error")])
    def test_a_server_that_refuses(self, hub, published, status, message, monkeypatch):
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        hub.statuses[("HEAD", "model.safetensors")] = [status] * 20
        refuse(message, published)


class TestSlow:
    """What is waited for is said after some seconds, and how long it took in the error."""

    def test_a_slow_answer(self, hub, published, monkeypatch, caplog):
        monkeypatch.setattr(weights, "PATIENCE", 0.1)
        hub.delay = 0.3
        load(published)
        assert f"waiting for model.safetensors of {REPO} from {hub.url}, 0.1 s so far" in caplog.text
        caplog.clear()
        monkeypatch.setattr(weights, "PATIENCE", 30.0)
        load(published)
        assert "waiting" not in caplog.text

    def test_a_server_that_fails_again_and_again(self, hub, published, monkeypatch, caplog):
        monkeypatch.setattr(weights, "PATIENCE", 0.1)
        sleep = time.sleep
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: sleep(min(seconds, 0.15)))
        hub.statuses[("HEAD", "model.safetensors")] = [500] * 20
        message = refuse(r"model\.safetensors of lab/\S+ was not loaded: .*\(after 1 s; ", published)
        assert hub.url in message and caplog.text.count("waiting for model.safetensors") == 1

    def test_a_stall(self, hub, trained, monkeypatch, caplog):
        hub.push("lab/stalls", trained)
        hub.delay = 2.0
        monkeypatch.setattr(weights, "PATIENCE", 0.1)
        without_pauses = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", without_pauses)  # the server's own stay
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.2)
        with pytest.raises(InputError, match=r"config\.json of lab/stalls was not loaded: .*\(after \d+ s; ") as error:
            load_model("hf-hub:lab/stalls")
        assert "\n" not in str(error.value) and hub.url in str(error.value) and "waiting for config.json" in caplog.text


class TestRefused:
    def overlay(self, repo, revision=None):
        return {"hf_hub_id": repo + (f"@{revision}" if revision else "")}

    def test_no_repository(self, hub):
        message = refuse("Repository Not Found", self.overlay("lab/nothing"))
        assert message.startswith("model.safetensors of lab/nothing was not loaded: ") and "\n" not in message
        assert "check the name, the network, HF_TOKEN" in message

    def test_private(self, hub, trained, monkeypatch):
        hub.push("lab/private", trained, token="secret")
        refuse("Repository Not Found", self.overlay("lab/private"))
        monkeypatch.setenv("HF_TOKEN", "secret")
        load(self.overlay("lab/private"))

    def test_gated(self, hub, trained, monkeypatch):
        hub.push("lab/gated", trained, token="secret", gated=True)
        refuse("Cannot access gated repo", self.overlay("lab/gated"))
        monkeypatch.setenv("HF_TOKEN", "other")
        refuse("Cannot access gated repo", self.overlay("lab/gated"))

    def test_no_revision(self, hub, trained):
        hub.push("lab/m0", trained)
        refuse("Revision Not Found", self.overlay("lab/m0", "0" * 40))

    def test_no_safetensors_never_a_pickle(self, hub, tmp_path):
        torch.save({}, tmp_path / "pytorch_model.bin")
        hub.push("lab/pickle", tmp_path)
        refuse("Entry Not Found", self.overlay("lab/pickle"))
        assert not any("pytorch_model" in path for path in hub.asked)

    def test_offline_without_a_cache(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        refuse("of lab/m0 was not loaded: .*please unset the `HF_HUB_OFFLINE`", self.overlay("lab/m0"))
        assert not hub.asked

    def test_no_network(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
        )
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        refuse("of lab/m0 was not loaded: .*HF_ENDPOINT, which is http://127.0.0.1:9", self.overlay("lab/m0"))

    def test_a_url(self):
        refuse("not loaded from a URL", {"url": "https://example.org/w.pth"})


class TestHubName:
    def test_a_model_by_its_repository(self, hub, trained, caplog):
        commit = hub.push("lab/anything", trained)
        with caplog.at_level(logging.INFO, "mxa"):
            model = timm.create_model("hf-hub:lab/anything", pretrained=True)
        assert holds(model, load_file(trained / "model.safetensors")) and commit in caplog.text
        assert model.pretrained_cfg["hf_hub_id"] == "lab/anything" and model.pretrained_cfg["source"] == "hf-hub"

    def test_imagenet_weights(self, hub, tmp_path):
        stock = timm.create_model("efficientvit_m0").state_dict()
        save_file(stock, tmp_path / "model.safetensors")
        hub.push("timm/efficientvit_m0.r224_in1k", tmp_path)
        model = timm.create_model("efficientvit_ml_m0_mxa.r224_in1k", pretrained=True, num_classes=14)
        assert holds(model, {k: v for k, v in stock.items() if not k.startswith("head.linear.")})


class TestOrganisation:
    def test_its_copy_is_read(self, hub, trained, monkeypatch, caplog):
        first = hub.push(REPO, trained)
        monkeypatch.setenv("MXA_HUB_ORG", "lab")
        with caplog.at_level(logging.INFO, "mxa"):
            model = load(num_classes=14)
        assert holds(model, load_file(trained / "model.safetensors"))
        assert model.pretrained_cfg["hf_hub_id"] == f"{REPO}@{first}" and "file" not in model.pretrained_cfg
        assert mxa.label_names(model) == mxa.labels.CHEXPERT
        assert first in caplog.text and weights.digest(trained / "model.safetensors") in caplog.text

    def test_a_revision_of_it(self, hub, trained, tmp_path, monkeypatch):
        first = hub.push(REPO, trained)
        other = tmp_path / "other"
        save_pretrained(timm.create_model(ARCHITECTURE), other)
        hub.push(REPO, other)
        monkeypatch.setenv("MXA_HUB_ORG", f"lab@{first}")
        assert holds(load(), load_file(trained / "model.safetensors"))

    def test_an_explicit_source_wins(self, hub, trained, tmp_path, monkeypatch):
        hub.push(REPO, trained)
        other = timm.create_model(ARCHITECTURE)
        mxa.set_label_names(other, mxa.labels.CHEXPERT)
        save_pretrained(other, tmp_path / "other")
        hub.push("other/x", tmp_path / "other")
        monkeypatch.setenv("MXA_HUB_ORG", "lab")
        assert holds(load({"hf_hub_id": "other/x"}), other.state_dict())
        assert load({"mean": (0.1, 0.2, 0.3)}).pretrained_cfg["mean"] == (0.1, 0.2, 0.3)

    def test_private(self, hub, trained, monkeypatch):
        hub.push(REPO, trained, token="secret")
        monkeypatch.setenv("MXA_HUB_ORG", "lab")
        refuse("Repository Not Found")
        monkeypatch.setenv("HF_TOKEN", "secret")
        load()

    def test_the_manifests_hash_must_match(self, hub, published, monkeypatch):
        monkeypatch.setenv("MXA_HUB_ORG", "lab")
        load()
        monkeypatch.setitem(weights.manifest()[NAME], "sha256", "0" * 64)
        refuse("that of these weights is 0000")

    def test_other_labels(self, hub, tmp_path, monkeypatch):
        model = timm.create_model(ARCHITECTURE)
        mxa.set_label_names(model, [f"label {i}" for i in range(14)])
        save_pretrained(model, tmp_path / "m")
        hub.push(REPO, tmp_path / "m")
        monkeypatch.setenv("MXA_HUB_ORG", "lab")
        refuse(f"holds {ARCHITECTURE} for label 0, .*load it by its own name, hf-hub:{REPO}")

    def test_its_preprocessing_is_taken(self, hub, tmp_path, monkeypatch):
        model = timm.create_model(ARCHITECTURE, img_size=160)
        mxa.set_label_names(model, mxa.labels.CHEXPERT)
        save_pretrained(model, tmp_path / "m")
        hub.push(REPO, tmp_path / "m")
        monkeypatch.setenv("MXA_HUB_ORG", "lab")
        assert load().img_size == 160

    def test_only_what_is_of_the_manifest(self, hub, trained, monkeypatch):
        monkeypatch.setenv("MXA_HUB_ORG", "lab")
        timm.create_model(f"local-dir:{trained}", pretrained=True)
        timm.create_model(ARCHITECTURE)
        assert not hub.asked


class TestFiles:
    """What a folder or a file must be."""

    def folder(self, trained, tmp_path):
        (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
        return tmp_path

    def local(self, folder, message):
        with pytest.raises(RuntimeError, match=message):
            timm.create_model(f"local-dir:{folder}", pretrained=True)

    def test_a_bin_file(self, trained, tmp_path):
        torch.save(load_file(trained / "model.safetensors"), self.folder(trained, tmp_path) / "pytorch_model.bin")
        self.local(tmp_path, "there is no .*model.safetensors")

    def test_a_pickle_by_another_name(self, trained, tmp_path):
        class Trap:
            def __reduce__(self):
                return Path.touch, (tmp_path / "executed",)

        torch.save({"w": Trap()}, self.folder(trained, tmp_path) / "model.safetensors")
        self.local(tmp_path, "is not a whole safetensors file")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x00" * 7,
            struct.pack("<Q", 2**62) + b"{}",
            struct.pack("<Q", 9) + b"not json!",
            struct.pack("<Q", 66) + b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}  ' + b"\x00" * 4,
            struct.pack("<Q", 66) + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,9999999999999]}}' + b"\x00" * 4,
        ],
        ids=["empty", "short", "huge header", "no JSON", "huge shape", "huge offsets"],
    )
    def test_bad_headers(self, trained, tmp_path, data):
        (self.folder(trained, tmp_path) / "model.safetensors").write_bytes(data)
        self.local(tmp_path, "is not a whole safetensors file")

    def test_truncated(self, trained, tmp_path):
        data = (trained / "model.safetensors").read_bytes()
        (self.folder(trained, tmp_path) / "model.safetensors").write_bytes(data[:-100])
        self.local(tmp_path, "is not a whole safetensors file")

    def test_a_stage_is_missing(self, trained, tmp_path):
        state = load_file(trained / "model.safetensors")
        few = {k: v for k, v in state.items() if not k.startswith("stages.1.")}
        save_file(few, self.folder(trained, tmp_path) / "model.safetensors")
        self.local(tmp_path, r"missing: stages\.1\.")

    def test_another_shape(self, trained, tmp_path):
        state = load_file(trained / "model.safetensors")
        state["head.linear.weight"] = torch.zeros(7, 192)
        save_file(state, self.folder(trained, tmp_path) / "model.safetensors")
        self.local(tmp_path, "of another shape: head.linear.weight")

    def test_a_pth_file(self, tmp_path):
        refuse(r"mxa convert .*w\.pth makes a safe one", {"file": str(tmp_path / "w.pth")})


def test_two_processes_share_a_cache(hub, published, python):
    hub.delay = 0.1
    code = f"""
import logging, sys, mxa, timm, torch
from huggingface_hub import constants
overlay = {published!r}
model = timm.create_model({NAME!r}, pretrained=True, pretrained_cfg_overlay=overlay).eval()
print(constants.HF_HUB_CACHE, model(torch.ones(1, 3, 224, 224)).sum().item())
"""
    found = [process.communicate(timeout=120) for process in [python(code), python(code)]]
    assert found[0][0] and found[0][0] == found[1][0], found


def test_nothing_is_asked_at_import_or_without_pretrained(hub, python):
    code = f"import mxa, timm; timm.create_model({NAME!r}); print('done')"
    out, error = python(code, MXA_HUB_ORG="lab").communicate(timeout=120)
    assert out == "done\n", error
    assert not hub.asked
