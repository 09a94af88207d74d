"""The finding head that comes with the package."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..labels import label_names
from ..layers.attach import attach_finding_head
from .hub import SHIPPED, manifest, read_weights

__all__ = ["add_finding_head"]


def add_finding_head(model: nn.Module) -> nn.Module:
    """Gives the small model that comes with mxa its finding head: a heat map and a box for each of eight findings.

    Radiologists' boxes taught the head, on maps of these very weights (docs/weights-r160_nih8k.md). Its gate is at 0,
    so the model's outputs do not change.

    Args:
        model: ``efficientvit_ml_m0_mxa.r160_nih8k`` with its weights; it is changed in place.

    Returns:
        The model.

    Raises:
        ValueError: it is another model, or has a finding head already.
        WeightsError: the file of the head is not the one of this release.

    >>> import mxa, timm, torch
    >>> model = timm.create_model("efficientvit_ml_m0_mxa.r160_nih8k", pretrained=True).eval()
    >>> logits, found = mxa.models.add_finding_head(model)(torch.zeros(1, 3, 160, 160), return_findings=True)
    >>> found.boxes.shape
    torch.Size([1, 8, 4])
    """
    if hasattr(model, "finding_head"):
        raise ValueError("the model has a finding head already: detach it first")
    cfg = getattr(model, "pretrained_cfg", {})
    if f"{cfg.get('architecture')}.{cfg.get('tag')}" != SHIPPED or label_names(model) is None:
        raise ValueError(f"the finding head of mxa is for {SHIPPED} with its 15 outputs: train one for another model")
    entry = manifest()[SHIPPED]["finding_head"]
    state = read_weights(Path(__file__).with_name(entry["file"]), entry["sha256"])
    attach_finding_head(model, entry["labels"], entry["reductions"])
    model.finding_head.head.load_state_dict(state)
    return model
