"""Losses and training tasks."""

from .boxes import box_coverage, box_loss, enclosing_boxes, heat_map_loss, place_loss, roi_place_loss
from .distillation import MultiLabelDistillationTask
from .losses import MaskedLoss, distillation_mix, masked_bce_with_logits, soft_distillation_loss
from .multi_label import MultiLabelTask
from .teacher import Teacher

__all__ = [
    "MaskedLoss",
    "MultiLabelDistillationTask",
    "MultiLabelTask",
    "Teacher",
    "box_coverage",
    "box_loss",
    "distillation_mix",
    "enclosing_boxes",
    "heat_map_loss",
    "masked_bce_with_logits",
    "place_loss",
    "roi_place_loss",
    "soft_distillation_loss",
]
