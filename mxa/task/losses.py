"""Losses on multi-label logits, as pure functions; under data-parallel training, of the global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import distributed

__all__ = ["distillation_mix", "masked_bce_with_logits", "soft_distillation_loss"]


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
    return _mean_of_present(loss, mask)


def soft_distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Soft multi-label distillation with dynamic label weights (paper, appendix H).

    ``mean_j w_j BCE(o_j / T, p_j)`` with the teacher's probabilities ``p = sigmoid(teacher / T)`` and weights
    ``w_j = 1 - mean_i p_ij`` over the images of the *global* batch for which the label is present. The mean is over an
    image's present labels, so that with all C present it is the paper's 1/C, then over the images that have any. There
    is no factor T squared: the paper has none.

    Args:
        student_logits: ``(B, L)``.
        teacher_logits: ``(B, L)``; no gradient goes there.
        mask: ``(B, L)`` or ``(L,)``, True where the teacher knows the label; by default where its logit is not NaN.
        temperature: T, above 0.

    Returns:
        A scalar; 0 where no label is present.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    teacher_logits = teacher_logits.detach()
    mask = ~teacher_logits.isnan() if mask is None else mask.expand_as(teacher_logits)
    p = (teacher_logits.masked_fill(~mask, 0.0) / temperature).sigmoid().to(student_logits.dtype)
    sums = _over_processes(torch.stack([(p * mask).sum(0), mask.sum(0).to(p.dtype)]))
    weight = 1 - sums[0] / sums[1].clamp(min=1)  # (L,)
    loss = F.binary_cross_entropy_with_logits(student_logits / temperature, p, reduction="none")
    return _mean_of_present(weight * loss, mask)


def distillation_mix(supervised: torch.Tensor, soft: torch.Tensor, alpha: float) -> torch.Tensor:
    """``(1 - alpha) supervised + alpha soft`` (paper, section 2.1); alpha in [0, 1]."""
    return (1 - alpha) * supervised + alpha * soft


def _mean_of_present(loss: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over an image's present labels, then over the images that have any: ``(B, L)`` to a scalar.

    Data-parallel training averages the gradients of P processes, so each divides by a P-th of the images of all.
    """
    present = mask.sum(1)  # (B,)
    per_image = loss.masked_fill(~mask, 0.0).sum(1) / present.clamp(min=1)
    images = _over_processes((present > 0).sum().to(loss.dtype)) / _processes()
    return per_image.sum() / torch.where(images > 0, images, torch.ones_like(images))


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _over_processes(value: torch.Tensor) -> torch.Tensor:
    """Sum over the processes of a data-parallel training; no gradient."""
    if _processes() > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
    return value
