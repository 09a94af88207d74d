"""The twelve names: against stock timm, against each other, and every option of a timm model."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_model_data_config
from timm.models import get_pretrained_cfg

import mxa
from mxa.labels import CHEXPERT
from mxa.layers import MeanROIHead, MXABlock, ROIHead
from mxa.models.hub import SHIPPED

from ..contracts import ModelContract, holds, images, meta, randomise, shapes

NAMES = timm.list_models(module="efficientvit_ml")
SIZES = ("m0", "m1", "m2", "m3", "m4", "m5")
PAIR = ("efficientvit_ml_m0", "efficientvit_ml_m0_mxa")


@pytest.fixture(scope="module")
def stock_file(tmp_path_factory):
    """Weights of stock timm's M0, as a file."""
    path = tmp_path_factory.mktemp("stock") / "m0.safetensors"
    save_file(randomise(timm.create_model("efficientvit_m0")).state_dict(), path)
    return str(path)


@pytest.mark.parametrize("name", NAMES)
class TestContract(ModelContract):
    pass


def test_the_names_are_these_twelve():
    assert sorted(NAMES) == sorted(f"efficientvit_ml_{s}{suffix}" for s in SIZES for suffix in ("", "_mxa"))


@pytest.mark.parametrize("name", NAMES)
def test_tags(name):
    default = get_pretrained_cfg(name)
    assert (default.tag, default.num_classes, default.label_names) == ("chexpert", 14, CHEXPERT)
    assert mxa.label_names(meta(name)) == CHEXPERT
    imagenet = get_pretrained_cfg(f"{name}.r224_in1k")
    size = name.split("_")[2]
    assert (imagenet.hf_hub_id, imagenet.num_classes) == (f"timm/efficientvit_{size}.r224_in1k", 1000)
    assert meta(f"{name}.r224_in1k").num_classes == 1000
    for tag in ("chexpert", "r224_in1k"):
        assert f"{name}.{tag}" in timm.list_models(name, include_tags=True)
    shipped = [SHIPPED] if SHIPPED.startswith(f"{name}.") else []
    assert timm.list_pretrained(name) == [*shipped, f"{name}.r224_in1k"]


