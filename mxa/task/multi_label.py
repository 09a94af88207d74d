"""timm's multi-label task with masked labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.task import MultiLabelClassificationTask
from timm.utils.model import unwrap_model
from torch import nn

from .boxes import place_loss, roi_place_loss
from .losses import masked_bce_with_logits

__all__ = ["MultiLabelTask"]


class MultiLabelTask(MultiLabelClassificationTask):
    """Multi-label classification where NaN targets are masked.

    Args:
        model: ``(B, C, H, W)`` to logits ``(B, L)``.
        pos_weight: ``(L,)``, weight of the positive term of each label.
        device: Device of the task's tensors.
        criterion: Called with logits, target, mask and pos_weight: ``masked_bce_with_logits`` or a ``MaskedLoss``.
        box_weight: Weight of the loss of boxes, where a batch has boxes instead of labels.
    """

    def __init__(
        self,
        model: nn.Module,
        pos_weight: torch.Tensor | None = None,
        device: torch.device | None = None,
        criterion: Callable[..., torch.Tensor] = masked_bce_with_logits,
        box_weight: float = 1.0,
    ):
        super().__init__(model, criterion=criterion, device=device, verbose=False)
        self.box_weight = box_weight
        pos_weight = None if pos_weight is None else pos_weight.to(self.device)
        self.register_buffer("pos_weight", pos_weight, persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gives ``{"loss": scalar, "output": logits (B, L)}`` of images and their targets.

        Args:
            input: Images ``(B, C, H, W)``.
            target: Labels ``(B, L)``, NaN where masked; or boxes ``(B, K, 5)``, see ``mxa.task.boxes``, for a model
                with a finding head or, without one, with MXA blocks. Boxes say nothing about labels.
        """
        if target.ndim == 3:
            loss, output = self._place_loss(input, target)
            return {"loss": self.box_weight * loss, "output": output}
        output = self.trainable_module(input)
        return {"loss": self.criterion(output, target, ~target.isnan(), self.pos_weight), "output": output}

    def _place_loss(self, input: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model = unwrap_model(self.trainable_module)
        if not hasattr(model, "finding_head"):
            return roi_place_loss(model, input, boxes, self.trainable_module)
        output, found = self.trainable_module(input, return_findings=True)
        return place_loss(found, boxes), output

    def create_evaluator(self, **kwargs: Any) -> None:
        """Raises ``NotImplementedError``: timm's evaluator counts masked labels as negative."""
        raise NotImplementedError(
            "timm's evaluator counts masked labels as negative: use mxa.metrics or mxa.evaluation.report"
        )
