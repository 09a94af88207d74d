"""What is added to a timm model in place, and how a saved one says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["GRAFTED", "check_last", "forget", "grown_class", "keep_own", "recipe_of", "remember"]

#: Architecture under which a model with additions is saved; ``mxa.models`` registers it.
GRAFTED = "mxa_grafted"


def remember(model: nn.Module, kind: str, recipe: dict[str, Any]) -> None:
    """Writes into timm's own fields, which are saved with the model, how to build the addition again.

    Args:
        model: The model with the addition.
        kind: ``"grafted"`` or ``"finding_head"``: the argument of the saved architecture.
        recipe: The arguments of the function that adds it.
    """
    fields: Any = model
    cfg = getattr(model, "pretrained_cfg", None)
    before: dict[str, Any] = {"_model_args": dict(getattr(model, "_model_args", {}))}
    if cfg and cfg.get("architecture"):
        before |= {"pretrained_cfg": cfg, "default_cfg": getattr(model, "default_cfg", cfg)}
        base = {} if cfg["architecture"] == GRAFTED else {"base": cfg["architecture"]}
        fields._model_args = {**before["_model_args"], **base, kind: recipe}
        fields.pretrained_cfg = fields.default_cfg = {**cfg, "architecture": GRAFTED}
    fields._mxa_added = {**getattr(model, "_mxa_added", {}), kind: (before, recipe)}


def forget(model: nn.Module, kind: str) -> None:
    """Puts timm's fields back as they were before the addition, which must be the last one."""
    fields: Any = model
    before, _ = fields._mxa_added.pop(kind)
    for name, value in before.items():
        setattr(model, name, value)
    if not fields._mxa_added:
        del fields._mxa_added


def check_last(model: nn.Module, kind: str, what: str) -> None:
    """Checks that an addition is there and is the last one.

    Raises:
        ValueError: it is not there, or another was added after it.
    """
    added = list(getattr(model, "_mxa_added", {}))
    if kind not in added:
        raise ValueError(f"the model {what}")
    if added[-1] != kind:
        raise ValueError(f"the model has a {added[-1].replace('_', ' ')} that was added later: remove that first")


def recipe_of(model: nn.Module, kind: str = "grafted") -> dict[str, Any] | None:
    """Returns the arguments that make the same addition again; None where there is none.

    The arguments that timm has kept may say less: those of ``create_model``, or of another input size.
    """
    return getattr(model, "_mxa_added", {}).get(kind, (None, None))[1]


def keep_own(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Lets a checkpoint without an addition load: it keeps its values. One with some of its keys is an error."""
    if not any(key.startswith(prefix) for key in state):
        state.update({prefix + key: value for key, value in module.state_dict().items()})


def grown_class(kind: type, members: dict[str, Any], make: Callable[..., type], *args: Any) -> type:
    """Makes a subclass of a module's class whose objects can be pickled and copied.

    Args:
        kind: The class.
        members: What the subclass changes.
        make: A function that makes this subclass again of ``args``, found by its name.
        *args: See above.
    """

    def reduce(self: nn.Module, protocol: int) -> tuple:
        return _new, (make, args), self.__dict__

    return type(kind.__name__, (kind,), {**members, "__reduce_ex__": reduce, "__module__": kind.__module__})


def _new(make: Callable[..., type], args: tuple[Any, ...]) -> nn.Module:
    """Makes an empty module of a grown class."""
    grown: Any = make(*args)
    return grown.__new__(grown)
