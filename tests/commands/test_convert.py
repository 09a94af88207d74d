"""Checkpoints of the published code and of Microsoft's EfficientViT, made from our models under their names."""

from __future__ import annotations

import argparse
import errno
import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import mxa
from mxa.commands.convert import ConvertConfig, convert
from mxa.labels import CHEXPERT, NIH
from mxa.models.load import load_model
from mxa.utils.errors import InputError

from ..contracts import images, randomise

MXA = {
    "roi.head.conv1.weight": "roi_predictor.0.weight",
    "roi.head.conv2.weight": "roi_predictor.2.weight",
    "roi.head.conv2.bias": "roi_predictor.2.bias",
    "cbam.channel.fc1.weight": "channel_attention.1.weight",
    "cbam.channel.fc2.weight": "channel_attention.3.weight",
    "cbam.spatial.conv.weight": "spatial_attention.0.weight",
}


def theirs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state_dict with the published code's names."""
    state = {}
    for key, value in model.state_dict().items():
        splits = ["c" if p == "conv" else "l" if p == "linear" else p for p in key.split(".")]
        if splits[0] == "patch_embed":
            splits[1] = str(2 * (int(splits[1][-1]) - 1))
        elif splits[0] == "stages":
            stage = int(splits[1])
            if splits[2] == "downsample":
                at = ["res1", "patchmerge", "res2"].index(splits[3])
            else:
                at = int(splits[3]) + (3 if stage else 0)
            splits[:4] = [f"blocks{stage + 1}", str(at)]
        name = ".".join(splits)
        if ".mxa." in key:
            inner = MXA.get(key.partition(".mxa.")[2])
            if inner is None:
                continue
            name = f"{'.'.join(splits[:2])}.mxa.m.{inner}"
        state[name] = value
        if name.endswith("attention_biases"):
            state[name.replace("attention_biases", "attention_bias_idxs")] = torch.zeros(49, 49, dtype=torch.long)
    return state


def build(name="efficientvit_ml_m0", **kwargs):
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=14, **kwargs)).eval()


def run(content, tmp_path, **options):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    notes = convert(ConvertConfig(path, tmp_path / "out", **options))
    return load_model(tmp_path / "out"), notes


