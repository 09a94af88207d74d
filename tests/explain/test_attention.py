"""Attention maps: what the module really computed, in the place it belongs to."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.efficientvit_msra import CascadedGroupAttention, LocalWindowAttention

from mxa.explain import attention_maps, attention_weights, mean_attention
from mxa.utils.errors import InputError

FIRST = "stages.0.blocks.0.mixer.m.attn"


def real_pass(model, images):
    """What goes into and comes out of every local window attention, by name."""
    seen = {}
    handles = [
        m.register_forward_hook(lambda m, i, o, name=f"{name}.attn": seen.update({name: (i[0], o)}))
        for name, m in model.named_modules()
        if isinstance(m, LocalWindowAttention)
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


def attend(module: CascadedGroupAttention, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The module's output from given weights ``(B, heads, n, n)``: a cascade of values alone."""
    feat, out = 0, []
    for head, part in enumerate(x.chunk(module.num_heads, 1)):
        value = module.qkvs[head](feat + part)[:, 2 * module.key_dim :]
        feat = (value.flatten(2) @ weights[:, head].mT).view_as(value)
        out.append(feat)
    return module.proj(torch.cat(out, 1))


def test_weights_reproduce_the_output_of_every_whole_map(mxa, images):
    found, seen = attention_weights(mxa, images), real_pass(mxa, images)
    names = [n for n, m in mxa.named_modules() if isinstance(m, CascadedGroupAttention)]
    assert list(found) == names and len(names) == 6
    for name in names[1:]:  # the later maps are one window each
        x, output = seen[name]
        with torch.no_grad():
            assert (attend(mxa.get_submodule(name), x, found[name]) - output).abs().max() < 1e-5
        assert torch.allclose(found[name].sum(-1), torch.ones(()), atol=1e-5)


def test_weights_reproduce_the_output_of_every_window(mxa, images):
    """160 pixels make 10 x 10 cells: four windows of 7, three of them padded. A loop over windows is the reference."""
    module = mxa.get_submodule(FIRST)
    found, (x, output) = attention_weights(mxa, images)[FIRST], real_pass(mxa, images)[FIRST]
    assert found.shape == (2, 4, 100, 100)
    number = torch.arange(100).view(10, 10)
    padded = torch.nn.functional.pad(x, (0, 4, 0, 4))
    for top in (0, 7):
        for left in (0, 7):
            own = number[top : top + 7, left : left + 7]
            h, w = own.shape
            own = own.flatten()
            window = padded[:, :, top : top + 7, left : left + 7]
            with torch.no_grad():
                direct = module(window)
            assert torch.allclose(direct[:, :, :h, :w], output[:, :, top : top + h, left : left + w], atol=1e-5)
            rows = found[:, :, own]
            others = torch.tensor([n for n in range(100) if n not in own])
            assert (rows[..., others] == 0).all()
            if h == w == 7:  # no padding: the weights alone give the output
                with torch.no_grad():
                    assert (attend(module, window, rows[..., own]) - direct).abs().max() < 1e-5
                assert torch.allclose(rows.sum(-1), torch.ones(()), atol=1e-5)
            else:
                assert (rows.sum(-1) < 1).all() and (rows.sum(-1) > 0).all()  # padding took some


def test_padded_windows_attend_as_a_direct_loop_does(mxa, images):
    """Head 0 of the corner window of 3 x 3 cells, written out."""
    module = mxa.get_submodule(FIRST)
    found, (x, _) = attention_weights(mxa, images)[FIRST], real_pass(mxa, images)[FIRST]
    window = torch.nn.functional.pad(x, (0, 4, 0, 4))[:, :, 7:, 7:]
    with torch.no_grad():
        qkv = module.qkvs[0](window.chunk(4, 1)[0])
        q, k = module.dws[0](qkv[:, : module.key_dim]), qkv[:, module.key_dim : 2 * module.key_dim]
    for qy, qx, ky, kx in [(0, 0, 0, 0), (0, 0, 2, 1), (2, 2, 1, 0)]:
        scores = torch.zeros(2, 7, 7)
        for y in range(7):
            for x_ in range(7):
                bias = module.attention_biases[0, module.attention_bias_idxs[qy * 7 + qx, y * 7 + x_]]
                scores[:, y, x_] = (q[:, :, qy, qx] * k[:, :, y, x_]).sum(1) * module.scale + bias.detach()
        expected = scores.flatten(1).softmax(1).view(2, 7, 7)[:, ky, kx]
        assert torch.allclose(found[:, 0, (7 + qy) * 10 + 7 + qx, (7 + ky) * 10 + 7 + kx], expected, atol=1e-5)


def test_maps_are_the_means_of_the_weights(mxa, images):
    weights, maps = attention_weights(mxa, images), attention_maps(mxa, images)
    for name, stride in ((FIRST, 16), ("stages.1.blocks.1.mixer.m.attn", 32), ("stages.2.blocks.0.mixer.m.attn", 64)):
        side = round(weights[name].shape[-1] ** 0.5)
        window = min(side, 7)
        of = torch.arange(side) // window
        sharing = of[:, None] * 2 + of  # number of each cell's window
        queries = torch.tensor([(sharing == w).sum() for w in sharing.flatten()])  # of the window of each key
        expected = weights[name].mean(1).sum(1) / queries
        assert maps[name].shape == (2, 160, 160)
        assert torch.allclose(maps[name][:, ::stride, ::stride].flatten(1), expected, atol=1e-6)


def test_mean_attention_is_even_where_nothing_is_learned():
    model = timm.create_model("efficientvit_ml_m0", img_size=224, num_classes=2).eval()
    for module in model.modules():
        if isinstance(module, CascadedGroupAttention):
            for norm in module.qkvs:
                torch.nn.init.zeros_(norm.bn.weight)
    even = mean_attention(model, torch.randn(1, 3, 224, 224))
    assert torch.allclose(even, torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("name", ["efficientvit_m0", "efficientvit_ml_m0"])
def test_two_in_a_row_are_equal_and_keep_no_state(name):
    model = timm.create_model(name, img_size=64, num_classes=2).train()
    keys = {n: set(vars(m)) for n, m in model.named_modules()}
    x = torch.randn(2, 3, 64, 64)
    first, second = attention_maps(model, x), attention_maps(model, x)
    assert first and all(torch.equal(first[n], second[n]) for n in first)
    assert model.training
    assert keys == {n: set(vars(m)) for n, m in model.named_modules()}
    model.eval()(x).sum().backward()  # gradients still flow


def test_a_model_without_such_attention():
    with pytest.raises(InputError, match=r"no cascaded group attention.*grad_cam"):
        attention_maps(timm.create_model("resnet10t"), torch.randn(1, 3, 64, 64))
