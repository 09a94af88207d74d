"""Losses and training tasks."""

from .losses import masked_bce_with_logits
from .multi_label import MultiLabelTask

__all__ = ["MultiLabelTask", "masked_bce_with_logits"]