@torch.no_grad()
@pytest.mark.parametrize("name", ["efficientvit_ml_m0", "efficientvit_ml_m1", "efficientvit_ml_m5"])
def test_the_plain_network_to_the_bit(name, tmp_path):
    model = build(name)
    content = {"model": theirs(model), "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    ours, notes = run(content, tmp_path)
    assert torch.equal(ours(images()), model(images()))
    assert mxa.label_names(ours) == CHEXPERT and len(notes) == 1


@torch.no_grad()
def test_two_heads_become_one(tmp_path):
    model, other = build(), build()
    torch.manual_seed(1)
    randomise(other.head)
    state = theirs(model)
    for key, value in other.head.state_dict().items():
        state[f"head_dist.{key.replace('linear', 'l')}"] = value
    ours, notes = run({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path)
    features = model.forward_head(model.forward_features(images()), pre_logits=True)
    expected = (model.head(features) + other.head(features)) / 2
    torch.testing.assert_close(ours(images()), expected, rtol=1e-5, atol=1e-5)
    assert "two heads, averaged as in its eval mode, became one" in notes


@torch.no_grad()
@pytest.mark.parametrize("predictor", ["roi_predictor", "poi_predictor"])
def test_the_published_mxa_says_what_is_not_exact(predictor, tmp_path):
    model = build("efficientvit_ml_m0_mxa", mxa_roi_head="mean", in_chans=1)
    for key, value in model.state_dict().items():
        if key.endswith("ls.gamma") or key.endswith("head.conv1.bias"):
            value.fill_(float(key.endswith("ls.gamma")))  # what the published block has not
    state = {k.replace("roi_predictor", predictor): v for k, v in theirs(model).items()}
    ours, notes = run({"model": state}, tmp_path)
    x = images(channels=1)
    assert torch.equal(ours(x), model(x))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "efficientvit_ml_m0_mxa" and config["model_args"]["mxa_roi_head"] == "mean"
    assert config["pretrained_cfg"]["mean"] == [0.5] and config["pretrained_cfg"]["std"] == [1 / 2048]
    assert sum("not exact" in note for note in notes) == 2 and any("one channel" in note for note in notes)


@torch.no_grad()
def test_other_query_kernels(tmp_path):
    """The published M5 fell back to kernels of 5."""
    model = build("efficientvit_ml_m5", kernels=(5, 5, 5, 5))
    ours, _ = run({"model": theirs(model)}, tmp_path)
    assert torch.equal(ours(images()), model(images()))


@torch.no_grad()
def test_our_own_and_timms_pickles_become_safe(tmp_path):
    model = build("efficientvit_ml_m0_mxa", img_size=160)
    ours, _ = run(model.state_dict(), tmp_path, img_size=160, labels=",".join(f"label {i}" for i in range(14)))
    assert torch.equal(ours(images(size=(160, 160))), model(images(size=(160, 160))))
    assert mxa.label_names(ours)[13] == "label 13"


def test_names_are_those_of_the_file(tmp_path):
    ours, _ = run({"model": build().state_dict(), "labels": NIH[:14]}, tmp_path)
    assert mxa.label_names(ours) == NIH[:14]
    convert(ConvertConfig(tmp_path / "out" / "model.safetensors", tmp_path / "again"))
    assert mxa.label_names(load_model(tmp_path / "again")) == NIH[:14]
    ours, notes = run({f"_orig_mod.{k}": v for k, v in build().state_dict().items()}, tmp_path / "again")
    assert mxa.label_names(ours) is None and "not named" in notes[0]


def test_a_label_space_is_named_as_everywhere(tmp_path):
    ours, _ = run({f"_orig_mod.{k}": v for k, v in build().state_dict().items()}, tmp_path, labels="CheXpert")
    assert mxa.label_names(ours) == CHEXPERT


def test_an_empty_file(tmp_path):
    (tmp_path / "c.pth").touch()
    with pytest.raises(InputError, match="nothing else is opened"):
        convert(ConvertConfig(tmp_path / "c.pth", tmp_path / "out"))


def test_nothing_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    with pytest.raises(InputError, match="nothing else is opened"):
        run({"model": theirs(build()), "args": Trap()}, tmp_path)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "blocks2.4" not in k}, {}, r"missing: stages\.1\.blocks\.1"),
        (lambda s: {"layer1.0.conv1.weight": torch.zeros(1)}, {}, "is not an EfficientViT's: it begins with layer1"),
        (lambda s: {**s, "blocks1.0.dw0.m.c.weight": torch.zeros(70, 1, 3, 3)}, {}, r"widths \(70, 128, 192\)"),
        (lambda s: s, {"labels": "Edema,Mass"}, "2 names for 14 outputs"),
        (lambda s: s, {"labels": "Effusion," * 13 + "Pleural Effusion"}, "mean the same"),
        (lambda s: {k: v for k, v in s.items() if "head" not in k}, {}, "has no head"),
        (lambda s: {**s, "patch_embed.0.c.weight": torch.zeros(8, 2, 3, 3)}, {}, "takes 2 channels"),
        (lambda s: s, {"img_size": 512}, "another --img-size"),
        (lambda s: {"epoch": torch.zeros(1), "x": 3}, {}, "holds no state_dict"),
    ],
)
def test_what_cannot_be_converted(change, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(change(theirs(build())), tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is in use"):
        run({"model": theirs(build())}, tmp_path)


def test_a_safetensors_file(tmp_path):
    save_file(theirs(build()), tmp_path / "w.safetensors")
    convert(ConvertConfig(tmp_path / "w.safetensors", tmp_path / "out"))
    load_model(tmp_path / "out")


@pytest.mark.parametrize("labels", ["Edema, Mass", 14, {"a": 1}, [1] * 14, [None] * 14, torch.ones(14)])
def test_labels_that_are_no_list_of_names(labels, tmp_path):
    with pytest.raises(InputError, match=r"checkpoint\.pth: labels must be a list of names"):
        run({"model": build().state_dict(), "labels": labels}, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", [["Edema"], ["a", "b"] * 7, [*NIH[:14], "Hernia", "Mass"]])
def test_names_that_are_not_those_of_the_outputs(labels, tmp_path):
    with pytest.raises(InputError, match=r"name them with --labels|mean the same"):
        run({"model": build().state_dict(), "labels": labels}, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key", ["patch_embed.conv1.conv.weight", "stages.1.blocks.0.dw0.m.conv.weight", "head.linear.weight"]
)
@pytest.mark.parametrize("value", [torch.ones(()), torch.ones(3), torch.ones(2, 0)])
def test_tensors_of_other_shapes(key, value, tmp_path):
    with pytest.raises(InputError, match=r"checkpoint\.pth") as error:
        run({**build().state_dict(), key: value}, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["head_dist.bn.weight", "head_dist.l.bias", "head.bn.running_var"])
def test_a_second_head_that_is_not_whole(key, tmp_path):
    model = build()
    state = theirs(model)
    state |= {f"head_dist.{k.replace('linear', 'l')}": v for k, v in model.head.state_dict().items()}
    with pytest.raises(InputError, match="is not a whole EfficientViT's"):
        run({k: v for k, v in state.items() if k != key}, tmp_path)


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("at", ["model.safetensors", "config.json"])
def test_a_full_disk_leaves_nothing_behind(existed, at, tmp_path, monkeypatch):
    def full(content, path, *args, **kwargs):
        Path(path).write_bytes(b"a part of it")
        if at == "config.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    if existed:
        (tmp_path / "out").mkdir()
    name = "save_config_for_hf" if at == "config.json" else "save_file"
    monkeypatch.setattr(f"mxa.models.weights.{name}", full)
    with pytest.raises(InputError, match=r"could not be written .*No space left.*run again") as error:
        run({"model": build().state_dict()}, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "out").exists() == existed and not list(tmp_path.glob("out/*"))
