"""Which places speak for a label: Grad-CAM and integrated gradients, computed by captum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ..data import create_transform
from ..labels import align
from ..layers.grid import Grid
from ..models.weights import label_names
from ..utils.errors import InputError, require
from .geometry import upsample
from .hooks import evaluating, observe, true_gradients

__all__ = ["grad_cam", "integrated_gradients"]


@torch.inference_mode(False)
def grad_cam(
    model: nn.Module, images: torch.Tensor, labels: Sequence[str | int] | None = None, layer: str | None = None
) -> torch.Tensor:
    """Computes Grad-CAM (Selvaraju et al., 2017): a layer's channels, weighted by their mean gradient, then ReLU.

    Args:
        model: ``(B, C, H, W)`` to logits ``(B, L)``; run in eval mode. No gradient is left on it.
        images: ``(B, C, H, W)``, normalised.
        labels: Names or indices of outputs, all by default.
        layer: Name of a module that gives maps ``(B, C, h, w)``, by default the last of ``model.feature_info``
            with more than one cell: the last stage, at usual sizes.

    Returns:
        ``(B, L, H, W)`` float32, at least 0, in the order of ``labels``. The scale is the logit's and differs from
        label to label: compare places, not heights.

    Raises:
        InputError: an unknown label, no such layer, a layer without maps, or captum is missing.
    """
    targets = _targets(model, labels)
    module, grid = _find(model, layer, images[:1])
    attributor = require("captum.attr", "explain").LayerGradCam(model, module)
    x, found = images.detach().clone(), []  # a copy: images may come from inference mode
    with evaluating(model), true_gradients(model):
        for target in targets:
            cam = attributor.attribute(x, target, relu_attributions=True).detach()  # (B, 1, h, w)
            found.append(upsample(cam[:, 0], grid))
    return torch.stack(found, dim=1)


@torch.inference_mode(False)
def integrated_gradients(
    model: nn.Module, images: torch.Tensor, labels: Sequence[str | int] | None = None, steps: int = 32
) -> torch.Tensor:
    """Computes integrated gradients (Sundararajan et al., 2017) from a black image.

    Args:
        model: ``(B, C, H, W)`` to logits ``(B, L)``; run in eval mode. No gradient is left on it.
        images: ``(B, C, H, W)``, normalised.
        labels: Names or indices of outputs, all by default.
        steps: Points of the Gauss-Legendre integral along the way from black; each costs a backward pass.

    Returns:
        ``(B, L, H, W)`` float32, summed over channels, with sign: above 0 speaks for the label. The sum over the image
        is the logit less the black image's, up to the error of the integral.

    Raises:
        InputError: an unknown label, or captum is missing.
    """
    targets = _targets(model, labels)
    black = create_transform(model).to_tensor.normalize(torch.zeros_like(images[:, :1])).to(images)
    attributor = require("captum.attr", "explain").IntegratedGradients(model)
    x, found = images.detach().clone(), []  # a copy: images may come from inference mode
    with evaluating(model), true_gradients(model):
        for target in targets:
            chunk = max(32, len(x))
            parts = attributor.attribute(x, black, target, n_steps=steps, internal_batch_size=chunk)
            found.append(parts.detach().float().sum(1).cpu())
    return torch.stack(found, dim=1)


def _targets(model: nn.Module, labels: Sequence[str | int] | None) -> list[int]:
    names = label_names(model)
    count = getattr(model, "num_classes", None) or (len(names) if names else 0)
    if labels is None:
        return list(range(count))
    targets = []
    for label in labels:
        index = align(names or (), (label,))[0] if isinstance(label, str) else label
        if index is None or not 0 <= index < count:
            known = ", ".join(names) if names else f"none is named, give an index below {count}"
            raise InputError(f"the model has no output {label!r}; its outputs: {known}")
        targets.append(index)
    return targets


def _stages(model: nn.Module) -> list[str]:
    try:
        return [stage["module"] for stage in getattr(model, "feature_info", ())]
    except (TypeError, KeyError):
        return []


def _find(model: nn.Module, layer: str | None, image: torch.Tensor) -> tuple[nn.Module, Grid]:
    """The layer of a name, or the last stage that has more than one cell, and the grid of its map."""
    remedy = "name a layer that gives maps (B, C, h, w), or use integrated_gradients"
    names = [layer] if layer else _stages(model)
    if not names:
        raise InputError(f"the model lists no feature maps (feature_info): {remedy}")
    last, modules = names[-1], dict(model.named_modules())
    if last not in modules:
        raise InputError(f"the model has no layer {last!r}: {remedy}")
    grids: dict[str, Grid] = {}

    def look(_, output, grid_of, name):
        if isinstance(output, torch.Tensor) and output.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW":
            grids[name] = grid_of(output)
        elif name == last:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise InputError(f"the layer {last} gives {shape}, which is not a map: {remedy}")

    observe(model, image, {modules[name]: partial(look, name=name) for name in names if name in modules})
    if last not in grids:
        raise InputError(f"the layer {last!r} takes no part in the forward pass: {remedy}")
    chosen = next((name for name in reversed(names) if name in grids and grids[name].cells != (1, 1)), last)
    return modules[chosen], grids[chosen]
