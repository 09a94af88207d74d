"""Losses of multi-label logits. Under data-parallel training they are losses of the global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.loss import (
    MULTI_LABEL_LOSS_TYPES,
    AsymmetricLossMultiLabel,
    DistributionBalancedLoss,
    PolyBinaryCrossEntropy,
    TwoWayLoss,
    ZlprLoss,
)
from torch import nn

from ..utils.distributed import all_reduce, world_size

__all__ = ["MaskedLoss", "distillation_mix", "masked_bce_with_logits", "soft_distillation_loss"]


def masked_bce_with_logits(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = None,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy of the labels that are present (paper, appendix C).

    It is the mean over the present labels of an image, then over the images with a present label. Masked labels count
    neither in the value nor in the gradient, whatever their target. Where no label is present the loss is 0.

    Args:
        logits: ``(B, L)``.
        target: ``(B, L)`` in [0, 1].
        mask: ``(B, L)``, True where the label is present; by default where the target is not NaN.
        pos_weight: ``(L,)``, weights of the positive term.

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

    The loss is ``mean_j w_j BCE(o_j / T, p_j)`` with the teacher's probabilities ``p = sigmoid(teacher / T)``. The
    weights are ``w_j = 1 - mean_i p_ij`` over the images of the *global* batch for which label j is present. The mean
    is taken over the present labels of an image, then over the images with a present label. Where all C labels are
    present that is the paper's 1/C. As in the paper, the loss is not multiplied by T squared.

    Args:
        student_logits: ``(B, L)``.
        teacher_logits: ``(B, L)``; they get no gradient.
        mask: ``(B, L)`` or ``(L,)``, True where the teacher knows the label; by default where its logit is not NaN.
        temperature: T, above 0.

    Returns:
        A scalar, 0 where no label is present.

    Raises:
        ValueError: ``temperature`` is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    teacher_logits = teacher_logits.detach()
    if student_logits.dtype != torch.float64:
        student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
    mask = ~teacher_logits.isnan() if mask is None else mask.expand_as(teacher_logits)
    p = (teacher_logits.masked_fill(~mask, 0.0) / temperature).sigmoid().to(student_logits.dtype)
    sums = all_reduce(torch.stack([(p * mask).sum(0), mask.sum(0).to(p.dtype)]))
    weight = 1 - sums[0] / sums[1].clamp(min=1)  # (L,)
    loss = F.binary_cross_entropy_with_logits(student_logits / temperature, p, reduction="none")
    return _mean_of_present(weight * loss, mask)


def distillation_mix(supervised: torch.Tensor, soft: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns ``(1 - alpha) supervised + alpha soft`` (paper, section 2.1) for ``alpha`` in [0, 1]."""
    return (1 - alpha) * supervised + alpha * soft


class MaskedLoss(nn.Module):
    """timm's multi-label losses by name, where masked labels count neither in the value nor in the gradient.

    - ``"bce"``, ``"asl"``, ``"poly"`` and ``"db"`` are losses of one label at a time. They are averaged over the
      present labels of an image, then over images, as ``masked_bce_with_logits`` is. Their scale does not depend on the
      number of labels.
    - ``"zlpr"`` compares the present labels of an image with each other. It is averaged over images.
    - ``"twoway"`` compares the images of a batch as well. Under data-parallel training it compares those of a process.

    Args:
        name: One of ``timm.loss.MULTI_LABEL_LOSS_TYPES``.
        class_counts: Number of positives of each label in ``num_samples`` images, ``(L,)``; for ``"db"``.
        num_samples: Number of images; for ``"db"``.

    Raises:
        ValueError: ``name`` is unknown.
    """

    def __init__(self, name: str, class_counts: torch.Tensor | None = None, num_samples: int | None = None):
        super().__init__()
        if name not in MULTI_LABEL_LOSS_TYPES:
            raise ValueError(f"unknown loss {name!r}: give one of {', '.join(MULTI_LABEL_LOSS_TYPES)}")
        self.name = name
        if name in ("asl", "poly"):
            kind = AsymmetricLossMultiLabel if name == "asl" else PolyBinaryCrossEntropy
            self.loss = kind(reduction="none")
        elif name == "db":
            self.loss = DistributionBalancedLoss(class_counts, num_samples, reduction="none")
        elif name != "bce":
            self.loss = ZlprLoss() if name == "zlpr" else TwoWayLoss()

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None = None,
        pos_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns a scalar.

        Args:
            logits: ``(B, L)``.
            target: ``(B, L)`` in [0, 1].
            mask: ``(B, L)``, True where the label is present; by default where the target is not NaN.
            pos_weight: ``(L,)``, weights of the positive term; for ``"bce"`` alone.

        Raises:
            ValueError: ``pos_weight`` is given with another loss.
        """
        if self.name == "bce":
            return masked_bce_with_logits(logits, target, mask, pos_weight)
        if pos_weight is not None:
            raise ValueError(f"pos_weight goes with the loss bce, not with {self.name}")
        mask = ~target.isnan() if mask is None else mask
        target = target.masked_fill(~mask, 0.0)
        if self.name in ("asl", "poly", "db"):
            return _mean_of_present(self.loss(logits, target), mask)
        rows = mask.any(1)
        kept = logits.float().masked_fill(~mask, _OUT)[rows]
        value = self.loss(kept, target[rows]) if len(kept) else kept.sum()  # the sum is 0, of the loss's dtype
        if self.name == "twoway":
            return value
        return value * rows.sum() / share_of(rows, value.dtype)


_OUT = -1e4  # logit of a masked label: its exponential is 0


def _mean_of_present(loss: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over an image's present labels, then over images with a present label: ``(B, L)`` to a scalar."""
    present = mask.sum(1)  # (B,)
    per_image = loss.masked_fill(~mask, 0.0).sum(1) / present.clamp(min=1)
    return per_image.sum() / share_of(present > 0, loss.dtype)


def share_of(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the divisor of a sum over the images of a process for which ``rows`` ``(B,)`` is True.

    Data-parallel training averages the gradients of P processes, so each process divides its sum by a P-th of the
    images of all processes. The divisor is 1 where no process has an image.
    """
    images = all_reduce(rows.sum().to(dtype)) / world_size()
    return torch.where(images > 0, images, torch.ones_like(images))
