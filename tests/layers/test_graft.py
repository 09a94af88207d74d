"""MXA beside the attention of timm's models: nothing else changes."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import nn

from mxa.layers import MXABlock, graft, ungraft
from mxa.models import save_pretrained

VIT = "test_vit"  # timm's small one, 160 px


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(VIT, num_classes=5, **{"global_pool": "avg", **options})


def images(model: nn.Module, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))


def blocks(model: nn.Module) -> list[MXABlock]:
    return [module for module in model.modules() if isinstance(module, MXABlock)]


def open_gates(model: nn.Module) -> nn.Module:
    for block in blocks(model):
        nn.init.constant_(block.ls.gamma, 0.5)
        nn.init.normal_(block.roi.head.score[-1].weight)
    return model


def graph(model: nn.Module) -> dict[str, tuple]:
    return {name: (id(module), type(module), sorted(vars(module))) for name, module in model.named_modules()}


def test_beside_attention_on_its_own_input():
    model = open_gates(graft(vit(), init_values=1.0)).eval()
    place = model.blocks[0].attn
    x = torch.randn(2, 1 + 100, place.qkv.in_features)
    plain = copy.deepcopy(model)
    ungraft(plain)
    torch.testing.assert_close(place(x), plain.blocks[0].attn(x) + place.mxa(x))
    assert place.mxa.num_prefix_tokens == model.num_prefix_tokens == 1 and place.mxa.grid_size == (10, 10)


@pytest.mark.parametrize("mode", [True, False])
def test_closed_gates_change_nothing(mode):
    model = vit(drop_path_rate=0.3, drop_rate=0.2).train(mode)
    x = images(model)
    torch.manual_seed(3)
    before = model(x)
    grafted = graft(model)
    torch.manual_seed(3)
    assert grafted is model and len(blocks(model)) == len(model.blocks)
    assert torch.equal(model(x), before)
    open_gates(model)
    assert not torch.equal(model(x), before)


def test_graft_and_ungraft_give_back_what_was():
    model = vit()
    objects, state, cfg = graph(model), model.state_dict(), model.pretrained_cfg
    graft(model, init_values=0.3)
    assert set(state) < set(model.state_dict())
    assert ungraft(model) is model
    assert graph(model) == objects and model.pretrained_cfg is cfg
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="is not grafted"):
        ungraft(model)


def test_grafting_twice_is_an_error():
    model = graft(vit())
    with pytest.raises(ValueError, match="has MXA already"):
        graft(model)
    with pytest.raises(ValueError, match="has MXA already"):
        graft(timm.create_model("efficientvit_ml_m0_mxa"))


def test_checkpoints_load_strictly_before_and_after():
    origin = vit()
    state = {k: v + 0.5 for k, v in origin.state_dict().items()}
    model = graft(vit(), init_values=0.2)
    model.load_state_dict(state)
    assert torch.equal(model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert (model.blocks[0].attn.mxa.ls.gamma == 0.2).all()
    full = model.state_dict()
    other = graft(vit())
    other.load_state_dict(full)
    assert all(torch.equal(v, full[k]) for k, v in other.state_dict().items())
    del full["blocks.1.attn.mxa.ls.gamma"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"blocks\.1\.attn\.mxa\.ls\.gamma"'):
        other.load_state_dict(full)
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"blocks\.1\.attn\.qkv\.weight"'):
        other.load_state_dict(state)


@pytest.mark.parametrize("ours", [True, False])
def test_saved_with_its_recipe(tmp_path, ours):
    import mxa

    model = open_gates(graft(vit(), last=2, init_values=0.5, reduction=8, roi_head="softmax", min_size=0.2)).eval()
    if ours:
        mxa.set_label_names(model, list("abcde"))
        save_pretrained(model, tmp_path)
    else:
        save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(model)
    assert torch.equal(loaded(x), model(x)) and len(blocks(loaded)) == 2
    assert blocks(loaded)[0].roi.head.min_size == 0.2
    if ours:
        assert mxa.label_names(loaded) == tuple("abcde")
    save_for_hf(loaded, tmp_path / "again", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    fine = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert fine(x).shape == (2, 3) and torch.equal(blocks(fine)[0].ls.gamma, blocks(model)[0].ls.gamma)
    assert ungraft(loaded).pretrained_cfg["architecture"] == VIT


def test_another_input(tmp_path):
    model = open_gates(graft(vit(img_size=(96, 160), in_chans=1), input_size=(1, 96, 160)))
    assert blocks(model)[0].grid_size == (6, 10)
    assert model(torch.randn(1, 1, 96, 160)).shape == (1, 5)
    model = open_gates(graft(vit(dynamic_img_size=True)))
    assert model(torch.randn(1, 3, 192, 192)).shape == (1, 5)
    with pytest.raises(ValueError, match="tokens do not fill"):
        model(torch.randn(1, 3, 96, 160))


def test_the_last_block_of_a_class_token_is_left_out(caplog):
    caplog.set_level(logging.INFO)
    model = graft(vit(global_pool="token"))
    assert len(blocks(model)) == len(model.blocks) - 1
    assert "no MXA beside blocks.5.attn (after it only the class token counts" in caplog.text
    open_gates(model)(images(model)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for block in blocks(model) for p in block.parameters())
    assert len(blocks(graft(vit(global_pool="token"), where="blocks.*.attn"))) == len(model.blocks)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "nest_tiny", "mobilevitv2_050"])
def test_what_is_no_map_is_refused(name):
    with pytest.raises(ValueError, match=r"cannot be grafted: .*(not in rows|is not a map of an image of)"):
        graft(timm.create_model(name, num_classes=2))


def test_as_the_model_was_built(tmp_path):
    gray = open_gates(graft(timm.create_model("vit_tiny_patch16_224", in_chans=1, img_size=(96, 160), depth=2)))
    assert blocks(gray)[0].grid_size == (6, 10)
    with pytest.raises(ValueError, match=r"does not take an input of \(3, 160, 160\): give input_size="):
        graft(vit(in_chans=1), input_size=(3, 160, 160))
    model = open_gates(graft(vit())).eval()
    save_pretrained(model, tmp_path)
    one = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1).eval()
    assert one(torch.randn(1, 1, 160, 160)).shape == (1, 5)
    large = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=224).eval()
    assert large(torch.randn(1, 3, 224, 224)).shape == (1, 5) and blocks(large)[0].grid_size == (14, 14)
    assert torch.equal(blocks(large)[0].ls.gamma, blocks(model)[0].ls.gamma)
    with pytest.raises(ValueError, match="gives no features: load it"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True)
    features = graft(vit(features_only=True, global_pool=""))
    assert {f.shape[1] for f in features(images(features))} == {64}


def test_wrappers_are_refused_and_replaced_forwards_are_kept():
    for wrapper in (nn.Sequential(vit()), torch.compile(vit(), backend="eager")):
        with pytest.raises(ValueError, match=r"wraps a timm model: graft that \((0|_orig_mod)\)"):
            graft(wrapper)
    model, calls = vit(), []
    place = model.blocks[0].attn
    old = place.forward
    place.forward = lambda *args, **kwargs: (calls.append(1), old(*args, **kwargs))[1]
    graft(model)
    assert len(blocks(model)) == len(model.blocks) - 1 and "forward" in vars(place)
    before = len(calls)
    model(images(model))
    assert len(calls) == before + 1


class Wants(nn.Module):
    """Attention that is called as nobody expects, and one that changes its input."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.stem = how, nn.Conv2d(3, 8, 4, 4)
        self.attention = WantsAttention()

    def forward(self, x):
        x = self.stem(x)
        y = self.attention(x=x) if self.how == "keyword" else self.attention(x)
        return y.mean((2, 3))


class WantsAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(self.act(x))


def test_any_module(tmp_path):
    with pytest.raises(ValueError, match="not called with a tensor first"):
        graft(Wants("keyword"), input_size=(3, 32, 32))
    model = open_gates(graft(Wants("plainly"), init_values=1.0, input_size=(3, 32, 32))).eval()
    seen = []
    model.attention.mxa.register_forward_pre_hook(lambda module, args: seen.append(args[0].min().item()))
    model(torch.randn(1, 3, 32, 32))
    assert seen[0] < 0  # the input itself, before the activation changed it


def test_where_and_last():
    model = graft(vit(), where=["blocks.0.attn", "blocks.[3-5].attn"])
    names = [name for name, module in model.named_modules() if isinstance(module, MXABlock)]
    assert names == [f"blocks.{i}.attn.mxa" for i in (0, 3, 4, 5)]
    names = [n for n, m in graft(vit(), last=1).named_modules() if isinstance(m, MXABlock)]
    assert names == [f"blocks.{len(model.blocks) - 1}.attn.mxa"]
    with pytest.raises(ValueError, match="last must be between 1 and"):
        graft(vit(), last=99)
    with pytest.raises(ValueError, match=r"no module is called blocks\.77\.attn"):
        graft(vit(), where="blocks.77.attn")
    with pytest.raises(ValueError, match=r"blocks\.0\.attn lies inside another of the places"):
        graft(vit(), where=["blocks.0", "blocks.0.attn"])


