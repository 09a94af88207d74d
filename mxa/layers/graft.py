"""MXA beside the attention of any timm model, without a change to its weights' names."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

import torch
from timm.data import resolve_model_data_config
from torch import nn

from .added import check_last, forget, grown_class, keep_own, remember
from .mxa_block import MXABlock

__all__ = ["graft", "ungraft"]

#: Modules that cut the map into windows inside this method: MXA goes beside the method and sees the whole map.
WHOLE_MAP = {
    "SwinTransformerBlock": "_attn",
    "SwinTransformerV2Block": "_attn",
    "SwinTransformerV2CrBlock": "_shifted_window_attn",
    "PartitionAttentionCl": "_partition_attn",
    "PartitionAttention2d": "_partition_attn",
    "ParallelPartitionAttention": "_partition_attn",
}
#: Modules whose tokens are not in the order of a map's rows.
OTHER_ORDER = {"MaskUnitAttention": "its tokens are not in rows"}
_ATTENTION = re.compile(r"(?!.*(Block|Pool))\w*(Attention|Attn|XCA|LiteMLA)")

_logger = logging.getLogger(__name__)


class _Place(NamedTuple):
    """A module, and the method beside which MXA goes."""

    name: str
    module: nn.Module
    method: str


def graft(
    model: nn.Module,
    where: str | Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    last: int | None = None,
    init_values: float = 0.0,
    reduction: int = 16,
    kernel_size: int = 7,
    roi_head: str = "softmax",
    min_size: float = 0.1,
    input_size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Adds an MXA block beside every attention: ``attention(x)`` becomes ``attention(x) + MXA(x)`` (section 2.2).

    Each block is the submodule ``mxa`` of the module that it stands beside; no other key of the ``state_dict`` changes.
    A checkpoint without MXA still loads: the blocks keep their values, and every other key is strict.

    One forward in eval mode shows what each place takes. In Swin and MaxViT, MXA sees the whole map, not a window.
    Where a model cuts its windows before the attention (TinyViT), MXA sees a window, which is logged. Two kinds of
    places are left out and logged: attention that changes the shape (downsampling, class attention), and the last
    attention of a model that classifies by its class token alone, because MXA leaves that token as it is.

    Args:
        model: Any timm model; it is changed in place.
        where: Names of modules, or patterns (``"layer4.*.conv2"``), whose input and output have one shape; every
            attention by default. A model without attention needs it. The recipe of a saved graft maps each name to the
            ``dim`` and the format of its ``MXABlock``, and no forward is made.
        last: Keep only this many places, the last ones.
        init_values: First value of the gates. With 0.0 the model's outputs do not change at all until it is trained.
        reduction: Reduction of the channel attention.
        kernel_size: Kernel of the spatial attention.
        roi_head: Box head, as in ``MXABlock``.
        min_size: Smallest side of a box, in (0, 1).
        input_size: (C, H, W) of the model's input; by default what the model was built for, as far as that can be seen.
            The blocks expect maps of these proportions. For images of other proportions (``dynamic_img_size``,
            ``set_input_size``) graft anew.

    Returns:
        The model.

    Raises:
        ValueError: it has MXA already, or no place for it; the message says why.
    """
    if any(isinstance(module, MXABlock) for module in model.modules()):
        raise ValueError("the model has MXA already: ungraft it first")
    if hasattr(model, "_orig_mod") or not hasattr(model, "pretrained_cfg"):
        inside = [name for name, module in model.named_modules() if name and hasattr(module, "pretrained_cfg")]
        if inside:
            raise ValueError(
                f"{type(model).__name__} wraps a timm model: graft that ({inside[0]}), before it is wrapped"
            )
    options: dict[str, Any] = {
        "reduction": reduction,
        "kernel_size": kernel_size,
        "roi_head": roi_head,
        "min_size": min_size,
    }
    places = _places(model, where)
    made, refused = [], []
    if isinstance(where, Mapping):
        made = [(place, dict(where[place.name])) for place in places]
    else:
        size = tuple(input_size or _input_size(model))
        for place, seen in zip(places, _watch(model, places, size), strict=True):
            try:
                made.append((place, _layout(model, place, seen, size)))
            except ValueError as error:
                refused.append(f"{place.name} ({error})")
    by_token = where is None and getattr(model, "global_pool", "") == "token"
    if by_token and made and made[-1][1].get("num_prefix_tokens"):
        refused.append(f"{made.pop()[0].name} (after it only the class token counts: build it with global_pool='avg')")
    if not made:
        why = "; ".join(refused[:3]) or "no attention is recognised in it: name modules or patterns in `where`"
        raise ValueError(f"{type(model).__name__} cannot be grafted: {why}")
    if last is not None and not 1 <= last <= len(made):
        raise ValueError(f"last must be between 1 and {len(made)}, the places there are, got {last}")
    made = made[-last:] if last else made
    for place, layout in made:
        module: Any = place.module
        tensor = next(module.parameters())
        block = MXABlock(init_values=init_values, **options, **layout, device=tensor.device, dtype=tensor.dtype)
        block.register_load_state_dict_pre_hook(keep_own)
        module.mxa = block.train(module.training)
        kind: Any = type(module)
        module.__class__ = _grafted_class(kind, place.method)
    if refused:
        _logger.info("no MXA beside %s", "; ".join(refused))
    layouts = {place.name: layout for place, layout in made}
    remember(model, "grafted", {"where": layouts, "init_values": init_values, **options})
    return model


