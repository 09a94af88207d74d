"""Losses on multi-label logits, as pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["masked_bce_with_logits"]


def masked_bce_with_logits(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = None,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy of the labels that are present (paper, appendix C).

    The mean over an image's present labels, then over the images that have any. Masked labels count nowhere, in the
    value and in the gradient, whatever their target; with no label present the loss is 0.

    Args:
        logits: ``(B, L)``.
        target: ``(B, L)`` in [0, 1].
        mask: ``(B, L)``, True where the label is present; by default where the target is not NaN.
        pos_weight: ``(L,)``, weight of the positive term.

    Returns:
        A scalar.
    """
    if mask is None:
        mask = ~target.isnan()
    target = target.masked_fill(~mask, 0.0).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=pos_weight)
    loss = loss.masked_fill(~mask, 0.0)
    present = mask.sum(1)  # (B,)
    per_image = loss.sum(1) / present.clamp(min=1)
    return per_image.sum() / (present > 0).sum().clamp(min=1)
