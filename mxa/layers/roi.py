"""Learnable region-of-interest pooling (paper, appendix D), differentiable in the map and in the box."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

__all__ = ["MeanROIHead", "ROIHead", "ROIHead3d", "ROIPool", "ROIPool3d", "roi_resize", "roi_resize3d"]


def _interpolation(start: torch.Tensor, stop: torch.Tensor, size: int, out: int) -> torch.Tensor:
    """Makes the matrix that samples an interval of one axis linearly.

    Args:
        start: Start of each interval, ``(B,)`` in [0, 1].
        stop: Its end, ``(B,)``.
        size: Cells of the axis.
        out: Cells of the output.

    Returns:
        ``(B, out, size)``; each row sums to 1. Where ``out`` is smaller than ``size``, a row is the mean of several
        points, so many that an interval of the whole axis leaves out no cell.
    """
    share = -(-size // out)  # points of each cell of the output
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    points = (torch.arange(out * share, device=start.device, dtype=start.dtype) + 0.5) / (out * share)
    at = torch.lerp(start[:, None], stop[:, None], points)  # (B, points) in [0, 1]
    at = (at * size - 0.5).clamp(0, size - 1)[:, :, None]  # (B, points, 1) in cells, border clamped
    low = at.detach().floor()
    high = at - low
    weights = (cells == low) * (1 - high) + (cells == low + 1) * high  # (B, points, size)
    return weights if share == 1 else weights.view(-1, out, share, size).mean(2)


def roi_resize(x: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Crops boxes from each map and resizes them bilinearly to the size of the map (paper, appendix D).

    Samples exactly as ``affine_grid`` and ``grid_sample`` with ``align_corners=False``, ``padding_mode="border"`` and
    no antialiasing. A box is axis-aligned, so each axis is sampled by a product with a small matrix, rows first. The
    products run over channels-last maps, where no transposed copy is needed. They are deterministic in the backward
    pass, need no loop and no host sync, and export everywhere. ``mxa bench layers`` measures them beside
    ``grid_sample``, whose backward pass is not deterministic on CUDA. Coordinates are computed in float32 at least.

    Args:
        x: Maps ``(B, C, H, W)``.
        boxes: One box of each map, ``(B, 4)``, or N, ``(B, N, 4)``: ``x1, y1, x2, y2`` in [0, 1] of width and height;
            ``(0, 0, 1, 1)`` is the whole map.
        size: (H', W') of the output, that of the map by default. Where it is smaller than the map, each cell is the
            mean of several points, so that no cell of the map is skipped.

    Returns:
        ``(B, C, H', W')``, or ``(B, N, C, H', W')`` for N boxes, in the dtype of ``x``, each map channels-last in
        memory; differentiable in both arguments.
    """
    batch, channels, height, width = x.shape
    if boxes.dtype != torch.float64:
        boxes = boxes.float()
    out_height, out_width = (height, width) if size is None else size
    count = 1 if boxes.dim() == 2 else boxes.shape[1]
    x1, y1, x2, y2 = boxes.reshape(-1, 4).unbind(1)  # (B N,) each
    cols = _interpolation(x1, x2, width, out_width).to(x.dtype)  # (B N, W', W)
    rows = _interpolation(y1, y2, height, out_height).to(x.dtype).view(batch, count * out_height, height)
    cols = cols[:, None].expand(-1, out_height, -1, -1).reshape(-1, out_width, width)  # (B N H', W', W)
    x = torch.bmm(rows, x.permute(0, 2, 3, 1).reshape(batch, height, width * channels))  # (B, N H', W C)
    x = torch.bmm(cols, x.view(-1, width, channels))  # (B N H', W', C)
    x = x.view(batch, count, out_height, out_width, channels).permute(0, 1, 4, 2, 3)
    return x.squeeze(1) if boxes.dim() == 2 else x