@pytest.mark.parametrize("tag", ["chexpert", "r224_in1k"])
@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_keeps_the_whole_image(name, tag):
    assert resolve_model_data_config(meta(f"{name}.{tag}")) == {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


@pytest.mark.parametrize("size", SIZES)
def test_shapes_are_those_of_stock_timm(size):
    stock = shapes(meta(f"efficientvit_{size}", num_classes=14))
    assert shapes(meta(f"efficientvit_ml_{size}")) == stock
    with_mxa = shapes(meta(f"efficientvit_ml_{size}_mxa"))
    assert {k: v for k, v in with_mxa.items() if k in stock} == stock
    added = {re.fullmatch(r"stages\.(\d)\.blocks\.(\d)\.mixer\.mxa\..+", k) for k in with_mxa.keys() - stock.keys()}
    assert None not in added
    blocks = {re.match(r"stages\.(\d)\.blocks\.(\d)", k) for k in stock} - {None}
    assert {m.groups() for m in added} == {m.groups() for m in blocks}


@pytest.mark.parametrize("size", SIZES)
def test_stock_weights_give_stock_logits_to_the_last_bit(size, tmp_path):
    stock = randomise(timm.create_model(f"efficientvit_{size}"))
    save_file(stock.state_dict(), tmp_path / "stock.safetensors")
    overlay = {"file": str(tmp_path / "stock.safetensors")}
    ours = timm.create_model(f"efficientvit_ml_{size}.r224_in1k", pretrained=True, pretrained_cfg_overlay=overlay)
    x = images()
    with torch.no_grad():
        for mode in (False, True):
            stock.train(mode)
            ours.train(mode)
            torch.manual_seed(0)
            expected = stock(x)
            torch.manual_seed(0)
            assert torch.equal(ours(x), expected)
    assert holds(ours, stock.state_dict())  # statistics too


@pytest.mark.parametrize("size", SIZES)
def test_a_closed_gate_is_the_plain_model_to_the_last_bit(size):
    plain = randomise(timm.create_model(f"efficientvit_ml_{size}"))
    gated = randomise(timm.create_model(f"efficientvit_ml_{size}_mxa", mxa_init_values=0.0), seed=1)
    gates = [p for k, p in gated.named_parameters() if k.endswith("mxa.ls.gamma")]
    missing = gated.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert gates
    assert all(".mxa." in k for k in missing)
    x = images()
    with torch.no_grad():
        for gate in gates:
            gate.zero_()
        for mode in (False, True):
            plain.train(mode)
            gated.train(mode)
            state = {k: v.clone() for k, v in plain.state_dict().items()}
            assert torch.equal(gated(x), plain(x))
            plain.load_state_dict(state)
            gated.load_state_dict(state, strict=False)
            assert torch.equal(gated.forward_features(x), plain.forward_features(x))
        gates[-1].fill_(0.1)
        assert not torch.equal(gated(x), plain(x))


@pytest.mark.parametrize(("value", "gamma"), [({}, 1.0), ({"mxa_init_values": 0.0}, 0.0)])
def test_gates_start_where_they_are_told_to(value, gamma):
    model = timm.create_model("efficientvit_ml_m0_mxa", **value)
    blocks = [m for m in model.modules() if isinstance(m, MXABlock)]
    assert len(blocks) == 6
    assert all((b.ls.gamma == gamma).all() for b in blocks)


@pytest.mark.parametrize(("roi_head", "kind"), [("softmax", ROIHead), ("mean", MeanROIHead)])
def test_box_heads(roi_head, kind):
    model = timm.create_model("efficientvit_ml_m0_mxa", mxa_roi_head=roi_head)
    assert {type(m.roi.head) for m in model.modules() if isinstance(m, MXABlock)} == {kind}
    assert model.eval()(images(1)).isfinite().all()


def test_unknown_box_head_is_named():
    with pytest.raises(ValueError, match=r"nothing.*softmax.*mean"):
        meta("efficientvit_ml_m0_mxa", mxa_roi_head="nothing")


def test_mixer_adds_attention_and_mxa_to_its_input():
    stock = timm.create_model("efficientvit_m0", num_classes=14).eval()
    ours = randomise(timm.create_model("efficientvit_ml_m0_mxa")).eval()
    stock.load_state_dict({k: v for k, v in ours.state_dict().items() if ".mxa." not in k})
    seen = []
    for stage in ours.stages:
        for block in stage.blocks:
            block.mixer.register_forward_hook(lambda module, args, out: seen.append((module, args[0], out)))
    with torch.no_grad():
        ours(images())
        mixers = [block.mixer for stage in stock.stages for block in stage.blocks]
        assert len(seen) == len(mixers) == 6
        for (module, x, out), mixer in zip(seen, mixers, strict=True):
            plus_mhsa = mixer(x)  # stock: x + MHSA(x)
            mxa_out = module.mxa.ls.gamma[:, None, None] * module.mxa.cbam(module.mxa.roi(x))
            torch.testing.assert_close(out, plus_mhsa + mxa_out)
            assert (out - plus_mhsa).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("pool", ["max", ""])
def test_pool_given_at_the_start(pool):
    model = timm.create_model("efficientvit_ml_m0", global_pool=pool, num_classes=0).eval()
    features = model.forward_features(images())
    assert torch.equal(model(images()), features.amax((2, 3)) if pool else features)


def test_pooling_is_what_its_name_says():
    x = images()
    model = randomise(timm.create_model("efficientvit_ml_m0")).eval()
    with torch.no_grad():
        features = model.forward_features(x)
        mean, peak = features.mean((2, 3)), features.amax((2, 3))
        for pool, expected in (("avg", mean), ("max", peak), ("catavgmax", torch.cat([mean, peak], 1))):
            model.reset_classifier(5, pool)
            model.eval()
            pooled = model.forward_head(features, pre_logits=True)
            torch.testing.assert_close(pooled, expected)
            torch.testing.assert_close(model(x), model.head(expected))


def test_a_head_needs_pooled_features():
    with pytest.raises(AssertionError, match="pooled"):
        meta("efficientvit_ml_m0", global_pool="")


@torch.no_grad()
@pytest.mark.parametrize("size", [(320, 320), (384, 384), (256, 192)])
@pytest.mark.parametrize("name", PAIR)
def test_size_given_at_the_start(name, size):
    model = timm.create_model(name, img_size=size).eval()
    assert model(images(1, size=size)).isfinite().all()


@pytest.mark.parametrize("name", PAIR)
def test_three_channel_weights_into_one_channel(name, stock_file):
    overlay = {"file": stock_file}
    three, one = (
        timm.create_model(f"{name}.r224_in1k", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=n, **kwargs)
        for n, kwargs in ((3, {}), (1, {}))
    )
    one.load_state_dict({k: v for k, v in three.state_dict().items() if ".mxa." in k or "head." in k}, strict=False)
    mean, std = (torch.tensor(three.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    gray = images(channels=1)
    wide = (gray * std.mean() + mean.mean() - mean) / std
    with torch.no_grad():
        found, wanted, summed = one.eval()(gray), three.eval()(wide), three(gray.expand(-1, 3, -1, -1))
    error = (found - wanted).abs().max()
    assert error < 0.1 * (summed - wanted).abs().max() and error < 0.02, error


def test_drop_rate():
    model = randomise(timm.create_model("efficientvit_ml_m0", drop_rate=0.5))
    same = timm.create_model("efficientvit_ml_m0")
    same.load_state_dict(model.state_dict())
    x = images()
    with torch.no_grad():
        assert torch.equal(model.eval()(x), same.eval()(x))
        assert not torch.equal(model.train()(x), same.train()(x))
    model.reset_classifier(3)
    assert model.head.drop.p == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PAIR)
def test_drop_path_rate(name, dtype):
    model = randomise(timm.create_model(name, drop_path_rate=0.5)).to(dtype)
    same = timm.create_model(name, dtype=dtype)
    same.load_state_dict(model.state_dict())
    x = images(dtype=dtype)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), same.eval()(x))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        outputs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            model.load_state_dict(state)
            outputs.append(model.train()(x))
        assert outputs[0].dtype == dtype
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])
        assert not torch.equal(outputs[0], same.train()(x))


