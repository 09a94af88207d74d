"""A finding-wise head on any timm model with maps, in place and reversible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from ..labels import align, canonical, label_names
from .added import check_last, forget, grown_class, keep_own, remember
from .finding import FindingHead, FindingOutput

__all__ = ["attach_finding_head", "detach_finding_head", "finding_rows"]

_REDUCTIONS = (8, 16, 32)


class AttachedFindingHead(nn.Module):
    """A ``FindingHead`` whose logits are added to some of a model's outputs through a gate.

    Args:
        head: The head of L labels.
        indices: Which of the model's ``forward_intermediates`` it takes.
        rows: The model's output that each label is, L.
        num_classes: The model's outputs.

    Attributes:
        gate: ``(L,)``, 0 at first, so that the model's outputs do not change until it is trained.
    """

    place: torch.Tensor

    def __init__(self, head: FindingHead, indices: Sequence[int], rows: Sequence[int], num_classes: int):
        super().__init__()
        self.head, self.indices, self.rows = head, list(indices), list(rows)
        self.gate = nn.Parameter(torch.zeros_like(head.bias))
        place = torch.zeros(len(rows), num_classes, device=head.bias.device, dtype=head.bias.dtype)
        place[torch.arange(len(rows)), torch.tensor(rows)] = 1.0
        self.register_buffer("place", place, persistent=False)  # (L, outputs)

    def forward(self, logits: torch.Tensor, maps: list[torch.Tensor]) -> tuple[torch.Tensor, FindingOutput]:
        """Adds to the logits ``(B, outputs)`` what is found in the maps."""
        found = self.head(maps)
        place = self.gate[:, None] * self.place  # OpenVINO loses the product of (gate * logits) and place
        return logits + found.logits @ place, found


def attach_finding_head(
    model: nn.Module,
    labels: Sequence[str] | Sequence[int] | None = None,
    reductions: Sequence[int] = _REDUCTIONS,
    **options: Any,
) -> nn.Module:
    """Gives a timm model a ``FindingHead``: a heat map, a box and a logit for each label.

    The head is the submodule ``finding_head``; no other key of the ``state_dict`` changes. Its logits are added to the
    model's through a gate that starts at 0, so a trained model keeps its outputs. ``model(x)`` gives logits as before;
    ``model(x, return_findings=True)`` gives them and a ``FindingOutput``, whose boxes are in [0, 1] of the image.

    Args:
        model: Any timm model whose ``forward_intermediates`` gives maps: ours, EfficientNet, ConvNeXt, ViT. It may have
            grafted MXA. It is changed in place.
        labels: Outputs that are given a place, by name or by number; by default all but No Finding, which has none.
        reductions: Strides of the maps that the head takes, each the last of its stride. Those that the model lacks are
            left out; if it has none of them, the head takes its coarsest map.
        **options: Arguments of ``FindingHead``: ``dim``, ``crop_size``, ``prior_size``, ``min_size``, ``reduction``,
            ``kernel_size``.

    Returns:
        The model.

    Raises:
        ValueError: it has a finding head, or no maps, or no outputs, or a label is not one of its outputs.

    >>> import mxa, timm
    >>> model = mxa.layers.attach_finding_head(timm.create_model("efficientvit_ml_m0", num_classes=3)).eval()
    >>> logits, found = model(torch.ones(1, 3, 224, 224), return_findings=True)
    >>> logits.shape, found.boxes.shape
    (torch.Size([1, 3]), torch.Size([1, 3, 4]))
    """
    if hasattr(model, "finding_head"):
        raise ValueError("the model has a finding head already: detach it first")
    rows = _rows(model, labels)
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates") or not hasattr(model, "forward_head"):
        raise ValueError(f"{type(model).__name__} gives no maps: take a timm model that has forward_intermediates")
    last = {stage["reduction"]: (i, stage["num_chs"]) for i, stage in enumerate(info)}
    taken = [last[stride] for stride in sorted(reductions) if stride in last] or [last[max(last)]]
    tensor = next(model.parameters())
    dims = [channels for _, channels in taken]
    head = FindingHead(dims, len(rows), **options, device=tensor.device, dtype=tensor.dtype)
    grown: Any = model
    attached = AttachedFindingHead(head, [i for i, _ in taken], rows, grown.num_classes)
    attached.register_load_state_dict_pre_hook(keep_own)
    grown.finding_head = attached.train(model.training)
    kind: Any = type(model)
    grown.__class__ = _attached_class(kind)
    remember(model, "finding_head", {"labels": rows, "reductions": list(reductions), **options})
    return model


def detach_finding_head(model: nn.Module) -> nn.Module:
    """Removes the finding head and returns the model as it was.

    Raises:
        ValueError: it has none.
    """
    check_last(model, "finding_head", "has no finding head")
    kind: Any = type(model)
    model.__class__ = kind._attached_to
    del model.finding_head
    forget(model, "finding_head")
    return model


def finding_rows(model: nn.Module) -> list[int] | None:
    """Returns the outputs that a model's finding head has a box for, in the head's order; None where it has no head."""
    head = getattr(model, "finding_head", None)
    return head.rows if isinstance(head, AttachedFindingHead) else None


def _rows(model: nn.Module, labels: Sequence[str] | Sequence[int] | None) -> list[int]:
    """The outputs that labels are, by number."""
    count, names = getattr(model, "num_classes", 0), label_names(model)
    if not count:
        raise ValueError(f"{type(model).__name__} has no outputs: build it with num_classes")
    if labels is None:
        absent = canonical("No Finding")
        return [i for i in range(count) if names is None or canonical(names[i]) != absent]
    if isinstance(labels, str):
        raise ValueError(f"labels must be a sequence of names, got the text {labels!r}")
    if any(isinstance(label, str) for label in labels):
        if names is None:
            raise ValueError("the model's outputs have no names: set them with mxa.set_label_names(model, names)")
        asked = [str(label) for label in labels]
        found = align(names, asked)
        if unknown := [label for label, row in zip(asked, found, strict=True) if row is None]:
            raise ValueError(f"the model has no output of {', '.join(unknown)}; it has {', '.join(names)}")
        rows = [row for row in found if row is not None]
    else:
        rows = [int(label) for label in labels]
    if not rows or len(set(rows)) < len(rows) or not all(0 <= row < count for row in rows):
        raise ValueError(f"labels must be different outputs, 0 to {count - 1}, got {list(labels)}")
    return rows


@cache
def _attached_class(kind: type) -> type:
    """Makes a subclass whose forward also runs the finding head."""

    def forward(self: Any, x: torch.Tensor, return_findings: bool = False) -> Any:
        attached = self.finding_head
        features, maps = self.forward_intermediates(x, indices=attached.indices)
        logits, found = attached(self.forward_head(features), maps)
        return (logits, found) if return_findings else logits

    def reset_classifier(self: nn.Module, *unused: Any, **also_unused: Any) -> None:
        raise ValueError("the model has a finding head for its outputs: detach it first, and attach another afterwards")

    members = {"forward": forward, "reset_classifier": reset_classifier, "_attached_to": kind}
    return grown_class(kind, members, _attached_class, kind)
