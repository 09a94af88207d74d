"""Measures the crop of a map to a box beside torch's own way to do it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn import functional as F

from ...layers.roi import roi_resize
from .config import BenchLayersConfig
from .timing import alternate, threads, timed, write_record

__all__ = ["BenchLayersConfig", "bench_layers"]

_M5_MAPS = ((192, 14), (288, 7), (384, 4))  # channels and side of the maps that MXA sees in M5 at 224x224


def bench_layers(config: BenchLayersConfig) -> list[dict]:
    """Measures ``roi_resize`` against ``affine_grid`` and ``grid_sample``, which compute the same.

    Returns:
        One row per map size, batch size and pass: ``maps`` (C x H x W), ``batch``, ``pass`` (``"forward"``, or
        ``"forward+backward"`` to map and box), ``grid_sample_ms`` and ``roi_resize_ms`` (medians), and the latter's
        ``roi_resize_ms_ratio`` and ``roi_resize_ms_ratio_iqr`` to ``grid_sample``.
    """
    device = torch.device(config.device)
    rows = []
    with threads(config.threads):
        torch.manual_seed(0)
        for channels, side in _M5_MAPS:
            for batch in config.batch_sizes:
                x = torch.randn(batch, channels, side, side, device=device, requires_grad=True)
                corners = torch.rand(2, batch, 2, device=device)
                boxes = torch.cat([corners[0] * 0.4, 0.6 + corners[1] * 0.4], dim=1).requires_grad_()
                resizes = (_grid_resize, roi_resize)
                with torch.inference_mode():
                    forward = alternate([partial(f, x, boxes) for f in resizes], config.repeats, device)
                both = alternate([partial(_resize_and_back, f, x, boxes) for f in resizes], config.repeats, device)
                for name, rounds in (("forward", forward), ("forward+backward", both)):
                    row = {"maps": f"{channels}x{side}x{side}", "batch": batch, "pass": name}
                    row["grid_sample_ms"] = median(times[0] for times in rounds)
                    rows.append(row | timed("roi_resize_ms", rounds, 1))
    write_record(config, rows, device)
    return rows


def _grid_resize(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Does what ``roi_resize`` does, in the usual way."""
    x1, y1, x2, y2 = boxes.unbind(1)
    zero = torch.zeros_like(x1)
    theta = torch.stack([x2 - x1, zero, x1 + x2 - 1, zero, y2 - y1, y1 + y2 - 1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _resize_and_back(resize: Callable, x: torch.Tensor, boxes: torch.Tensor) -> None:
    y = resize(x, boxes)
    torch.autograd.grad(y, (x, boxes), y.detach())
