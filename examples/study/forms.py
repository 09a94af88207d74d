"""Forms of MXA that the paper leaves open, and the published baseline's head, as models for ``mxa ablate``.

``efficientvit_ml_m0_form(form=...)`` is ``efficientvit_ml_m0_mxa`` with another MXA; ``efficientvit_ml_m0_published``
is the plain network with the published code's double sigmoid. They are here to be measured, not to be used.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from timm.models import load_pretrained, register_model
from torch import nn

from mxa.labels import NIH
from mxa.layers import CBAM, MXABlock, ROIHead, ROIPool
from mxa.layers.roi import roi_resize
from mxa.models.efficientvit_ml import Residual
from mxa.models.weights import checkpoint_filter_fn


def _hat(start: torch.Tensor, stop: torch.Tensor, out: int, size: int) -> torch.Tensor:
    """Bilinear sampling of the interval ``(B,)`` as a matrix ``(B, out, size)``; zeros outside [0, 1]."""
    cells = torch.arange(out, device=start.device, dtype=start.dtype)
    at = start[:, None] + (stop - start)[:, None] * ((cells + 0.5) / out)
    at = at[:, :, None] * size - 0.5
    return (1 - (at - torch.arange(size, device=start.device, dtype=start.dtype)).abs()).clamp(min=0)


def paste(y: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Puts what was cropped, ``(B, C, H, W)``, back to the place of its box in a map of zeros: the inverse crop."""
    low, high = boxes[:, :2], boxes[:, 2:]
    start, stop = -low / (high - low), (1 - low) / (high - low)  # the whole map, in the box's own coordinates
    rows = _hat(start[:, 1], stop[:, 1], y.shape[2], y.shape[2])
    cols = _hat(start[:, 0], stop[:, 0], y.shape[3], y.shape[3])
    return rows[:, None] @ y @ cols[:, None].transpose(2, 3)


class PasteBack(MXABlock):
    """MXA whose output stands where its box is, so that it lines up with self-attention's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        boxes = self.roi.head(x)
        return self.ls(paste(self.cbam(roi_resize(x, boxes)), boxes))


class Boxes(MXABlock):
    """MXA with several boxes, each cropped, through one CBAM, averaged."""

    def __init__(self, dim: int, count: int, **kwargs):
        super().__init__(dim, **kwargs)
        self.more = nn.ModuleList(ROIPool(dim) for _ in range(count - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pools = (self.roi, *self.more)
        return self.ls(sum(self.cbam(pool(x)) for pool in pools) / len(pools))


class _Map:
    """A map of this forward, for the blocks that come later."""

    value: torch.Tensor

    def __call__(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.value = output


class Zoom(MXABlock):
    """MXA whose crop comes from the stem's stride-8 map: detail that the block's own map no longer holds."""

    def __init__(self, dim: int, fine: _Map, fine_dim: int):
        super().__init__(dim, source_dim=fine_dim)
        self.fine = fine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x, self.fine.value)


#: Labels that one box serves.
GROUPS = (
    ("Cardiomegaly", "Hernia"),
    ("Effusion", "Pleural_Thickening", "Pneumothorax"),
    ("Atelectasis", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Infiltration", "Pneumonia"),
    ("Mass", "Nodule"),
)


class GroupBoxes(nn.Module):
    """A box for each group of labels on the map of stage 1; what it holds is added to the logits of its group."""

    def __init__(self, dim: int, source: _Map):
        super().__init__()
        self.source = source
        self.heads = nn.ModuleList(ROIHead(dim) for _ in GROUPS)
        self.cbam = CBAM(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, len(group)) for group in GROUPS)
        self.columns = [[NIH.index(name) for name in group] for group in GROUPS]

    def forward(self, module: nn.Module, inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
        x, added = self.source.value, torch.zeros_like(logits)
        for head, linear, columns in zip(self.heads, self.linears, self.columns, strict=True):
            features = self.cbam(roi_resize(x, head(x))).mean((2, 3))
            added[:, columns] = linear(features)
        return logits + added


def _replace(model: nn.Module, make: Callable[[int], nn.Module]) -> None:
    for stage in model.stages:
        for block in stage.blocks:
            block.mixer.mxa = make(block.mixer.m.dim)


def _give(model: nn.Module, form: str) -> None:
    """Changes the MXA of every block of a model."""
    if form == "paste":
        _replace(model, PasteBack)
    elif form in ("2 boxes", "4 boxes"):
        _replace(model, lambda dim: Boxes(dim, int(form[0])))
    elif form == "zoom":
        fine = _Map()
        model.patch_embed.relu3.register_forward_hook(fine)
        width = model.patch_embed.conv3.conv.out_channels
        _replace(model, lambda dim: Zoom(dim, fine, width))
    elif form == "groups":
        if model.num_classes != len(NIH):
            raise ValueError("the groups are of NIH's labels")
        source = _Map()
        model.stages[0].register_forward_hook(source)
        model.group_boxes = GroupBoxes(model.stages[0].blocks[-1].mixer.m.dim, source)
        model.head.register_forward_hook(model.group_boxes)
    elif form == "first stage":
        for stage in model.stages[1:]:
            for block in stage.blocks:
                block.mixer = Residual(block.mixer.m)
    else:
        raise ValueError(f"unknown form {form!r}")


def _loaded(model: nn.Module, architecture: str, pretrained: bool, in_chans: int) -> nn.Module:
    model.pretrained_cfg["architecture"] = architecture
    if pretrained:
        load_pretrained(
            model,
            model.pretrained_cfg,
            num_classes=model.num_classes,
            in_chans=in_chans,
            filter_fn=checkpoint_filter_fn,
        )
    return model


@register_model
def efficientvit_ml_m0_form(pretrained: bool = False, form: str = "paste", **kwargs) -> nn.Module:
    """EfficientViT-M0 with one of the forms of MXA."""
    model = timm.create_model("efficientvit_ml_m0_mxa", **kwargs)
    _give(model, form)
    return _loaded(model, "efficientvit_ml_m0_form", pretrained, kwargs.get("in_chans", 3))


class DoubleSigmoid(nn.Module):
    """What the published naive branch's ``forward`` returns, in training too: probabilities, taken for logits.

    In eval mode they are rounded to half precision, as by the autocast under which that branch evaluates. (Its
    evaluation then takes the sigmoid of them once more.)
    """

    def forward(self, module: nn.Module, inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if module.training else logits.half().sigmoid().float()


@register_model
def efficientvit_ml_m0_published(pretrained: bool = False, **kwargs) -> nn.Module:
    """EfficientViT-M0 with the published naive branch's double sigmoid."""
    model = timm.create_model("efficientvit_ml_m0", **kwargs)
    model.register_forward_hook(DoubleSigmoid())
    return _loaded(model, "efficientvit_ml_m0_published", pretrained, kwargs.get("in_chans", 3))
