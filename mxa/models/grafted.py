"""Grafted models in timm's registry, so that one that was saved is built again by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models import _registry, load_pretrained, register_model
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

from ..layers.added import GRAFTED
from ..layers.attach import attach_finding_head
from ..layers.graft import graft
from .hub import config_of, weights_of
from .weights import check_filled

__all__ = ["mxa_grafted"]


@register_model
def mxa_grafted(
    pretrained: bool = False,
    base: str | None = None,
    grafted: dict[str, Any] | None = None,
    finding_head: dict[str, Any] | None = None,
    **kwargs,
) -> nn.Module:
    """Builds a timm model and adds MXA, a finding head or both, as a saved configuration says.

    A saved graft has the layout of every block, so the blocks are the saved ones. Where another ``img_size`` or
    ``patch_size`` is asked for, one forward shows the layouts anew.

    Args:
        pretrained: Load the weights that come with the configuration.
        base: Name of the timm model.
        grafted: Arguments of ``mxa.layers.graft``; None grafts nothing where there is a finding head.
        finding_head: Arguments of ``mxa.layers.attach_finding_head``.
        **kwargs: For the timm model.

    Raises:
        ValueError: no base, or ``features_only``.
    """
    if base is None:
        raise ValueError(f"{GRAFTED} is what a saved model with grafted MXA is called: use mxa.layers.graft(model)")
    if kwargs.get("features_only"):
        raise ValueError(f"{GRAFTED} gives no features: load it, then use its forward_intermediates")
    config_of(resolve_pretrained_cfg(GRAFTED, kwargs.get("pretrained_cfg")), kwargs.get("cache_dir"))
    if isinstance(kwargs.get("pretrained_cfg"), dict):  # it may name this architecture: it becomes the base's
        kwargs["pretrained_cfg"] = {k: v for k, v in kwargs["pretrained_cfg"].items() if k != "architecture"}
    if grafted is None and finding_head is None:
        grafted = {}
    saved = kwargs.get("pretrained_model_args") or kwargs
    other = any(_pair(kwargs.get(name)) != _pair(saved.get(name)) for name in ("img_size", "patch_size"))
    if other and isinstance((grafted or {}).get("where"), Mapping):
        grafted["where"] = list(grafted["where"])  # in place: timm saves this dict with the model
    model = timm.create_model(base, **kwargs)
    if grafted is not None:
        graft(model, **grafted)
    if finding_head is not None:
        attach_finding_head(model, **finding_head)
    if pretrained:
        family = sys.modules[timm.models.model_entrypoint(base).__module__]
        cfg = model.pretrained_cfg
        state = weights_of(GRAFTED, resolve_pretrained_cfg(GRAFTED, cfg), kwargs.get("cache_dir"))
        check_filled(state, model)
        load_pretrained(
            model,
            {**cfg, "state_dict": state, "source": None},
            num_classes=model.num_classes,
            in_chans=kwargs.get("in_chans", 3),
            filter_fn=getattr(family, "checkpoint_filter_fn", None),  # resizes position embeddings, for one
        )
    return model


def _pair(size: int | Sequence[int] | None) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size or ())


# timm has no other way to leave a name out of list_models(): this one cannot be created by its name alone.
_registry._deprecated_models[GRAFTED] = None