@torch.no_grad()
@pytest.mark.parametrize("name", PAIR)
def test_a_dropped_branch_leaves_its_input(name):
    block = timm.create_model(name, drop_path_rate=0.5).stages[-1].blocks[-1]
    x = torch.randn(2, 192, 4, 4)
    for branch in (block.dw0, block.ffn0, block.mixer, block.dw1, block.ffn1):
        branch.drop_path.drop_prob = 1.0
        assert torch.equal(branch(x), x)


@pytest.mark.parametrize("name", PAIR)
def test_drop_path_rises_from_zero(name):
    model = meta(name, drop_path_rate=0.5)
    for branch in ("dw0", "ffn0", "mixer", "dw1", "ffn1"):
        drops = [getattr(block, branch).drop_path for stage in model.stages for block in stage.blocks]
        assert [getattr(d, "drop_prob", 0.0) for d in drops] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("size", [320, 384])
@pytest.mark.parametrize("name", PAIR)
def test_weights_of_224_at_another_size(name, size, stock_file):
    kwargs = {"pretrained": True, "pretrained_cfg_overlay": {"file": stock_file}}
    small = timm.create_model(f"{name}.r224_in1k", **kwargs)
    large = timm.create_model(f"{name}.r224_in1k", img_size=size, **kwargs)
    large.load_state_dict({k: v for k, v in small.state_dict().items() if ".mxa." in k}, strict=False)
    before, after = small.state_dict(), large.state_dict()
    changed = {k for k in before if before[k].shape != after[k].shape}
    assert changed == {f"stages.2.blocks.{i}.mixer.m.attn.attention_biases" for i in range(3)}  # 4x4 to 5x5 or 6x6
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k not in changed)
    small.set_input_size(size)
    x = images(1, size=(size, size))
    with torch.no_grad():
        assert torch.equal(small.eval()(x), large.eval()(x))


@pytest.mark.parametrize("name", PAIR)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = randomise(timm.create_model(name)).eval()
    x = images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        for run in (lambda m: m(x), lambda m: m.forward_intermediates(x)[0]):
            model.zero_grad()
            run(model).square().mean().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(gradients[:2], gradients[2:], strict=True):
        assert len(plain) == len(checkpointed) > 0
        for a, b in zip(plain, checkpointed, strict=True):
            torch.testing.assert_close(a, b)
