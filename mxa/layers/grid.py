"""Where the cells of a map lie in the image that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["Grid", "from_image", "to_image", "tracked_grids"]


class Grid(NamedTuple):
    """How a map lies in its image: cell ``c`` of an axis is centred on pixel ``first + c * stride`` (from 0).

    Args:
        cells: Cells of the map, (H, W).
        stride: Pixels from one cell to the next, (H, W).
        first: Pixel index of the first cell's centre, (H, W); 0.0 in a network of padded 3 x 3 convolutions.
        size: Pixels of the image, (H, W).
    """

    cells: tuple[int, int]
    stride: tuple[float, float]
    first: tuple[float, float]
    size: tuple[int, int]


def to_image(boxes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Boxes ``(..., 4)`` in [0, 1] of a map to [0, 1] of its image, xyxy, clamped to the image."""
    corners = []
    for i, corner in enumerate(boxes.unbind(-1)):
        axis = 1 - i % 2  # x is the second axis
        pixel = (corner * grid.cells[axis] - 0.5) * grid.stride[axis] + grid.first[axis] + 0.5
        corners.append((pixel / grid.size[axis]).clamp(0, 1))
    return torch.stack(corners, dim=-1)


def from_image(boxes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Boxes ``(..., 4)`` in [0, 1] of an image to [0, 1] of its map, xyxy, clamped to the map."""
    corners = []
    for i, corner in enumerate(boxes.unbind(-1)):
        axis = 1 - i % 2
        cell = (corner * grid.size[axis] - 0.5 - grid.first[axis]) / grid.stride[axis] + 0.5
        corners.append((cell / grid.cells[axis]).clamp(0, 1))
    return torch.stack(corners, dim=-1)


@contextmanager
def tracked_grids(model: nn.Module, size: tuple[int, int]) -> Iterator[Callable[[torch.Tensor], Grid]]:
    """Watches a forward, so that hooks inside it can ask how a map lies in the image.

    The grid follows from the strided convolutions and poolings before the map: a kernel of ``k`` with padding ``p``
    moves the first centre by ``(k - 1) / 2 - p``. A map that was made smaller by anything else is taken to divide the
    image evenly.

    Args:
        model: The model that runs inside the block; its hooks are as before afterwards.
        size: (H, W) of the images.

    Yields:
        A function from a map ``(B, C, h, w)``, at the place where the forward is, to its ``Grid``.
    """
    now = Grid(size, (1.0, 1.0), (0.0, 0.0), size)

    def shrink(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal now
        before, after = _sides(inputs[0]), _sides(output)
        if before != now.cells or before == after:
            return
        kernel, stride, padding = (_pair(getattr(module, a)) for a in ("kernel_size", "stride", "padding"))
        y, x = (f + s * ((k - 1) / 2 - p) for f, s, k, p in zip(now.first, now.stride, kernel, padding, strict=True))
        now = Grid(after, (now.stride[0] * stride[0], now.stride[1] * stride[1]), (y, x), size)

    def grid_of(x: torch.Tensor) -> Grid:
        cells = _sides(x)
        if cells == now.cells:
            return now
        high, wide = (s / c for s, c in zip(size, cells, strict=True))
        return Grid(cells, (high, wide), ((high - 1) / 2, (wide - 1) / 2), size)

    shrinking = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]
    handles = [m.register_forward_hook(shrink) for m in shrinking if _pair(m.stride) != (1, 1)]
    try:
        yield grid_of
    finally:
        for handle in handles:
            handle.remove()


def _sides(x: torch.Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _pair(value: int | tuple[int, ...] | str) -> tuple[int, int]:
    if isinstance(value, str):  # "valid" is the only text that a strided convolution takes as its padding
        return 0, 0
    return (value, value) if isinstance(value, int) else (value[0], value[1])