def ungraft(model: nn.Module) -> nn.Module:
    """Removes the grafted MXA blocks and returns the model as it was.

    Raises:
        ValueError: it is not grafted.
    """
    check_last(model, "grafted", "is not grafted")
    for module in model.modules():
        kind: Any = type(module)
        if hasattr(kind, "_grafted"):
            module.__class__, _ = kind._grafted
            del module.mxa
    forget(model, "grafted")
    return model


def _places(model: nn.Module, where: str | Iterable[str] | None) -> list[_Place]:
    """Finds the places: those named, or the outermost attention modules."""
    patterns = [where] if isinstance(where, str) else where
    places: list[_Place] = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if any(name.startswith(f"{place.name}.") for place in places) or not name:
            continue
        if patterns is None:
            wanted = kind in WHOLE_MAP or _ATTENTION.match(kind) is not None
        else:
            wanted = any(fnmatchcase(name, pattern) for pattern in patterns)
        method = WHOLE_MAP.get(kind, "forward")
        if wanted:
            places.append(_Place(name, module, method if hasattr(type(module), method) else "forward"))
    if patterns is not None:
        for pattern in patterns:
            names = [name for name, _ in model.named_modules() if fnmatchcase(name, pattern)]
            if not names:
                raise ValueError(f"no module is called {pattern}: see [n for n, _ in model.named_modules()]")
            if not any(place.name in names for place in places):
                raise ValueError(f"{names[0]} lies inside another of the places that are named")
    return places


