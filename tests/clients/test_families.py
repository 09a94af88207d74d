"""Every timm family that MXA grafts onto: the logits stay the same, everything trains, one line loads it."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from mxa.layers import MXABlock, graft, ungraft

pytestmark = pytest.mark.clients

FAMILIES = {  # name: blocks, formats
    "vit_tiny_patch16_224": (11, {"NLC"}),
    "deit_tiny_distilled_patch16_224": (11, {"NLC"}),
    "deit3_small_patch16_224": (11, {"NLC"}),
    "beit_base_patch16_224": (12, {"NLC"}),
    "eva02_tiny_patch14_224": (12, {"NLC"}),
    "swin_tiny_patch4_window7_224": (12, {"NHWC"}),
    "swinv2_tiny_window8_256": (12, {"NHWC"}),
    "maxvit_tiny_rw_224": (22, {"NHWC"}),
    "pvt_v2_b0": (8, {"NLC"}),
    "cait_xxs24_224": (24, {"NLC"}),
    "xcit_nano_12_p16_224": (12, {"NLC"}),
    "levit_128s": (9, {"NLC"}),
    "tiny_vit_5m_224": (10, {"NLC"}),
    "efficientvit_m0": (6, {"NCHW"}),
    "efficientvit_b0": (4, {"NCHW"}),
    "efficientvit_ml_m0": (6, {"NCHW"}),
    "coatnet_nano_rw_224": (7, {"NCHW"}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, tmp_path):
    torch.manual_seed(0)
    dropping = {} if name in ("efficientvit_m0", "efficientvit_b0") else {"drop_path_rate": 0.1}
    model = timm.create_model(name, num_classes=3, **dropping)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    keys, before = set(model.state_dict()), {}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in (True, False):
        torch.manual_seed(1)
        model.load_state_dict(state)  # the statistics of batch norm
        before[mode] = model.train(mode)(x)
    graft(model)
    for mode in (True, False):
        torch.manual_seed(1)
        model.load_state_dict(state)  # strict, without MXA's keys
        assert torch.equal(model.train(mode)(x), before[mode])
    blocks = [module for module in model.modules() if isinstance(module, MXABlock)]
    assert (len(blocks), {block.input_fmt for block in blocks}) == FAMILIES[name]
    assert keys < set(model.state_dict())
    for block in blocks:
        nn.init.constant_(block.ls.gamma, 0.5)
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for block in blocks for p in block.parameters())
    model.zero_grad()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(x), model.eval()(x))
    assert set(ungraft(model).state_dict()) == keys


def test_compile_and_export():
    torch.manual_seed(0)
    model = graft(timm.create_model("test_vit", num_classes=5, global_pool="avg")).eval()
    for block in (module for module in model.modules() if isinstance(module, MXABlock)):
        nn.init.constant_(block.ls.gamma, 0.5)
        nn.init.normal_(block.roi.head.score[-1].weight)
    x = torch.randn(2, 3, 160, 160)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    model.train()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
