"""Where a finding head sees each finding."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..layers.attach import finding_rows
from ..utils.errors import InputError
from .hooks import evaluating

__all__ = ["Findings", "predict_findings"]


class Findings(NamedTuple):
    """What ``predict_findings`` finds, for R labels.

    Attributes:
        rows: Which of the model's outputs each label is, R numbers.
        logits: ``(B, outputs)`` float32.
        heat_maps: ``(B, R, H, W)`` float32 at the size of the input: a cell's share of the heat map at its centre,
            bilinear between the centres.
        boxes: ``(B, R, 4)`` float32, ``x1, y1, x2, y2`` in [0, 1] of the input.
    """

    rows: list[int]
    logits: torch.Tensor
    heat_maps: torch.Tensor
    boxes: torch.Tensor


def predict_findings(model: nn.Module, images: torch.Tensor) -> Findings:
    """Runs a model that has a finding head, in eval mode and without gradients.

    Args:
        model: From ``mxa.layers.attach_finding_head``.
        images: ``(B, C, H, W)``.

    Returns:
        The findings, on the CPU.

    Raises:
        InputError: the model has no finding head.
    """
    rows = finding_rows(model)
    if rows is None:
        raise InputError("the model has no finding head: train one with --finding-head")
    with evaluating(model), torch.no_grad():
        logits, found = model(images, return_findings=True)
    heat = found.scores.flatten(2).softmax(2).view_as(found.scores)
    heat = F.interpolate(heat, size=images.shape[-2:], mode="bilinear")
    return Findings(rows, logits.float().cpu(), heat.float().cpu(), found.boxes.float().cpu())