def _watch(model: nn.Module, places: Sequence[_Place], size: tuple[int, ...]) -> list[tuple | None]:
    """Notes the shapes of each place's input and output in one forward; None for a place that was not called."""
    seen: list[tuple | None] = [None] * len(places)
    modes = {module: module.training for module in model.modules()}
    own = [vars(place.module).get(place.method) for place in places]
    tensor = next(model.parameters())
    try:
        for i, place in enumerate(places):  # an attribute of the object hides the method of its class
            setattr(place.module, place.method, _Recorder(getattr(place.module, place.method), seen, i))
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *size, device=tensor.device, dtype=tensor.dtype))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the model does not take an input of {size}: give input_size=(C, H, W) ({error})") from error
    finally:
        for place, before in zip(places, own, strict=True):
            delattr(place.module, place.method)
            if before is not None:
                setattr(place.module, place.method, before)
        model.train()  # drops what timm's attention keeps in eval mode
        for module, mode in modes.items():
            module.training = mode
    return seen


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) that a timm model was built for."""
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels, *side = resolve_model_data_config(model)["input_size"]
    side = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "img_size", None) or side
    height, width = (side, side) if isinstance(side, int) else side
    return channels if stem is None else stem.in_channels, height, width


class _Recorder:
    """Calls a method and notes the shapes of its input and output."""

    def __init__(self, method: Callable, seen: list, i: int):
        self.method, self.seen, self.i = method, seen, i

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        y = self.method(*args, **kwargs)
        if args and isinstance(args[0], torch.Tensor):
            given = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            self.seen[self.i] = (tuple(args[0].shape), given)
        return y


def _layout(model: nn.Module, place: _Place, seen: tuple | None, size: tuple[int, ...]) -> dict[str, Any]:
    """What ``MXABlock`` takes at a place: ``dim`` and the format of the input.

    Raises:
        ValueError: MXA cannot stand there; the message says why.
    """
    kind = type(place.module).__name__
    if seen is None:
        raise ValueError("its forward is not called with a tensor first")
    if place.method in vars(place.module):
        raise ValueError(f"its {place.method} was replaced on the object")
    if next(place.module.parameters(), None) is None:
        raise ValueError("it has no parameters that tell its layout")
    if kind in OTHER_ORDER:
        raise ValueError(OTHER_ORDER[kind])
    x, y = seen
    if x != y:
        raise ValueError(f"it takes {x} and gives {y}")
    if x[0] > 1:
        _logger.info("%s: MXA sees pieces of the map (%s), such as windows, not the whole", place.name, x[1:])
    if len(x) == 4:
        layout = next(_channels(place.module, x), {"dim": x[1], "input_fmt": "NCHW"})
        height, width = x[1:3] if layout["input_fmt"] == "NHWC" else x[2:]
        if x[0] == 1 and abs(height * size[2] - width * size[1]) > max(size[1:]):  # a cell of rounding
            raise ValueError(f"its input {x} is not a map of an image of {size[1]} x {size[2]}")
        return layout
    if len(x) != 3:
        raise ValueError(f"its input {x} is neither a map nor tokens")
    if x[0] > 1:
        side = math.isqrt(x[1])
        if side * side != x[1]:
            raise ValueError(f"windows of {x[1]} tokens are not square")
        return {"dim": x[2], "input_fmt": "NLC", "grid_size": (side, side)}
    for prefix in dict.fromkeys((getattr(model, "num_prefix_tokens", 0), 0, 1)):
        tokens = x[1] - prefix
        rows = round(math.sqrt(tokens * size[1] / size[2]))
        if rows and rows * (tokens // rows) == tokens and rows * size[2] == tokens // rows * size[1]:
            grid = (rows, tokens // rows)
            return {"dim": x[2], "input_fmt": "NLC", "num_prefix_tokens": prefix, "grid_size": grid}
    raise ValueError(f"its {x[1]} tokens are not a grid of an input of {size[1]} x {size[2]}")


def _channels(module: nn.Module, shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yields which axis of a 4-d input holds the channels, as each layer of the module would have it."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.in_features == shape[3]:
            yield {"dim": shape[3], "input_fmt": "NHWC"}
        elif isinstance(layer, nn.Conv2d) and layer.in_channels == shape[1]:
            yield {"dim": shape[1], "input_fmt": "NCHW"}


@cache
def _grafted_class(kind: type, method: str) -> type:
    """Makes a subclass that adds MXA to the result of one method."""
    original = getattr(kind, method)

    def added(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = self.mxa(x)  # first: the original may change x in place
        return original(self, x, *args, **kwargs) + y

    members = {method: added, "_grafted": (kind, method)}
    return grown_class(kind, members, _grafted_class, kind, method)
