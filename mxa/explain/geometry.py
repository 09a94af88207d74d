"""Maps of cells as maps of pixels, and what stands out in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..layers.grid import Grid

__all__ = ["Peak", "find_peak", "least_shown", "place", "upsample"]


def upsample(maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Interpolates maps ``(B, h, w)`` to the image, ``(B, H, W)``: bilinear, constant beyond the outermost centres."""
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(maps), 4)
    return _sample(maps, grid, whole)[0]


def place(crops: torch.Tensor, grid: Grid, boxes: torch.Tensor) -> torch.Tensor:
    """Puts what was computed on a ROI crop back where the crop was taken: the inverse of ``roi_resize``.

    Args:
        crops: ``(B, h, w)``, with as many cells as the map that was cropped.
        grid: The grid of that map.
        boxes: The crops ``(B, 4)``, xyxy in [0, 1] of that map.

    Returns:
        ``(B, H, W)``, bilinear inside the box, 0 where a pixel's centre is outside.
    """
    values, inside = _sample(crops, grid, boxes)
    return values * inside


def _sample(maps: torch.Tensor, grid: Grid, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each map, stretched over its box, at every pixel, and which pixels lie in the box: both ``(B, H, W)``."""
    weights, within = [], []
    for axis in (0, 1):
        n = grid.cells[axis]
        start, stop = boxes[:, 1 - axis, None].float().cpu(), boxes[:, 3 - axis, None].float().cpu()
        pixels = torch.arange(grid.size[axis], dtype=torch.float32)
        share = ((pixels - grid.first[axis]) / grid.stride[axis] + 0.5) / n  # of the map, in [0, 1]
        inside = (share - start) / (stop - start)  # (B, pixels), of the box
        at = (inside * n - 0.5).clamp(0, n - 1)
        weights.append((1 - (at[:, :, None] - torch.arange(n)).abs()).clamp(min=0))  # (B, pixels, n)
        within.append((inside >= 0) & (inside <= 1))
    values = weights[0] @ maps.float().cpu() @ weights[1].transpose(1, 2)
    return values, within[0][:, :, None] & within[1][:, None, :]


class Peak(NamedTuple):
    """The strongest pixel of a map and the box around the part it stands in, in [0, 1] of the image."""

    point: tuple[float, float]
    """Centre of the strongest pixel, x and y."""
    box: tuple[float, float, float, float]
    """xyxy around the pixels above half of the maximum that are connected with the peak."""


def find_peak(heat: torch.Tensor, low: float = 0.0) -> Peak | None:
    """Finds the peak of one map ``(H, W)``.

    Args:
        heat: The map.
        low: The level that counts as 0: "half" is half way from there to the maximum.

    Returns:
        The peak, or None where nothing stands out: a map that is even, not above ``low`` or not finite.
    """
    high, wide = heat.shape
    top = heat.max()
    if not torch.isfinite(heat).all() or top - max(low, heat.min().item()) <= 1e-4 * top.abs():
        return None
    y, x = divmod(int(heat.argmax()), wide)
    mask = (heat >= (low + top) / 2).float()[None]
    part = torch.zeros_like(mask)
    part[0, y, x] = 1
    while True:
        grown = F.max_pool2d(part, 3, 1, 1) * mask
        if torch.equal(grown, part):
            break
        part = grown
    rows, columns = part[0].amax(1).nonzero(), part[0].amax(0).nonzero()
    box = (columns.min() / wide, rows.min() / high, (columns.max() + 1) / wide, (rows.max() + 1) / high)
    x1, y1, x2, y2 = map(float, box)
    return Peak(((x + 0.5) / wide, (y + 0.5) / high), (x1, y1, x2, y2))


def least_shown(heat: torch.Tensor) -> float:
    """The lowest value of a map that is above 0: a gate is 0 outside its box, attention is 0 nowhere."""
    return heat[heat > 0].min().item() if (heat > 0).any() else 0.0
