import math

import pytest
import torch
from torch import nn

from mxa.layers import CBAM, ChannelAttention, SpatialAttention


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def mlp_loop(vector, w1, w2):
    hidden = [max(sum(w * v for w, v in zip(row, vector, strict=True)), 0.0) for row in w1]
    return [sum(w * h for w, h in zip(row, hidden, strict=True)) for row in w2]


def channel_loop(x, attention):
    """Paper, E.1, on one map: C x H x W nested lists."""
    w1, w2 = attention.fc1.weight[:, :, 0, 0].tolist(), attention.fc2.weight[:, :, 0, 0].tolist()
    cells = [[v for row in c for v in row] for c in x]
    average = mlp_loop([sum(c) / len(c) for c in cells], w1, w2)
    largest = mlp_loop([max(c) for c in cells], w1, w2)
    return [[[v * sigmoid(a + m) for v in row] for row in c] for c, a, m in zip(x, average, largest, strict=True)]


def spatial_loop(x, attention):
    """Paper, E.2, on one map."""
    kernel = attention.conv.weight[0].tolist()
    channels, height, width, pad = len(x), len(x[0]), len(x[0][0]), len(kernel[0]) // 2
    out = [[[0.0] * width for _ in range(height)] for _ in range(channels)]
    for i in range(height):
        for j in range(width):
            total = 0.0
            for y in range(max(i - pad, 0), min(i + pad + 1, height)):
                for z in range(max(j - pad, 0), min(j + pad + 1, width)):
                    column = [x[c][y][z] for c in range(channels)]
                    total += kernel[0][y - i + pad][z - j + pad] * max(column)
                    total += kernel[1][y - i + pad][z - j + pad] * sum(column) / channels
            for c in range(channels):
                out[c][i][j] = x[c][i][j] * sigmoid(total)
    return out


def example(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 3, 16, 40])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_channel_attention_equals_loop(dim, size):
    x, attention = example(2, dim, *size), ChannelAttention(dim, reduction=4, dtype=torch.float64)
    expected = torch.tensor([channel_loop(image, attention) for image in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_spatial_attention_equals_loop(kernel_size, size):
    x, attention = example(2, 3, *size), SpatialAttention(kernel_size, dtype=torch.float64)
    expected = torch.tensor([spatial_loop(image, attention) for image in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(attention(x), expected)


def test_cbam_is_channel_then_spatial():
    x, cbam = example(2, 6, 4, 5), CBAM(6, reduction=2, dtype=torch.float64)
    expected = [spatial_loop(channel_loop(image, cbam.channel), cbam.spatial) for image in x.tolist()]
    torch.testing.assert_close(cbam(x), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("dim", "reduction", "hidden"), [(64, 16, 4), (8, 16, 1), (1, 16, 1), (24, 5, 4)])
def test_channel_attention_has_one_mlp_without_bias(dim, reduction, hidden):
    shapes = [tuple(p.shape) for p in ChannelAttention(dim, reduction).parameters()]
    assert shapes == [(hidden, dim, 1, 1), (dim, hidden, 1, 1)]


def test_spatial_attention_is_one_7x7_convolution_without_bias_or_norm():
    attention = SpatialAttention()
    assert {name: tuple(p.shape) for name, p in attention.named_parameters()} == {"conv.weight": (1, 2, 7, 7)}
    assert [type(m) for m in attention.children()] == [nn.Conv2d]


def test_spatial_gate():
    x, attention = example(2, 5, 6, 6), SpatialAttention(3, dtype=torch.float64)
    gate = attention.gate(x)
    assert gate.shape == (2, 1, 6, 6)
    torch.testing.assert_close(attention(x), x * gate)
    with torch.no_grad():
        attention.conv.weight.zero_()
    torch.testing.assert_close(attention.gate(x), torch.full_like(gate, 0.5))


@pytest.mark.parametrize(
    "module",
    [
        ChannelAttention(4, 2, dtype=torch.float64),
        SpatialAttention(3, dtype=torch.float64),
        CBAM(4, 2, 3, dtype=torch.float64),
    ],
    ids=lambda m: type(m).__name__,
)
def test_gradcheck(module):
    x = example(2, 4, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


@pytest.mark.parametrize("kernel_size", [2, 4, 8])
def test_even_kernel_is_an_error(kernel_size):
    with pytest.raises(ValueError, match="odd"):
        SpatialAttention(kernel_size)
    with pytest.raises(ValueError, match="odd"):
        CBAM(8, kernel_size=kernel_size)
