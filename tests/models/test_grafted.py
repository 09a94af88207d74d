"""Grafted models as they are saved: the loaded one is the same model, and its name alone is not offered."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import mxa
from mxa.layers import MXABlock, graft, ungraft
from mxa.models import save_pretrained
from mxa.models.load import load_model


def open_gates(model: nn.Module) -> nn.Module:
    """Makes every block count: its gate is open and its box differs from image to image."""
    torch.manual_seed(1)
    for block in blocks(model):
        nn.init.constant_(block.ls.gamma, 0.5)
        if hasattr(block.roi.head, "score"):
            nn.init.normal_(block.roi.head.score[-1].weight)
    return model.eval()


def blocks(model: nn.Module) -> list[MXABlock]:
    return [module for module in model.modules() if isinstance(module, MXABlock)]


class Case(NamedTuple):
    """A timm model and its arguments, those of graft, and the size of the images."""

    name: str
    build: dict
    graft: dict
    size: tuple[int, int, int]


THREE = {"num_classes": 3}
SWIN = {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2), **THREE}
CASES = {
    "another input": Case(
        "vit_tiny_patch16_224",
        {"dynamic_img_size": True, "global_pool": "avg", "depth": 2},
        {"last": 1, "init_values": 1.0, "input_size": (3, 112, 448)},
        (3, 112, 448),
    ),
    "gray": Case("test_vit", {**THREE, "in_chans": 1, "img_size": (96, 160)}, {}, (1, 96, 160)),
    "every option": Case(
        "test_vit", THREE, {"roi_head": "mean", "min_size": 0.3, "reduction": 4, "kernel_size": 3}, (3, 160, 160)
    ),
    "two prefix tokens": Case("deit_tiny_distilled_patch16_224", {**THREE, "depth": 2}, {}, (3, 224, 224)),
    "pooled": Case("test_vit2", {**THREE, "global_pool": "avg"}, {"where": "blocks.*.attn"}, (3, 64, 64)),
    "shifted windows": Case("swin_tiny_patch4_window7_224", {**SWIN, "img_size": (56, 112)}, {}, (3, 56, 112)),
    "windows of tokens": Case(
        "tiny_vit_5m_224", {**THREE, "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)}, {}, (3, 224, 224)
    ),
    "maps": Case("efficientvit_m0", THREE, {"init_values": 0.3}, (3, 224, 224)),
    "convolutions": Case("resnet10t", {**THREE, "in_chans": 1}, {"where": "layer[34].*.conv2"}, (1, 64, 96)),
    "ours": Case("efficientvit_ml_m0", THREE, {}, (3, 224, 224)),
}


@torch.no_grad()
def assert_same(model: nn.Module, folder, size: tuple[int, int, int]) -> None:
    """The model comes back from its folder with the same logits, to the bit, by ours and by timm's loader."""
    x = torch.randn(2, *size)
    expected = model.eval()(x)
    for load in (load_model, lambda path: timm.create_model(f"local-dir:{path}", pretrained=True).eval()):
        loaded = load(folder)
        assert torch.equal(loaded(x), expected)
        layouts = [[(b.input_fmt, b.grid_size, b.num_prefix_tokens) for b in blocks(m)] for m in (loaded, model)]
        assert layouts[0] == layouts[1]


@pytest.mark.parametrize("case", CASES)
def test_the_loaded_model_is_the_saved_one(case, tmp_path):
    name, build, options, size = CASES[case]
    torch.manual_seed(0)
    model = open_gates(graft(timm.create_model(name, **build), **options))
    closed = [block.ls.gamma.clone() for block in blocks(model)]
    assert closed and all(gamma.abs().min() > 0 for gamma in closed)
    save_pretrained(model, tmp_path)
    assert_same(model, tmp_path, size)


def test_a_grid_that_was_given_is_kept(tmp_path):
    name, build, options, size = CASES["another input"]
    model = open_gates(graft(timm.create_model(name, **build), **options))
    assert blocks(model)[0].grid_size == (7, 28)
    mxa.set_label_names(model, [f"label {i}" for i in range(1000)])
    save_pretrained(model, tmp_path)
    fine = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1).eval()
    assert blocks(fine)[0].grid_size == (7, 28) and fine(torch.randn(1, 1, *size[1:])).shape == (1, 3)
    half = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, dtype=torch.bfloat16)
    assert blocks(half)[0].ls.gamma.dtype == torch.bfloat16 and blocks(half)[0].grid_size == (7, 28)


@pytest.mark.parametrize("save", [save_pretrained, lambda m, path: save_for_hf(m, path, safe_serialization=True)])
def test_a_model_that_timm_resized(save: Callable, tmp_path):
    """After the graft its blocks stay as they are; while it is loaded they are looked up anew."""
    torch.manual_seed(0)
    model = open_gates(graft(timm.create_model("test_vit", num_classes=3, global_pool="avg")))
    model.set_input_size(img_size=(80, 320))
    assert blocks(model)[0].grid_size == (10, 10)
    save(model, tmp_path / "after")
    assert_same(model, tmp_path / "after", (3, 80, 320))
    other = timm.create_model(f"local-dir:{tmp_path / 'after'}", pretrained=True, img_size=(320, 80)).eval()
    assert blocks(other)[0].grid_size == (20, 5)
    save(other, tmp_path / "during")
    assert_same(other, tmp_path / "during", (3, 320, 80))


def test_a_model_of_the_registry_is_saved_as_it_is(tmp_path):
    """timm remembers what it was created with; what is saved is what it has become."""
    torch.manual_seed(0)
    recipe = {"init_values": 0.5}
    model = timm.create_model("mxa_grafted", base="test_vit", num_classes=3, global_pool="token", grafted=recipe)
    assert recipe == {"init_values": 0.5}
    count = len(blocks(open_gates(model)))
    model.set_input_size(img_size=(80, 320))
    model.reset_classifier(2, "avg")
    save_pretrained(model, tmp_path)
    assert_same(model, tmp_path, (3, 80, 320))
    assert len(blocks(load_model(tmp_path))) == count
    for loaded in (load_model(tmp_path), timm.create_model(f"local-dir:{tmp_path}", pretrained=True)):
        assert ungraft(loaded).pretrained_cfg["architecture"] == "test_vit"


def test_its_name_is_not_listed():
    assert timm.is_model("mxa_grafted") and "mxa_grafted" not in timm.list_models()
    assert not timm.list_models("*grafted*", include_tags=True) and not timm.list_models(module="grafted")
    with pytest.raises(ValueError, match=r"is what a saved model with grafted MXA is called: use mxa\.layers\.graft"):
        timm.create_model("mxa_grafted")