@pytest.mark.parametrize(
    ("name", "where"), [("resnet10t", "layer[34].*.conv2"), ("convnext_atto", "stages.2.blocks.*")]
)
def test_networks_without_attention(name, where):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).eval()
    with pytest.raises(ValueError, match="no attention is recognised in it: name modules or patterns in `where`"):
        graft(model)
    x = torch.randn(1, 3, 96, 96)
    before = model(x)
    graft(model, where=where)
    assert torch.equal(model(x), before) and len(blocks(model)) >= 2
    assert {block.input_fmt for block in blocks(model)} == {"NCHW"}
    with pytest.raises(ValueError, match=r"cannot be grafted: (conv1|stem).* \(it takes"):
        graft(ungraft(model), where="conv1*" if name == "resnet10t" else "stem*")


def test_a_model_that_cannot_be_grafted_says_why():
    model = timm.create_model("mvitv2_tiny", num_classes=2)
    with pytest.raises(ValueError, match=r"cannot be grafted: stages\.0\.blocks\.0\.attn \(it takes .* gives tuple"):
        graft(model)


@pytest.mark.parametrize(
    ("name", "fmt"),
    [("swin_tiny_patch4_window7_224", "NHWC"), ("tiny_vit_5m_224", "NLC"), ("efficientvit_m0", "NCHW")],
)
def test_windows(name, fmt, caplog):
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).eval()
    x = images(model, 1)
    before = model(x)
    graft(model)
    assert torch.equal(model(x), before)
    assert {block.input_fmt for block in blocks(model)} == {fmt}
    assert ("MXA sees pieces of the map ((49, 128))" in caplog.text) == (name == "tiny_vit_5m_224")
    open_gates(model)
    model(x).sum().backward()
    assert all(p.grad is not None for block in blocks(model) for p in block.parameters())


def test_optimizer_groups():
    model = graft(vit())
    decay = {
        id(p)
        for g in create_optimizer_v2(model, "adamw", 1e-3, 0.1).param_groups
        if g["weight_decay"]
        for p in g["params"]
    }
    for block in blocks(model):
        assert id(block.ls.gamma) not in decay and id(block.roi.head.score[0].weight) in decay
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    for place in (block.attn for block in model.blocks):
        assert scale[id(place.mxa.ls.gamma)] == scale[id(place.qkv.weight)]


def test_copies_and_pickles():
    model = open_gates(graft(vit())).eval()
    x = images(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x)) and blocks(twin)[0] is not blocks(model)[0]
    ungraft(twin)
    assert len(blocks(model)) == len(model.blocks)
    average = ModelEmaV3(model)
    average.update(model)
    torch.testing.assert_close(average.module(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), model(x))


def test_half_precision_and_checkpointing():
    model = open_gates(graft(vit())).eval()
    x = images(model)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    torch.testing.assert_close(half.float(), model(x), rtol=0.05, atol=0.1)
    model.train().set_grad_checkpointing(True)
    model(x).sum().backward()
    first = blocks(model)[0].ls.gamma.grad.clone()
    model.zero_grad()
    model.set_grad_checkpointing(False)
    model(x).sum().backward()
    torch.testing.assert_close(first, blocks(model)[0].ls.gamma.grad)
    assert graft(vit().to(torch.bfloat16)).blocks[0].attn.mxa.ls.gamma.dtype == torch.bfloat16


DDP = """
import gc, sys, timm, torch
from torch import distributed
from mxa.layers import graft
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/store", rank=int(sys.argv[1]), world_size=2)
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(graft(timm.create_model("test_vit", num_classes=5)))
for _ in range(2):  # the second raises where a parameter had no gradient
    model(torch.randn(2, 3, 160, 160)).sum().backward()
assert all(p.grad is not None for p in model.parameters())
del model
gc.collect()
distributed.destroy_process_group()
"""


def test_no_parameter_is_unused_in_ddp(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DDP]
    both = [subprocess.Popen([*command, str(r), str(tmp_path)], stderr=subprocess.PIPE, env=env) for r in range(2)]
    for process in both:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
