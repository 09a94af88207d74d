"""Maps, tokens and volumes: the same numbers, whatever their layout."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mxa.layers import CBAM, CBAM3d, MXABlock, MXABlock3d, ROIHead, ROIHead3d, roi_resize3d

DIM = 8


def blocks(**options) -> tuple[MXABlock, MXABlock]:
    """One that takes maps and one of another format, with the same weights; the box follows the input."""
    torch.manual_seed(0)
    plain = MXABlock(DIM, reduction=4).double().eval()
    nn.init.normal_(plain.roi.head.score[-1].weight)
    other = MXABlock(DIM, reduction=4, **options).double().eval()
    other.load_state_dict(plain.state_dict())
    return plain, other


def to_tokens(x: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """Row by row, as timm's ``PatchEmbed`` flattens."""
    rows = [x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])]
    return torch.cat([prefix, torch.stack(rows, dim=1)], dim=1)


@pytest.mark.parametrize("size", [(5, 5), (4, 6), (7, 3)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_every_format_gives_the_same_numbers(size, prefix):
    x = torch.randn(2, DIM, *size, dtype=torch.float64, requires_grad=True)
    first = torch.randn(2, prefix, DIM, dtype=torch.float64, requires_grad=True)
    plain, nhwc = blocks(input_fmt="NHWC")
    wanted = plain(x)
    torch.testing.assert_close(nhwc(x.permute(0, 2, 3, 1)), wanted.permute(0, 2, 3, 1))
    plain, tokens = blocks(input_fmt="NLC", num_prefix_tokens=prefix, grid_size=size)
    out = tokens(to_tokens(x, first))
    torch.testing.assert_close(out[:, prefix:], to_tokens(wanted, first)[:, prefix:])
    assert (out[:, :prefix] == 0).all()
    (gradient,) = torch.autograd.grad(out.square().sum(), first, allow_unused=True, materialize_grads=True)
    assert (gradient == 0).all()


def test_the_grid_is_square_or_of_the_shape_given():
    _, block = blocks(input_fmt="NLC")
    assert block(torch.randn(1, 49, DIM).double()).shape == (1, 49, DIM)
    with pytest.raises(ValueError, match="48 tokens do not fill a map shaped like 1 x 1: give grid_size"):
        block(torch.randn(1, 48, DIM).double())
    _, block = blocks(input_fmt="NLC", grid_size=(3, 4))
    assert block(torch.randn(1, 48, DIM).double()).shape == (1, 48, DIM)  # 6 x 8
    with pytest.raises(ValueError, match="49 tokens do not fill a map shaped like 3 x 4"):
        block(torch.randn(1, 49, DIM).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_fmt": "NCL"}, "unknown input_fmt 'NCL': give NCHW, NHWC or NLC"),
        ({"num_prefix_tokens": 1}, "are for tokens"),
        ({"input_fmt": "NHWC", "grid_size": (2, 2)}, "are for tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MXABlock(DIM, **options)


SHAPES = {"NCHW": (2, DIM, 6, 6), "NHWC": (2, 6, 6, DIM), "NLC": (2, 36, DIM)}


@pytest.mark.parametrize("fmt", SHAPES)
def test_an_input_of_another_format_or_width_is_named(fmt):
    _, block = blocks(input_fmt=fmt)
    wrong = [shape for other, shape in SHAPES.items() if other != fmt]
    wrong += [tuple(2 * n if n == DIM else n for n in SHAPES[fmt]), SHAPES[fmt][1:], (*SHAPES[fmt], 1)]
    scripted = torch.jit.script(block)
    for shape in wrong:
        words = f"a block for {fmt} with C = {DIM} got an input of {list(shape)}: give the input_fmt (NCHW, NHWC or"
        with pytest.raises(ValueError, match=re.escape(words)):
            block(torch.randn(shape).double())
        with pytest.raises(torch.jit.Error, match=re.escape(words)):
            scripted(torch.randn(shape).double())
    x = torch.randn(SHAPES[fmt]).double()
    torch.testing.assert_close(scripted(x), block(x))
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x))
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), block(x))


def test_tokens_script_and_compile():
    _, block = blocks(input_fmt="NLC", num_prefix_tokens=1)
    x = torch.randn(2, 26, DIM, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.script(block)(x), block(x))
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), block(x))


