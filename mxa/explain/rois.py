"""The regions of interest that a model's MXA blocks look at (paper, figure I.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ..layers import MeanROIHead, MXABlock, ROIHead
from ..layers.grid import Grid, to_image
from ..utils.errors import InputError
from .geometry import place, upsample
from .hooks import observe

__all__ = ["block_of", "gate_maps", "predict_rois", "roi_heat_maps", "stage_of"]

Kind = TypeVar("Kind", bound=nn.Module)


def predict_rois(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Runs a model and collects the box of every ROI head, through hooks.

    A cell of a map stands for the input around its centre: the first cell's centre is the first pixel, and each
    further one lies ``stride`` pixels on. The boxes are in those input coordinates, clamped to the image.

    Args:
        model: A model with MXA.
        images: ``(B, C, H, W)``.

    Returns:
        Module name of each head to its boxes ``(B, 4)``, ``x1, y1, x2, y2`` in [0, 1] of the input image.

    Raises:
        InputError: the model has no ROI head.
    """
    found: dict[str, torch.Tensor] = {}
    looks: dict[nn.Module, Callable[..., None]] = {}
    for name, head in _named(model, (ROIHead, MeanROIHead)).items():

        def look(x, boxes, grid_of, name=name):
            found[name] = to_image(boxes, grid_of(x)).cpu()

        looks[head] = look
    observe(model, images, looks)
    return found


def roi_heat_maps(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Collects where each ROI head looks: the spatial softmax whose mean and spread are the box.

    Returns:
        Module name of each ``ROIHead`` to ``(B, H, W)`` float32 at the size of the input: a cell's share at its centre,
        bilinear between the centres. A ``MeanROIHead`` has no such map and is left out.

    Raises:
        InputError: the model has no MXA block, or none with a softmax head.
    """
    found: dict[str, torch.Tensor] = {}
    looks: dict[nn.Module, Callable[..., None]] = {}
    for name, head in _named(model, ROIHead).items():

        def look(x, boxes, grid_of, name=name, head=head):
            found[name] = upsample(head.heat_map(x), grid_of(x))

        looks[head] = look
    observe(model, images, looks)
    return found


def gate_maps(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Collects the spatial gate of every MXA block (paper, E.2), put back where its ROI was cut.

    The gate is computed on the crop, so each of its cells stands for a piece of the box. It says how much of the crop
    passes at that place, before the block's channel gains. It does not depend on a label.

    Returns:
        Module name of each block to ``(B, H, W)`` float32 at the size of the input, in (0, 1) inside the box and 0
        outside.

    Raises:
        InputError: the model has no MXA block.
    """
    found: dict[str, torch.Tensor] = {}
    looks: dict[nn.Module, Callable[..., None]] = {}
    for name, block in _named(model, MXABlock).items():
        cut: list[tuple[torch.Tensor, Grid]] = []

        def look_head(x, boxes, grid_of, cut=cut):
            cut[:] = [(boxes, grid_of(x))]

        def look_gate(x, _, grid_of, name=name, cut=cut, spatial=block.cbam.spatial):
            boxes, grid = cut[0]
            found[name] = place(spatial.gate(x)[:, 0], grid, boxes)

        looks[block.roi.head] = look_head
        looks[block.cbam.spatial] = look_gate
    observe(model, images, looks)
    return found


def stage_of(name: str) -> str:
    """What a picture calls the stage of a module: ``"stage 2"`` of ``stages.1.blocks.0``."""
    parts = name.split(".")
    return f"stage {int(parts[1]) + 1}" if parts[0] == "stages" and len(parts) > 1 else parts[0]


def block_of(name: str) -> str:
    """What it adds for the block: ``", block 1"``; nothing where the name has none."""
    parts = name.split(".")
    return f", block {int(parts[3]) + 1}" if parts[0] == "stages" and len(parts) > 3 and parts[3].isdigit() else ""


def _named(model: nn.Module, kind: type[Kind] | tuple[type[Kind], ...]) -> dict[str, Kind]:
    found = {name: m for name, m in model.named_modules() if isinstance(m, kind)}
    if not found:
        what = "MXA block with a softmax head" if kind is ROIHead else "MXA block"
        raise InputError(f"the model has no {what}: choose one of the _mxa models")
    return found
