"""Teacher logits in the student's label space (paper, appendix G)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..labels import align, canonical

__all__ = ["KDAdapter"]


def _none_of(logits: torch.Tensor) -> torch.Tensor:
    """Logit of ``prod_i (1 - sigmoid(o_i))``: ``(B, N)`` to ``(B,)``, finite for logits of +-100 in float32."""
    # log(softplus(o)): o itself where softplus(o) = exp(o) to the last bit
    log_softplus = torch.where(logits < -17, logits, F.softplus(logits.clamp(min=-20)).log())
    log_u = log_softplus.logsumexp(1)  # u = -log(p) = sum softplus(o)
    u = log_u.exp().clamp(min=1e-30)
    log_complement = torch.where(
        u < math.log(2), log_u + (-torch.expm1(-u) / u).log(), torch.log1p(-torch.exp(-u.clamp(min=math.log(2))))
    )
    return -u - log_complement


class KDAdapter(nn.Module):
    """Maps a teacher's logits to a student's labels, by name (paper, appendix G).

    Args:
        teacher_labels: Names of the teacher's T outputs; ``""`` marks an untrained output.
        student_labels: Names of the student's S outputs.
        no_finding: How a student's No Finding is made where the teacher has none: ``"trained"``, the logit of
            ``prod_i (1 - sigmoid(o_i))`` over the teacher's trained outputs; ``"all"``, the paper's product over all T;
            ``"mask"``, not at all.

    Shape: teacher logits ``(B, T)`` to ``(logits (B, S), mask (S,))``. The mask is True where the teacher knows the
        label; elsewhere the logits are 0.

    Raises:
        ValueError: unknown ``no_finding``, repeated labels, or no label in common.
    """

    index: torch.Tensor
    findings: torch.Tensor
    mask: torch.Tensor

    def __init__(self, teacher_labels: Sequence[str], student_labels: Sequence[str], no_finding: str = "trained"):
        super().__init__()
        if no_finding not in ("trained", "all", "mask"):
            raise ValueError(f"unknown no_finding {no_finding!r}: give trained, all or mask")
        self.teacher_labels = tuple(teacher_labels)
        self.student_labels = tuple(student_labels)
        align(self.student_labels, ())
        index = align(self.teacher_labels, self.student_labels)
        if all(i is None for i in index):
            raise ValueError(f"teacher {self.teacher_labels} and student {self.student_labels} have no label in common")
        mask = [i is not None for i in index]
        absent = canonical("No Finding")
        made = [s for s, name in enumerate(student_labels) if canonical(name) == absent and index[s] is None]
        self.made = made[0] if made and no_finding != "mask" else -1
        if self.made >= 0:
            mask[self.made] = True
        findings = [t for t, name in enumerate(self.teacher_labels) if name or no_finding == "all"]
        self.register_buffer("index", torch.tensor([i or 0 for i in index]), persistent=False)
        self.register_buffer("findings", torch.tensor(findings), persistent=False)
        self.register_buffer("mask", torch.tensor(mask), persistent=False)

    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if logits.shape[1] != len(self.teacher_labels):
            raise ValueError(f"expected {len(self.teacher_labels)} teacher logits, got {logits.shape[1]}")
        out = logits[:, self.index]  # (B, S)
        if self.made >= 0:
            made = torch.arange(out.shape[1], device=out.device) == self.made
            out = torch.where(made, _none_of(logits[:, self.findings].float()).to(out.dtype)[:, None], out)
        return out.masked_fill(~self.mask, 0.0), self.mask
