"""Grad-CAM and integrated gradients: identities, planted places, other people's models, and the randomisation check."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mxa.data import create_transform
from mxa.explain import attention_maps, grad_cam, integrated_gradients, rank_correlation, shuffled
from mxa.explain.hooks import true_gradients
from mxa.layers import ROIHead
from mxa.utils.errors import InputError


class Detector(nn.Module):
    """Logit 0 counts bright pixels of the upper left quarter, logit 1 of the lower right one."""

    num_classes = 2
    label_names = ("Edema", "Pleural Effusion")

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4, 4, bias=False)
        self.pretrained_cfg = {"input_size": (3, 32, 48), "mean": (0.0,) * 3, "std": (1.0,) * 3}
        self.feature_info = [{"module": "gates"}]
        self.gates = nn.ReLU()
        nn.init.constant_(self.conv.weight, 1 / 48)
        quarters = torch.zeros(1, 2, 8, 12)
        quarters[0, 0, :4, :6] = quarters[0, 1, 4:, 6:] = 1
        self.register_buffer("quarters", quarters)

    def forward(self, x):
        return self.gates(self.conv(x) * self.quarters).sum((2, 3))


def test_maps_are_where_the_detector_looks():
    x = torch.zeros(1, 3, 32, 48)
    x[:, :, 4:8, 8:12] = 1.0  # cell (1, 2), upper left
    x[:, :, 24:28, 40:44] = 1.0  # cell (6, 10), lower right
    model = Detector().eval()
    for maps in (grad_cam(model, x), integrated_gradients(model, x)):
        assert maps.shape == (1, 2, 32, 48) and maps.dtype == torch.float32
        for heat, (y, left) in zip(maps[0], ((4, 8), (24, 40)), strict=True):
            rows, columns = (heat > heat.max() / 2).nonzero().T
            assert (rows.float().mean(), columns.float().mean()) == (pytest.approx(y + 1.5), pytest.approx(left + 1.5))
    exact = integrated_gradients(model, x)[0]
    assert exact[0].sum() == pytest.approx(1) and exact[0, 4:8, 8:12].sum() == pytest.approx(1)  # linear: all of it
    assert grad_cam(model, x)[0, 0].max() > 0


def test_labels_by_name_index_and_order():
    model, x = Detector().eval(), torch.rand(2, 3, 32, 48)
    both = grad_cam(model, x)
    assert torch.equal(grad_cam(model, x, ["Effusion", 0]), both.flip(1))  # a synonym
    for function in (grad_cam, integrated_gradients):
        with pytest.raises(InputError, match="no output 'Mass'; its outputs: Edema"):
            function(model, x, ["Mass"])
        with pytest.raises(InputError, match="no output 2"):
            function(model, x, [2])
    unnamed = timm.create_model("resnet10t", num_classes=2)
    with pytest.raises(InputError, match=r"no output 'Edema'.*index below 2"):
        grad_cam(unnamed, torch.randn(1, 3, 64, 64), ["Edema"])


def test_integrated_gradients_add_up(mxa):
    """The sum over the image is the logit less that of black, within 2 %, and better with more steps."""
    black = create_transform(mxa).to_tensor.normalize(torch.zeros(1, 1, 160, 160))
    x = black + 0.02 * torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = (mxa(x) - mxa(black))[:, [1]]
    few, many = ((integrated_gradients(mxa, x, ["Mass"], steps=n).sum((2, 3)) - expected).abs().max() for n in (4, 64))
    assert many < 0.02 * expected.abs().max()
    assert many < few


@pytest.mark.parametrize("held", [True, False])
def test_a_box_held_at_the_border_has_no_gradient(held):
    """Training passes the gradient through the clamp; an attribution must not: finite differences say so."""
    head = ROIHead(4).double().eval()
    nn.init.normal_(head.score[-1].weight, std=0.1)
    nn.init.constant_(head.log_scale, 1.0 if held else -1.0)  # a box far beyond the map, or well inside
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    direction, step = torch.randn_like(x), 1e-6
    with torch.no_grad():
        slope = (head(x + step * direction) - head(x - step * direction)).sum() / (2 * step)
    with true_gradients(head):
        honest = (torch.autograd.grad(head(x).sum(), x)[0] * direction).sum()
    training = (torch.autograd.grad(head(x).sum(), x)[0] * direction).sum()
    assert honest.item() == pytest.approx(slope.item(), abs=1e-7)
    assert (training.item() == pytest.approx(slope.item(), abs=1e-7)) is not held
    assert not head._forward_hooks


def test_grad_cam_is_its_definition(mxa, images):
    x = images.clone()
    kept = []
    handle = mxa.stages[1].register_forward_hook(lambda m, i, o: kept.append(o))
    logit = mxa(x)[:, 2].sum()
    handle.remove()
    gradient = torch.autograd.grad(logit, kept[0])[0]
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu().detach()
    found = grad_cam(mxa, images, [2], layer="stages.1")[:, 0, ::32, ::32]
    assert torch.allclose(found, expected, atol=1e-5) and expected.max() > 0


@pytest.mark.parametrize("name", ["efficientvit_ml_m0_mxa", "efficientvit_m0", "resnet10t"])
@pytest.mark.parametrize("frozen", [False, True])
def test_two_in_a_row_leave_no_trace(name, frozen):
    model = timm.create_model(name, num_classes=2)  # in training mode
    model.requires_grad_(not frozen)
    x = torch.randn(2, 3, 224, 224)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for function in (grad_cam, lambda m, x: integrated_gradients(m, x, [0], steps=2)):
        with torch.inference_mode():
            first = function(model, x)
        assert torch.equal(first, function(model, x))
        assert first.shape[-2:] == (224, 224)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())


def test_layers_without_maps():
    x = torch.randn(1, 3, 224, 224)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    with pytest.raises(InputError, match=r"layer blocks\.11 gives \(1, 197, 192\).*name a layer"):
        grad_cam(vit, x)
    assert integrated_gradients(vit, x, [1], steps=2).shape == (1, 1, 224, 224)
    net = timm.create_model("resnet10t", num_classes=2)
    with pytest.raises(InputError, match="no layer 'nowhere'"):
        grad_cam(net, x, layer="nowhere")
    assert grad_cam(net, x, layer="layer2").shape == (1, 2, 224, 224)
    net.unused = nn.Identity()
    with pytest.raises(InputError, match="takes no part"):
        grad_cam(net, x, layer="unused")
    del net.feature_info
    with pytest.raises(InputError, match="no feature maps"):
        grad_cam(net, x)


def test_maps_change_when_the_weights_are_shuffled(mxa):
    """The randomisation check of Adebayo et al.; a map of the image alone, its brightness, does not pass it."""
    images = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(3))
    images = nn.functional.interpolate(images, (160, 160), mode="bicubic")
    other = shuffled(mxa)
    brightness = images.mean(1)
    assert rank_correlation(brightness, brightness).mean() == pytest.approx(1)
    for function in (grad_cam, lambda m, x: integrated_gradients(m, x, [0], steps=8), first_attention):
        a, b = function(mxa, images), function(other, images)
        assert rank_correlation(a, a).nanmean() == pytest.approx(1)
        assert rank_correlation(a, b).nanmean().abs() < 0.5
    assert all(torch.equal(p.sort().values, q.sort().values) for p, q in flat_parameters(mxa, other))


def first_attention(model, images):
    return next(iter(attention_maps(model, images).values()))


def flat_parameters(*models):
    return zip(*([p.detach().flatten() for p in m.parameters()] for m in models), strict=True)


def test_rank_correlation_shares_ties():
    a = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    b = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    assert rank_correlation(a, b).item() == pytest.approx(-1 / 3)
    c, d = torch.tensor([[5.0, 5.0, 5.0, 7.0, 9.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])  # ranks 2 2 2 4 5
    assert rank_correlation(c, d).item() == pytest.approx(8 / 80**0.5)
    assert rank_correlation(a.exp(), a).item() == pytest.approx(1)
    assert rank_correlation(a, torch.zeros(1, 4)).isnan()
