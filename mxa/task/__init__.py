"""Losses and training tasks."""

from .distillation import MultiLabelDistillationTask
from .losses import MaskedLoss, distillation_mix, masked_bce_with_logits, soft_distillation_loss
from .multi_label import MultiLabelTask
from .teacher import Teacher

__all__ = [
    "MaskedLoss",
    "MultiLabelDistillationTask",
    "MultiLabelTask",
    "Teacher",
    "distillation_mix",
    "masked_bce_with_logits",
    "soft_distillation_loss",
]