# Volumes


def random_boxes(count: int) -> torch.Tensor:
    low, high = torch.rand(2, count, 3, dtype=torch.float64).sort(0).values
    return torch.cat([low, high + 0.05], dim=1)


def test_a_volume_is_cropped_as_grid_sample_does():
    torch.manual_seed(0)
    x, boxes = torch.randn(3, 2, 5, 6, 7, dtype=torch.float64), random_boxes(3).clamp(0, 1)
    theta = torch.zeros(3, 3, 4, dtype=torch.float64)
    for axis in range(3):
        low, high = boxes[:, axis], boxes[:, axis + 3]
        theta[:, axis, axis], theta[:, axis, 3] = high - low, low + high - 1
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    wanted = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(roi_resize3d(x, boxes), wanted)
    whole = torch.tensor([[0.0, 0, 0, 1, 1, 1]], dtype=torch.float64).expand(3, 6)
    torch.testing.assert_close(roi_resize3d(x, whole), x)


def test_gradients_of_a_volume():
    torch.manual_seed(1)
    x = torch.randn(1, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.13, 0.22, 0.11, 0.83, 0.71, 0.92]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(roi_resize3d, (x, boxes))


def test_one_slice_is_a_map():
    """A volume of one slice, and one that repeats a map, are what the 2-d layers make of that map."""
    torch.manual_seed(2)
    x = torch.randn(2, DIM, 6, 5, dtype=torch.float64)
    flat, deep = CBAM(DIM, 4, 3).double(), CBAM3d(DIM, 4, 3).double()
    state = flat.state_dict()
    kernel = state["spatial.conv.weight"]
    state["spatial.conv.weight"] = F.pad(kernel[:, :, None], (0, 0, 0, 0, 1, 1))  # only the middle slice counts
    deep.load_state_dict(state)
    volume = x[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(deep(volume), flat(x)[:, :, None].expand_as(volume))
    head2, head3 = ROIHead(DIM).double().eval(), ROIHead3d(DIM).double().eval()
    nn.init.normal_(head2.score[-1].weight)
    state = head2.state_dict()
    for key in [k for k in state if state[k].ndim == 4]:
        side = state[key].shape[-1] // 2
        state[key] = F.pad(state[key][:, :, None], (0, 0, 0, 0, side, side))
    state["log_scale"] = torch.cat([state["log_scale"], torch.zeros(1, dtype=torch.float64)])
    head3.load_state_dict(state)
    box2, box3 = head2(x), head3(volume)
    torch.testing.assert_close(box3[:, (0, 1, 3, 4)], box2)
    torch.testing.assert_close(box3[:, (2, 5)], torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(2, 2))


def test_the_box_follows_an_object_in_a_toy_volume():
    """A bright ball somewhere in a volume: the box that scores high is the one around it."""
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(0)
    z, y, x = torch.meshgrid(*[(torch.arange(12) + 0.5) / 12] * 3, indexing="ij")

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        centre = 0.2 + 0.6 * torch.rand(count, 3, generator=generator)  # x, y, z
        distance = sum((a - c[:, None, None, None]).square() for a, c in zip((x, y, z), centre.T, strict=True))
        volume = (-distance / 0.02).exp() + 0.1 * torch.randn(count, 12, 12, 12, generator=generator)
        return volume[:, None].repeat(1, 4, 1, 1, 1), centre

    head = ROIHead3d(4, hidden_dim=8)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(60):
        volume, centre = batch(16)
        boxes = head(volume)
        loss = ((boxes[:, :3] + boxes[:, 3:]) / 2 - centre).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    volume, centre = batch(64)
    boxes = head.eval()(volume)
    assert ((boxes[:, :3] + boxes[:, 3:]) / 2 - centre).abs().mean() < 0.06
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, :3] < boxes[:, 3:]).all()


def test_a_block_of_volumes_trains_every_parameter():
    torch.manual_seed(4)
    block = MXABlock3d(DIM, reduction=4)
    nn.init.normal_(block.roi.head.score[-1].weight)
    x = torch.randn(2, DIM, 4, 5, 6)
    y = block(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    assert (MXABlock3d(DIM, init_values=0.0)(x) == 0).all()
    block.eval()
    torch.testing.assert_close(torch.jit.script(block)(x), block(x))