def roi_resize3d(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Crops one box from each volume and resizes it trilinearly to the size of the volume, as ``roi_resize`` does maps.

    Args:
        x: Volumes ``(B, C, D, H, W)``.
        boxes: ``(B, 6)``, ``x1, y1, z1, x2, y2, z2`` in [0, 1] of width, height and depth.

    Returns:
        ``(B, C, D, H, W)`` in the dtype of ``x``; differentiable in both arguments.
    """
    batch, channels, depth, height, width = x.shape
    if boxes.dtype != torch.float64:
        boxes = boxes.float()
    maps = x.transpose(1, 2).reshape(batch * depth, channels, height, width)
    slices = torch.cat([boxes[:, :2], boxes[:, 3:5]], dim=1)
    maps = roi_resize(maps, slices.repeat_interleave(depth, dim=0))  # the same box in every slice
    maps = maps.permute(0, 2, 3, 1).reshape(batch, depth, height * width * channels)
    planes = _interpolation(boxes[:, 2], boxes[:, 5], depth, depth).to(x.dtype)  # (B, D', D)
    return torch.bmm(planes, maps).view(batch, depth, height, width, channels).permute(0, 4, 1, 2, 3)


def _clamp_value(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clamps the value but not its gradient, so that a box at the border can move away from it."""
    if not x.requires_grad:
        return x.clamp(low, high)
    return x.clamp(low, high).detach() + (x - x.detach())


def _box(centre: torch.Tensor, half: torch.Tensor, min_size: float) -> torch.Tensor:
    """Valid boxes from centres and half sizes, both ``(B, N)``: ``(B, 2 N)``, sides at least ``min_size``."""
    centre = _clamp_value(centre, min_size / 2, 1 - min_size / 2)
    half = _clamp_value(half, min_size / 2, 1.0)
    return _clamp_value(torch.cat([centre - half, centre + half], dim=1), 0.0, 1.0)


class ROIHead(nn.Module):
    """Predicts one box per map from the centre and the spread of a spatial softmax, so the box can follow an object.

    A pointwise, a depthwise 3x3 and a pointwise convolution give one heat map, which keeps positions. The centre of the
    box is the mean of the heat map. Its half size is ``sqrt(3)`` standard deviations times a learned scale per axis; a
    uniform distribution over a box has just this half width. The variance includes that of a single cell.

    The last convolution starts at zero and the scale at 0.8, so the first box is the centred 80 % of the map. A first
    box of the whole map would lie at the clamp and mostly stay there.

    Args:
        dim: Channels C.
        hidden_dim: Width of the convolutions, ``max(dim // 4, 1)`` by default.
        min_size: Smallest side of a box, in (0, 1).

    Shape: ``(B, C, H, W)`` to boxes ``(B, 4)``, float32 at least, ``0 <= x1 < x2 <= 1`` and ``0 <= y1 < y2 <= 1``.
    """

    axes = 2
    convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d
    norm: type[nn.BatchNorm2d | nn.BatchNorm3d] = nn.BatchNorm2d

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        min_size: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden_dim = hidden_dim or max(dim // 4, 1)
        self.min_size = min_size
        self.score = nn.Sequential(
            self.convolution(dim, hidden_dim, 1, bias=False, **dd),
            self.norm(hidden_dim, **dd),
            nn.ReLU(),
            self.convolution(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, bias=False, **dd),
            self.norm(hidden_dim, **dd),
            nn.ReLU(),
            self.convolution(hidden_dim, 1, 1, bias=False, **dd),
        )
        self.log_scale = nn.Parameter(torch.empty(self.axes, **dd))  # x, y
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Puts the first box at the centred 80 % of the map."""
        nn.init.zeros_(self.score[-1].get_parameter("weight"))
        nn.init.constant_(self.log_scale, math.log(0.8))

    def heat_map(self, x: torch.Tensor) -> torch.Tensor:
        """Returns where the head looks: ``(B, C, H, W)`` to ``(B, H, W)``, each map summing to 1."""
        score = self.score(x).squeeze(1)  # (B, H, W)
        if score.dtype != torch.float64:
            score = score.float()
        return score.flatten(1).softmax(dim=1).view_as(score)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return heat_box(self.heat_map(x), self.log_scale, self.min_size)


def heat_box(
    heat: torch.Tensor, log_scale: torch.Tensor, min_size: float, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """Makes a box of each heat map, ``ROIHead``'s way.

    Args:
        heat: ``(B, H, W)`` or ``(B, D, H, W)``, each map summing to 1.
        log_scale: Logarithm of the factor on the half size, of N axes, x first: ``(N,)``, or ``(B, N)``.
        min_size: Smallest side of a box, in (0, 1).
        shift: What is added to the centre, in half sizes of the box, ``(B, N)``.

    Returns:
        ``(B, 2 N)``: the lower corner, then the upper one, x first.
    """
    axes = [(torch.arange(n, device=heat.device, dtype=heat.dtype) + 0.5) / n for n in heat.shape[1:]]
    cells = torch.stack(torch.meshgrid(axes, indexing="ij")).flatten(1).flip(0)  # (N, cells), x first, in [0, 1]
    heat = heat.flatten(1)[:, None]  # (B, 1, cells)
    mean = (heat * cells).sum(2)  # (B, N); products, which autocast would round, are not used here
    scale = _clamp_value(log_scale.to(heat.dtype), -20.0, 20.0).exp()  # finite; the box is clamped anyhow
    scale = math.sqrt(3) * scale.unsqueeze(-1)  # (N, 1) or (B, N, 1)
    # The scale goes into the square: OpenVINO 2026.4 computes a sum that is scaled by (N,) wrongly, and takes a factor
    # out of a sum in graphs of 8 bits. The second term is the variance of a cell.
    squares = ((cells - mean[:, :, None]) * scale).square() + (cells[:, :1] * scale).square() / 3
    half = (heat * squares).sum(2).sqrt()  # (B, N)
    return _box(mean if shift is None else mean + shift * half, half, min_size)


class ROIHead3d(ROIHead):
    """``ROIHead`` of volumes: six numbers instead of four.

    Shape: ``(B, C, D, H, W)`` to boxes ``(B, 6)``, ``x1, y1, z1, x2, y2, z2``.
    """

    axes, convolution, norm = 3, nn.Conv3d, nn.BatchNorm3d


class MeanROIHead(nn.Module):
    """The box head of the published code, for comparison: convolutions to four sigmoids, averaged over the map.

    The average does not depend on where things are, so the box cannot follow an object. Two things differ from the
    published code. The four numbers are sorted into corners. They start near the centred 80 % of the map; four equal
    numbers, the published start, are an empty box.

    Args:
        dim: Channels C.
        min_size: Smallest side of a box, in (0, 1).

    Shape: ``(B, C, H, W)`` to boxes ``(B, 4)``, as ``ROIHead``.
    """

    def __init__(
        self,
        dim: int,
        min_size: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.min_size = min_size
        self.conv1 = nn.Conv2d(dim, max(dim // 2, 1), 3, padding=1, **dd)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(max(dim // 2, 1), 4, 1, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Puts the first box near the centred 80 % of the map."""
        with torch.no_grad():
            low, high = math.log(0.1 / 0.9), math.log(0.9 / 0.1)
            self.conv2.get_parameter("bias").copy_(torch.tensor([low, low, high, high]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corners = self.conv2(self.act(self.conv1(x)))  # (B, 4, H, W)
        if corners.dtype != torch.float64:
            corners = corners.float()
        a, b = corners.sigmoid().mean((2, 3)).chunk(2, dim=1)  # (B, 2) each, as x, y
        return _box((a + b) / 2, (b - a).abs() / 2, self.min_size)


class ROIPool(nn.Module):
    """Learnable ROI pooling (paper, appendix D): predict a box, crop it, resize it to the size of the map.

    Args:
        dim: Channels C.
        roi_head: ``"softmax"`` for ``ROIHead``, ``"mean"`` for ``MeanROIHead``.
        min_size: Smallest side of a box, in (0, 1).

    Shape: ``(B, C, H, W)`` to the same. The boxes are ``pool.head(x)``.
    """

    def __init__(
        self,
        dim: int,
        roi_head: str = "softmax",
        min_size: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        heads = {"softmax": ROIHead, "mean": MeanROIHead}
        if roi_head not in heads:
            raise ValueError(f"unknown roi_head {roi_head!r}: give one of {', '.join(heads)}")
        self.head = heads[roi_head](dim, min_size=min_size, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # for the head, as for the crop
        return roi_resize(x, self.head(x))


class ROIPool3d(nn.Module):
    """Learnable ROI pooling of volumes: predict a box, crop it, resize it to the size of the volume.

    Args:
        dim: Channels C.
        min_size: Smallest side of a box, in (0, 1).

    Shape: ``(B, C, D, H, W)`` to the same. The boxes are ``pool.head(x)``.
    """

    def __init__(
        self,
        dim: int,
        min_size: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.head = ROIHead3d(dim, min_size=min_size, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return roi_resize3d(x, self.head(x))
