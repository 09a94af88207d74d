"""``deploy``: the same outputs, no norms left, and the model itself as it was."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import mxa
from mxa.deployment.fuse import prepare_graph
from mxa.layers import MXABlock, attach_finding_head, graft

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every norm statistics and every weight values as training would, so that nothing is neutral."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS) and module.running_var is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
        if type(module).__name__.startswith("CascadedGroupAttention"):
            module.attention_biases.data.normal_(0, 1, generator=generator)
        if isinstance(module, MXABlock):
            if hasattr(module.roi.head, "score"):
                module.roi.head.score[-1].weight.data.normal_(0, 8, generator=generator)
            module.ls.gamma.data.uniform_(-1, 1, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in model.modules())


MODELS = {
    "efficientvit_ml_m0_mxa": (lambda: timm.create_model("efficientvit_ml_m0_mxa"), 0),
    "efficientvit_ml_m5_mxa": (lambda: timm.create_model("efficientvit_ml_m5_mxa", img_size=128), 0),
    "averaging head": (lambda: timm.create_model("efficientvit_ml_m0_mxa", mxa_roi_head="mean"), 0),
    "grafted": (lambda: graft(timm.create_model("efficientvit_m0", num_classes=3), init_values=1.0), 0),
    "finding head": (lambda: attach_finding_head(timm.create_model("efficientvit_ml_m0", num_classes=3)), None),
    "mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=3), 0),
    "tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=3), 0),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=3), 0),
    "densenet121": (lambda: timm.create_model("densenet121", num_classes=3), None),
    "test_vit": (lambda: timm.create_model("test_vit", num_classes=3), None),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_same_and_the_model_is_untouched(name):
    torch.manual_seed(0)
    build, left = MODELS[name]
    model = trained(build())
    before = copy.deepcopy(model.state_dict())
    fused = mxa.deploy(model.train())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    size = model.pretrained_cfg["input_size"][1:] if name != "efficientvit_ml_m5_mxa" else (128, 128)
    x = torch.randn(3, 3, *size)
    with torch.inference_mode():
        right, found = model(x), fused(x)
    scale = max(1.0, right.abs().max().item())
    assert torch.allclose(found, right, atol=1e-5 * scale), (found - right).abs().max()
    assert norms(fused) < max(norms(model), 1)
    assert left is None or norms(fused) == left
    assert not any(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize("side", [4, 7, 8, 9, 14])
def test_a_pooled_map_is_the_same_whatever_its_size(side):
    """Both ways of cropping, one product and two, and boxes at the border and inside."""
    torch.manual_seed(side)
    block = trained(MXABlock(24), side)
    x = torch.randn(16, 24, side, side) * 3
    fused = mxa.deploy(nn.Sequential(block))
    with torch.inference_mode():
        boxes = block.roi.head(x)
        assert torch.allclose(fused(x), block(x), atol=5e-5)
    assert boxes.std(0).max() > 0.05  # the boxes differ: the crop is not always the whole map


def test_a_map_that_is_not_square():
    block = trained(MXABlock(8))
    x = torch.randn(4, 8, 5, 9)
    with torch.inference_mode():
        assert torch.allclose(mxa.deploy(nn.Sequential(block))(x), block(x), atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_the_forms_for_graphs_are_the_same(size):
    torch.manual_seed(0)
    model = mxa.deploy(trained(timm.create_model("efficientvit_ml_m0_mxa", img_size=size)))
    x = torch.randn(3, 3, *size)
    with torch.inference_mode():
        right, changed = model(x), prepare_graph(copy.deepcopy(model))
        assert (changed(x) - right).abs().max() < 1e-5
    kinds = {type(module).__name__ for module in changed.modules()}
    assert {"_ApartAttention", "_AlignedROIPool"} <= kinds and not {"_Attention", "ROIPool"} & kinds


class Shared(nn.Module):
    """What must not be folded: a norm that is used twice, and a convolution whose output something else takes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.twice, self.once = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.pair = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        seen = self.c(x)
        return self.twice(self.a(x)) + self.twice(self.b(x)) + self.once(seen) * seen + self.pair(self.pair(x))


def test_what_is_shared_is_not_folded():
    model = trained(Shared())
    fused = mxa.deploy(model)
    x = torch.randn(2, 4, 5, 5)
    assert torch.allclose(fused(x), model(x), atol=1e-5)
    assert isinstance(fused.twice, nn.BatchNorm2d) and isinstance(fused.once, nn.BatchNorm2d)


class Branching(nn.Module):
    """Code that torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        y = self.pair(x)
        return y if y.mean() > 0 else -y


def test_what_cannot_be_traced_is_folded_within_sequences():
    model = trained(Branching())
    fused = mxa.deploy(model)
    x = torch.randn(2, 3, 5, 5)
    assert torch.allclose(fused(x), model(x), atol=1e-5)
    assert norms(fused) == 0
