"""Losses of where a model looks, against boxes that radiologists drew.

Boxes of a batch are one tensor ``(B, K, 5)``: ``x1, y1, x2, y2`` in [0, 1] of the image, and the number of the label,
-1 where a row holds no box. Images and labels without a box count nowhere, a positive label without one too: where it
is, is not known. Under data-parallel training the losses are those of the global batch.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from ..layers import FindingOutput, MeanROIHead, ROIHead
from ..layers.grid import from_image, tracked_grids
from .losses import share_of

__all__ = ["box_coverage", "box_loss", "enclosing_boxes", "heat_map_loss", "place_loss", "roi_place_loss"]


def box_coverage(boxes: torch.Tensor, num_labels: int, size: tuple[int, int]) -> torch.Tensor:
    """Computes how much of each cell of a map the boxes of each label cover.

    Args:
        boxes: ``(B, K, 5)``, as for ``place_loss``.
        num_labels: Labels L.
        size: (H, W) of the map.

    Returns:
        ``(B, L, H, W)`` in [0, 1]; where boxes of one label overlap in a cell, the larger share.
    """
    shares = []
    for axis, cells in ((1, size[0]), (0, size[1])):  # y, x
        edges = torch.arange(cells + 1, device=boxes.device, dtype=boxes.dtype) / cells
        start, stop = boxes[..., axis, None], boxes[..., axis + 2, None]  # (B, K, 1)
        shares.append((torch.minimum(stop, edges[1:]) - torch.maximum(start, edges[:-1])).clamp(min=0) * cells)
    covered = shares[0][..., :, None] * shares[1][..., None, :]  # (B, K, H, W)
    own = _own(boxes, num_labels)[..., None, None]  # (B, K, L, 1, 1)
    return (covered[:, :, None] * own).amax(1)


def enclosing_boxes(boxes: torch.Tensor, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encloses the boxes of each label, ``(B, K, 5)`` as for ``place_loss``, in one.

    Returns:
        ``(B, L, 4)``, and which labels have a box, ``(B, L)`` bool; without one it is the whole image.
    """
    own = _own(boxes, num_labels)[..., None]  # (B, K, L, 1)
    corners = boxes[:, :, None, :4]
    low = torch.where(own, corners[..., :2], 1.0).amin(1)
    high = torch.where(own, corners[..., 2:], 0.0).amax(1)
    present = own.any(1)  # (B, L, 1)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device, dtype=boxes.dtype)
    return torch.where(present, torch.cat([low, high], dim=2), whole), present[..., 0]


def heat_map_loss(scores: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label's heat map against its boxes.

    The target is spread evenly over the label's boxes, which are one mask. The mean is over the labels of all images
    that have a box.

    Args:
        scores: ``(B, L, H, W)``; their softmax over the cells is the heat map.
        boxes: ``(B, K, 5)``, as for ``place_loss``.

    Returns:
        A scalar, 0 where there is no box.
    """
    count, size = scores.shape[1], (scores.shape[2], scores.shape[3])
    target = box_coverage(boxes.to(scores.dtype), count, size).flatten(2)  # (B, L, H W)
    area = target.sum(2)
    target = target / area.clamp(min=torch.finfo(area.dtype).tiny)[..., None]
    loss = -(target * scores.flatten(2).log_softmax(2)).sum(2)  # (B, L)
    return _mean(loss, area > 0)


def box_loss(predicted: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Generalised IoU loss (Rezatofighi et al., CVPR 2019) of each label's box against the box around its boxes.

    Args:
        predicted: ``(B, L, 4)``.
        boxes: ``(B, K, 5)``, as for ``place_loss``.

    Returns:
        A scalar in [0, 2], 0 where there is no box.
    """
    target, present = enclosing_boxes(boxes.to(predicted.dtype), predicted.shape[1])
    loss = generalized_box_iou_loss(predicted.reshape(-1, 4), target.reshape(-1, 4), reduction="none")
    return _mean(loss.view_as(present), present)


def place_loss(found: FindingOutput, boxes: torch.Tensor) -> torch.Tensor:
    """The sum of ``heat_map_loss`` and ``box_loss`` of what a finding head gives.

    Args:
        found: From a finding head.
        boxes: ``(B, K, 5)``: ``x1, y1, x2, y2`` in [0, 1] of the image, and the number of the label, -1 where a row
            holds no box. A label without a box counts nowhere, a positive one too.

    Returns:
        A scalar, 0 where there is no box.
    """
    return heat_map_loss(found.scores, boxes) + box_loss(found.boxes, boxes)


def roi_place_loss(
    model: nn.Module, images: torch.Tensor, boxes: torch.Tensor, module: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a model with MXA, and compares the box of each ROI head with the union of an image's boxes.

    The loss of a softmax head is that of ``place_loss``, for one label that stands for all findings; that of an
    averaging head, which has no heat map, is ``box_loss``. The loss is the mean over the heads. The boxes are brought
    from the image to each head's map.

    Args:
        model: With ``ROIHead`` or ``MeanROIHead`` in it.
        images: ``(B, C, H, W)``.
        boxes: ``(B, K, 5)``, as for ``place_loss``.
        module: What is called, where that is a wrapper of the model.

    Returns:
        A scalar, and the model's logits.
    """
    one = torch.cat([boxes[..., :4], boxes[..., 4:].clamp(max=0)], dim=2)  # every finding is label 0
    losses: list[torch.Tensor] = []
    scores: dict[nn.Module, torch.Tensor] = {}

    def look_map(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        scores[module] = output

    with tracked_grids(model, (images.shape[2], images.shape[3])) as grid_of:

        def look_box(head: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            grid = grid_of(inputs[0])
            here = torch.cat([from_image(one[..., :4], grid), one[..., 4:]], dim=2)
            loss = box_loss(output[:, None], here)
            if isinstance(head, ROIHead):
                loss = loss + heat_map_loss(scores.pop(head.score).float(), here)
            losses.append(loss)

        heads = [m for m in model.modules() if isinstance(m, (ROIHead, MeanROIHead))]
        handles = [head.register_forward_hook(look_box) for head in heads]
        handles += [head.score.register_forward_hook(look_map) for head in heads if isinstance(head, ROIHead)]
        try:
            logits = (module or model)(images)
        finally:
            for handle in handles:
                handle.remove()
    return torch.stack(losses).mean(), logits


def _own(boxes: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Which label each box is of, ``(B, K, L)`` bool."""
    return boxes[..., 4, None] == torch.arange(num_labels, device=boxes.device, dtype=boxes.dtype)


def _mean(loss: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return loss.masked_fill(~present, 0.0).sum() / share_of(present, loss.dtype)
