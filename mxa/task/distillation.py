"""Training on labels and on the logits of a frozen teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .losses import distillation_mix, masked_bce_with_logits, soft_distillation_loss
from .multi_label import MultiLabelTask

__all__ = ["MultiLabelDistillationTask"]


class MultiLabelDistillationTask(MultiLabelTask):
    """Multi-label classification with soft distillation, ``(1 - alpha) BCE + alpha KD`` (paper, section 2.1).

    The teacher stays in eval mode, gets no gradient and is not saved in checkpoints.

    Args:
        model: The student: ``(B, C, H, W)`` to logits ``(B, L)``.
        teacher: Maps the student's batch to logits ``(B, L)`` of the student's labels and a mask of the labels that the
            teacher knows, such as ``mxa.task.Teacher``. None where the logits were computed beforehand: targets are
            then ``(B, 2 L)``, the labels followed by the teacher's logits, NaN where it knows none.
        alpha: Weight of the distillation, in [0, 1].
        temperature: Divides the logits of both student and teacher; above 0.
        pos_weight: ``(L,)``, weight of the positive term of each label.
        device: Device of the task's tensors.
        criterion: Loss of the labels, as for ``MultiLabelTask``.
        box_weight: As for ``MultiLabelTask``.

    Raises:
        ValueError: ``alpha`` or ``temperature`` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        alpha: float = 0.5,
        temperature: float = 1.0,
        pos_weight: torch.Tensor | None = None,
        device: torch.device | None = None,
        criterion: Callable[..., torch.Tensor] = masked_bce_with_logits,
        box_weight: float = 1.0,
    ):
        super().__init__(model, pos_weight, device, criterion, box_weight)
        if not 0 <= alpha <= 1 or not temperature > 0:
            raise ValueError(f"alpha must be in [0, 1] and temperature above 0, got {alpha} and {temperature}")
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval().to(self.device)
        self.alpha, self.temperature = alpha, temperature

    def train(self, mode: bool = True) -> MultiLabelDistillationTask:
        """Sets the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns ``loss``, the ``task_loss`` and ``kd_loss`` that it mixes, and the student's logits ``(B, L)``.

        Args:
            input: Images ``(B, C, H, W)``.
            target: ``(B, L)``, or ``(B, 2 L)`` where there is no ``teacher``; NaN where a label is masked. Boxes
                ``(B, K, 5)`` are learnt without the teacher.
        """
        if target.ndim == 3:
            return super().forward(input, target)
        if self.teacher is None:
            target, logits = target.chunk(2, dim=1)
            mask = ~logits.isnan()
        else:
            with torch.no_grad():
                logits, mask = self.teacher(input)
        result = super().forward(input, target)
        kd = soft_distillation_loss(result["output"], logits, mask, self.temperature)
        loss = distillation_mix(result["loss"], kd, self.alpha)
        return {"loss": loss, "output": result["output"], "task_loss": result["loss"].detach(), "kd_loss": kd.detach()}
