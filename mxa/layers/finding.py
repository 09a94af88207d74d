"""Medical X-ray Attention for each label: where a finding is, and what is seen there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .cbam import CBAM
from .roi import heat_box, roi_resize

__all__ = ["FindingHead", "FindingOutput"]

_NEAR = 0.2  # width around the peak of what counts for a box, in sides of the map; chosen on folds (docs/results.md)
_REACH = 2.0  # most that what is seen moves a box, in its half sizes, and changes the logarithm of its size


class FindingOutput(NamedTuple):
    """What a ``FindingHead`` finds, for B images and L labels.

    Attributes:
        logits: ``(B, L)``.
        scores: ``(B, L, H, W)``, float32 at least, at the size of the finest map. Their softmax over the cells of a
            label is its heat map.
        boxes: ``(B, L, 4)``, ``x1, y1, x2, y2`` in [0, 1] of the map. In training mode they are the boxes that are
            cropped; in evaluation mode those around the peaks of the heat maps.
    """

    logits: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor


class FindingHead(nn.Module):
    """Finds each label by itself: a heat map, its box, the crop, CBAM and a logit.

    The maps of several strides are brought to one width and to the size of the finest, and added. A convolution gives
    each label a score in every cell; a learned prior over places is added to it. The box of a label is the mean and
    the spread of its heat map, as in ``ROIHead``, but of a sharper one, so that a second peak pulls it less; what is
    seen there moves and scales it. Each label's crop goes through one CBAM that all labels share, is averaged, and
    gives the label's logit. There is no loop over labels or images.

    In evaluation mode the box that is returned counts only what lies around the peak of the heat map, so a second peak
    does not widen it. The crop and the logit do not change: a box around a peak jumps where two peaks are alike.

    Args:
        dims: Channels of each map, at least one map.
        num_labels: Labels L.
        dim: Width of the head.
        crop_size: Cells of a side of the crops.
        prior_size: Cells of a side of the prior, which is enlarged to the size of the map.
        min_size: Smallest side of a box, in (0, 1).
        reduction: Reduction of CBAM's channel attention.
        kernel_size: Kernel of CBAM's spatial attention.

    Shape: maps ``[(B, C_i, H_i, W_i), ...]`` of one image, the finest first, to a ``FindingOutput``.

    Raises:
        ValueError: no map or no label.

    >>> found = FindingHead([40, 112], num_labels=3)([torch.ones(2, 40, 8, 8), torch.ones(2, 112, 4, 4)])
    >>> found.logits.shape, found.scores.shape, found.boxes.shape
    (torch.Size([2, 3]), torch.Size([2, 3, 8, 8]), torch.Size([2, 3, 4]))
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_labels: int,
        dim: int = 64,
        crop_size: int = 4,
        prior_size: int = 8,
        min_size: float = 0.05,
        reduction: int = 16,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if not dims or num_labels < 1:
            raise ValueError(f"a head needs at least one map and one label, got {list(dims)} and {num_labels}")
        self.crop_size = crop_size
        self.min_size = min_size
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, dim, 1, bias=False, **dd), nn.BatchNorm2d(dim, **dd)) for channels in dims
        )
        self.mix = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd),
            nn.BatchNorm2d(dim, **dd),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1, bias=False, **dd),
            nn.BatchNorm2d(dim, **dd),
            nn.ReLU(),
        )
        self.score = nn.Conv2d(dim, num_labels, 1, bias=False, **dd)
        self.prior = nn.Parameter(torch.zeros(1, num_labels, prior_size, prior_size, **dd))
        self.log_scale = nn.Parameter(torch.zeros(num_labels, 2, **dd))  # x, y
        self.log_sharpness = nn.Parameter(torch.ones(num_labels, 1, **dd))
        self.refine = nn.Parameter(torch.zeros(num_labels, dim, 4, **dd))  # shift and size, x and y
        self.cbam = CBAM(dim, reduction, kernel_size, **dd)
        self.weight = nn.Parameter(torch.empty(num_labels, dim, **dd))
        self.bias = nn.Parameter(torch.zeros(num_labels, **dd))
        nn.init.normal_(self.weight, std=1 / math.sqrt(dim))

    def fuse(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Brings the maps together: ``[(B, C_i, H_i, W_i), ...]`` to ``(B, dim, H, W)``."""
        size = maps[0].shape[2:]
        whole = self.lateral[0](maps[0])
        for i, lateral in enumerate(self.lateral):
            if i > 0:
                whole = whole + F.interpolate(lateral(maps[i]), size=size, mode="bilinear")
        return self.mix(whole)

    def forward(self, maps: list[torch.Tensor]) -> FindingOutput:
        x = self.fuse(maps)
        scores = self.score(x) + F.interpolate(self.prior, size=x.shape[2:], mode="bilinear")  # (B, L, H, W)
        if scores.dtype != torch.float64:
            scores = scores.float()
        heat = (scores.flatten(2) * self.log_sharpness.to(scores.dtype).exp()).softmax(dim=2).view_as(scores)
        weight = heat.flatten(2)  # (B, L, H W)
        at = torch.bmm(weight, x.flatten(2).transpose(1, 2).to(weight.dtype))  # (B, L, C): what is seen there
        change = torch.einsum("blc,lcd->bld", at, self.refine.to(at.dtype)).flatten(0, 1)  # (B L, 4)
        change = _REACH * (change / _REACH).tanh()  # else one strange image could give a gradient without bound
        scale = self.log_scale.repeat(x.shape[0], 1) + change[:, 2:]
        boxes = heat_box(heat.flatten(0, 1), scale, self.min_size, change[:, :2])  # (B L, 4)
        boxes = boxes.view(x.shape[0], -1, 4)
        crops = roi_resize(x, boxes, (self.crop_size, self.crop_size))  # (B, L, C, h, w)
        seen = self.cbam(crops.flatten(0, 1)).mean((2, 3)).view(x.shape[0], -1, x.shape[1])  # (B, L, C)
        if not self.training:
            boxes = heat_box(_around_peak(heat).flatten(0, 1), scale, self.min_size, change[:, :2]).view_as(boxes)
        return FindingOutput((seen * self.weight).sum(2) + self.bias, scores, boxes)


def _around_peak(heat: torch.Tensor) -> torch.Tensor:
    """Heat maps ``(B, L, H, W)`` weighted by a Gaussian around the highest cell of each, and summing to 1 again."""
    height, width = heat.shape[2:]
    peak = heat.flatten(2).argmax(2)[:, :, None]  # (B, L, 1)
    near = []
    for count, at in ((height, peak // width), (width, peak % width)):
        away = (torch.arange(count, device=heat.device, dtype=heat.dtype) - at) / count  # (B, L, count)
        near.append((-0.5 * (away / _NEAR).square()).exp())
    heat = heat * near[0].unsqueeze(3) * near[1].unsqueeze(2)
    return heat / heat.sum((2, 3), keepdim=True)
