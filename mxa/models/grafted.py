"""Grafted models in timm's registry, so that one that was saved is built again by name."""

from __future__ import annotations

import sys
from typing import Any

import timm
from timm.models import load_pretrained, register_model
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

from ..layers.graft import GRAFTED, graft
from .hub import weights_of

__all__ = ["mxa_grafted"]


@register_model
def mxa_grafted(
    pretrained: bool = False, base: str | None = None, grafted: dict[str, Any] | None = None, **kwargs
) -> nn.Module:
    """Builds a timm model and grafts MXA onto it, as a saved configuration says.

    Args:
        pretrained: Load the weights that come with the configuration.
        base: Name of the timm model.
        grafted: Arguments of ``mxa.layers.graft``.
        **kwargs: For the timm model.

    Raises:
        ValueError: no base.
    """
    if base is None:
        raise ValueError(f"{GRAFTED} is what a saved model with grafted MXA is called: use mxa.layers.graft(model)")
    if kwargs.get("features_only"):
        raise ValueError(f"{GRAFTED} gives no features: load it, then use its forward_intermediates")
    model = graft(timm.create_model(base, **kwargs), **(grafted or {}))
    if pretrained:
        family = sys.modules[timm.models.model_entrypoint(base).__module__]
        cfg = model.pretrained_cfg
        state = weights_of(GRAFTED, resolve_pretrained_cfg(GRAFTED, cfg))
        load_pretrained(
            model,
            {**cfg, "state_dict": state, "source": None},
            num_classes=model.num_classes,
            in_chans=kwargs.get("in_chans", 3),
            filter_fn=getattr(family, "checkpoint_filter_fn", None),  # resizes position embeddings, for one
        )
    return model
