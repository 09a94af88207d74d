"""Cells, boxes and peaks, against hand-worked numbers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mxa.explain.geometry import find_peak, least_shown, place, upsample
from mxa.explain.hooks import observe
from mxa.layers import roi_resize
from mxa.layers.grid import Grid, to_image

GRID = Grid((4, 6), (8.0, 8.0), (0.0, 0.0), (32, 48))  # as 3 x 3 convolutions with padding 1 make it


def grid_of(model: nn.Module, layer: str, size: tuple[int, int]) -> Grid:
    found = []
    look = lambda _, output, grid: found.append(grid(output))  # noqa: E731
    observe(model, torch.randn(1, 3, *size), {model.get_submodule(layer): look})
    return found[0]


@pytest.mark.parametrize(
    ("name", "layer", "stride", "first"),
    [
        ("efficientvit_ml_m0_mxa", "stages.0", 16, 0),
        ("efficientvit_ml_m0_mxa", "stages.1", 32, 0),
        ("efficientvit_ml_m0_mxa", "stages.2", 64, 0),
        ("resnet10t", "layer4", 32, 0),
        ("convnext_atto", "stages.3", 32, 15.5),
        ("vit_tiny_patch16_224", "patch_embed.proj", 16, 7.5),
    ],
)
def test_grids_of_networks(name, layer, stride, first):
    assert grid_of(timm.create_model(name), layer, (224, 224))[1:3] == ((stride, stride), (first, first))


def test_a_map_made_smaller_by_something_unknown_divides_the_image_evenly():
    assert grid_of(nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d((2, 4))), "1", (32, 40)) == Grid(
        (2, 4), (16.0, 10.0), (7.5, 4.5), (32, 40)
    )


@pytest.mark.parametrize(
    "net",
    [
        [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)],
        [nn.Conv2d(3, 4, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1, 2, 0)],
        [nn.Conv2d(3, 4, 4, 4, 0), nn.Conv2d(4, 4, 2, 2, 0)],
        [nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, (2, 1), 1)],
    ],
)
def test_a_cell_is_where_its_gradient_is(net):
    """With positive weights the gradient of a cell is centred on its pixel."""
    model = nn.Sequential(*net)
    for weight in model.parameters():
        nn.init.ones_(weight)
    grid = grid_of(model, str(len(net) - 1), (96, 64))
    image = torch.rand(1, 3, 96, 64).requires_grad_()
    row, column = 3, 4
    model(image)[0, :, row, column].sum().backward()
    weight = image.grad[0].sum(0)
    y, x = (weight.sum(1) * torch.arange(96.0)).sum(), (weight.sum(0) * torch.arange(64.0)).sum()
    expected = [f + c * s for f, c, s in zip(grid.first, (row, column), grid.stride, strict=True)]
    assert [float(y / weight.sum()), float(x / weight.sum())] == pytest.approx(expected, abs=1e-3)


def test_upsampling_passes_through_the_cells():
    maps = torch.rand(2, 4, 6)
    large = upsample(maps, GRID)
    assert large.shape == (2, 32, 48) and large.dtype == torch.float32
    assert torch.allclose(large[:, ::8, ::8], maps)
    assert torch.allclose(large[:, 4, 8], (maps[:, 0, 1] + maps[:, 1, 1]) / 2)
    assert torch.allclose(large[:, 28:, 44:], maps[:, -1:, -1:].expand(2, 4, 4))  # beyond the last centre


def test_a_box_in_image_coordinates():
    """Cells 1 and 2 of a row, edge to edge, are centred on the pixels 8 and 16: from 4.5 to 20.5."""
    box = to_image(torch.tensor([[1 / 6, 1 / 4, 3 / 6, 3 / 4]]), GRID)[0]
    assert torch.allclose(box * torch.tensor([48.0, 32, 48, 32]), torch.tensor([4.5, 4.5, 20.5, 20.5]))
    assert to_image(torch.tensor([[0.0, 0, 1, 1]]), GRID)[0, :2].tolist() == [0, 0]  # clamped


def test_a_crop_goes_back_to_its_place():
    """Placing undoes the crop: of a map that rises evenly, exactly, inside the box; outside is zero."""
    rise = torch.arange(6.0)[None, None, None] + 10 * torch.arange(4.0)[None, None, :, None]  # (1, 1, 4, 6)
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    back = place(roi_resize(rise, boxes)[:, 0], GRID, boxes)[0]
    whole = upsample(rise[:, 0], GRID)[0]
    x1, y1, x2, y2 = (to_image(boxes, GRID)[0] * torch.tensor([48.0, 32, 48, 32])).tolist()
    x, y = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(32) + 0.5, indexing="xy")
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    assert torch.equal(back == 0, ~inside)
    inner = (x >= x1 + 3) & (x <= x2 - 3) & (y >= y1 + 3) & (y <= y2 - 3)  # further than half a cell of the crop
    assert inner.sum() > 100
    assert torch.allclose(back[inner], whole[inner], atol=1e-4)


def test_peak_and_box():
    heat = torch.zeros(10, 20)
    heat[2:4, 5:9] = 0.6
    heat[3, 6] = 1.0
    heat[8, 15] = 0.9  # above half, but another part
    peak = find_peak(heat)
    assert peak.point == pytest.approx((6.5 / 20, 3.5 / 10))
    assert peak.box == pytest.approx((5 / 20, 2 / 10, 9 / 20, 4 / 10))
    assert find_peak(heat, low=0.3).box == pytest.approx((6 / 20, 3 / 10, 7 / 20, 4 / 10))
    assert find_peak(torch.zeros(3, 3)) is None
    assert find_peak(torch.full((3, 3), float("nan"))) is None
    even = 1 / 9 + 1e-9 * torch.rand(3, 3)
    assert find_peak(even) is find_peak(even, least_shown(even)) is None  # rounding is no peak
    assert find_peak(-torch.ones(3, 3)) is None
    assert least_shown(heat) == pytest.approx(0.6) and least_shown(torch.zeros(2, 2)) == 0


def test_observing_leaves_hooks_and_modes_as_they_were():
    model = timm.create_model("resnet10t")
    model.train()
    model.bn1.eval()
    before = model.bn1.running_mean.clone(), model.layer1[0].bn1.running_mean.clone()
    grid_of(model, "layer4", (64, 64))
    assert model.training and model.layer1.training and not model.bn1.training
    assert torch.equal(model.layer1[0].bn1.running_mean, before[1])
    assert all(not m._forward_hooks for m in model.modules())
    with pytest.raises(ZeroDivisionError):
        observe(model, torch.randn(1, 3, 64, 64), {model.layer4: lambda *a: 1 / 0})
    assert all(not m._forward_hooks for m in model.modules())
