"""Tensors of files and of checkpoints: plain, finite, and of the kind that the model has."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import mxa
from mxa.layers import graft
from mxa.models import save_pretrained
from mxa.models.load import init_weights, load_model, read_checkpoint
from mxa.task.teacher import Teacher
from mxa.utils.errors import InputError

from ..contracts import randomise

ABC = ("Edema", "Mass", "Pleural Effusion")
KINDS = {"efficientvit_ml_m0": "head.linear.bias", "test_resnet": "fc.bias", "graft": "head.bias"}


def build(kind):
    model = randomise(timm.create_model("test_vit" if kind == "graft" else kind, num_classes=3))
    mxa.set_label_names(model, ABC)
    return graft(model) if kind == "graft" else model


@pytest.fixture
def folder(tmp_path):
    def make(kind, **changed):
        save_pretrained(build(kind), tmp_path / kind)
        path = tmp_path / kind / "model.safetensors"
        save_file({**load_file(path), **changed}, path)
        return tmp_path / kind

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_one_value_that_is_not_finite(kind, dtype, value, folder):
    key = KINDS[kind]
    path = folder(kind, **{key: torch.tensor([0.0, value, 0.0], dtype=dtype)})
    loads = [lambda: load_model(path), lambda: init_weights(build(kind), str(path))]
    loads += [lambda: init_weights(build(kind), str(path / "model.safetensors"))]
    if kind != "test_resnet":
        loads.append(lambda: timm.create_model(f"local-dir:{path}", pretrained=True))
    for load in loads:
        with pytest.raises((InputError, RuntimeError), match=rf"model\.safetensors: {key} holds a value that is not"):
            load()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_in_place_of_fractions(kind, dtype, folder):
    key = KINDS[kind]
    path = folder(kind, **{key: torch.ones(3, dtype=dtype)})
    with pytest.raises(InputError, match=f"of another kind of number: {key}"):
        load_model(path)
    with pytest.raises(InputError, match=f"of another kind of number: {key}"):
        init_weights(build(kind), str(path))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_other_types_of_safetensors(dtype, folder):
    path = folder("efficientvit_ml_m0", **{"head.linear.bias": torch.ones(3).to(dtype)})
    if dtype.is_complex:
        with pytest.raises(InputError, match=r"head\.linear\.bias is not a plain tensor"):
            load_model(path)
    else:
        assert (load_model(path).head.linear.bias == 1).all()


def _quantized():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


STRANGE = {
    "sparse": lambda: torch.ones(3).to_sparse(),
    "quantized": _quantized,
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "without values": lambda: torch.ones(3, device="meta"),
    "NaN": lambda: torch.tensor([0.0, float("nan"), 0.0]),
    "a number": lambda: 3,
    "nothing": lambda: None,
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("what", STRANGE)
def test_checkpoints_of_other_tensors(what, wrapped, tmp_path):
    state = {**build("efficientvit_ml_m0").state_dict(), "head.linear.bias": STRANGE[what]()}
    torch.save({"model": state} if wrapped else state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt") as error:
        init_weights(build("efficientvit_ml_m0"), str(tmp_path / "w.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [{1: torch.ones(1)}, {"model": {(1, 2): torch.ones(1)}}, {"model": {}, "labels": ABC}, {"model": None}]
)
def test_checkpoints_of_another_form(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt"):
        init_weights(build("efficientvit_ml_m0"), str(tmp_path / "w.pt"))


@pytest.mark.parametrize("labels", ["abc", 3, {"a": 1}, [1, 2, 3], [None], torch.ones(3)])
def test_labels_of_a_checkpoint_are_names(labels, tmp_path):
    torch.save({"model": build("efficientvit_ml_m0").state_dict(), "labels": labels}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: labels must be a list of names"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("key", ["stages.0.blocks.0.dw0.m.conv.weight", "patch_embed.conv1.conv.weight"])
@pytest.mark.parametrize("end", ["pt", "safetensors"])
def test_a_key_that_is_missing(key, end, tmp_path):
    state = {k: v for k, v in build("efficientvit_ml_m0").state_dict().items() if k != key}
    path = tmp_path / f"w.{end}"
    torch.save(state, path) if end == "pt" else save_file(state, path)
    with pytest.raises(InputError, match=f"missing: {key}"):
        init_weights(build("efficientvit_ml_m0"), str(path))
    if end == "safetensors":
        cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 224, 224)}
        with pytest.raises(InputError, match=f"missing: {key}"):
            Teacher("efficientvit_ml_m0", ABC, cfg, checkpoint=path, names=ABC)


def test_a_graft_whose_blocks_are_missing(folder):
    """Its gates may be open, and then random blocks would change the outputs."""
    path = folder("graft")
    state = load_file(path / "model.safetensors")
    save_file({k: v for k, v in state.items() if ".mxa." not in k}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["model_args"]["grafted"]["init_values"] = 0.5
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"missing: blocks\.0\.attn\.mxa"):
        load_model(path)
