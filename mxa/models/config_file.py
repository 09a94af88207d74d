"""What the ``config.json`` beside weights may say.

It names an architecture and describes the weights beside it. It never says where other weights are.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg
from timm.models._pretrained import PretrainedCfg

from ..labels import align, canonical
from ..layers.added import GRAFTED
from ..layers.attach import attach_finding_head
from ..layers.finding import FindingHead
from ..layers.graft import graft
from ..utils.errors import InputError

__all__ = ["check_arguments", "check_config"]

LARGEST_SIDE, MOST_OUTPUTS, LARGEST_NUMBER = 16_384, 1_000_000, 1_000_000
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROPS = ("center", "squash", "border")
#: Fields of timm's configuration that say where weights are, or that run a loader of their own.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
#: Arguments that timm's factory keeps for itself, the network never sees them. Some load files, or load in part.
_FACTORY = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    *("features_only", "out_indices", "feature_cls", "pruned", "device", "dtype"),
    *_SOURCES,
} - {"kwargs"}
_ADDED = {
    "grafted": ("graft", {*inspect.signature(graft).parameters} - {"model"}),
    "finding_head": (
        "attach_finding_head",
        {*inspect.signature(attach_finding_head).parameters, *inspect.signature(FindingHead).parameters}
        - {"model", "options", "dims", "num_labels", "device", "dtype"},
    ),
}


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _list_of(value: Any, one: Callable[[Any], bool], lengths: tuple[int, ...] = ()) -> bool:
    return isinstance(value, list) and (not lengths or len(value) in lengths) and all(map(one, value))


def _side(value: Any) -> bool:
    return _whole(value, 1, LARGEST_SIDE)


def _deviation(value: Any) -> bool:
    return _number(value) and 1e-5 <= value <= 255


def _name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and not re.search("[\ud800-\udfff]", value)


def _text(value: Any) -> bool:
    return isinstance(value, str) or _list_of(value, lambda one: isinstance(one, str))


_COUNT = ("a whole number, 0 or more", lambda v: _whole(v, 0, MOST_OUTPUTS))
_SIZE = ("[channels, height, width]", lambda v: _list_of(v, _side, (3,)))
_SHARE = ("a number of 0.1 to 1", lambda v: _number(v) and 0.1 <= v <= 1)
_SIDES = (f"one or two whole numbers of 1 to {LARGEST_SIDE}", lambda v: _side(v) or _list_of(v, _side, (1, 2)))
_NAMES = ("a list of texts, none of them blank", lambda v: _list_of(v, _name))
_WORDS = ("text", _text)
_FLAG = ("true or false", lambda v: isinstance(v, bool))
#: What a field of timm's configuration must be, in words and as a test; null is always allowed.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("input_size", "test_input_size", "min_input_size"), _SIZE),
    **dict.fromkeys(("crop_pct", "test_crop_pct"), _SHARE),
    **dict.fromkeys(("pool_size", "test_pool_size"), _SIDES),
    **dict.fromkeys(("first_conv", "classifier", "architecture", "tag", "license", "description"), _WORDS),
    **dict.fromkeys(("origin_url", "paper_name", "paper_ids", "notes"), _WORDS),
    **dict.fromkeys(("num_classes", "label_offset"), _COUNT),
    "fixed_input_size": _FLAG,
    "interpolation": (f"one of {', '.join(_INTERPOLATIONS)}", lambda v: v in _INTERPOLATIONS),
    "crop_mode": (f"one of {', '.join(_CROPS)}", lambda v: v in _CROPS),
    "mean": ("a list of numbers of -255 to 255", lambda v: _list_of(v, lambda one: _number(one) and abs(one) <= 255)),
    "std": ("a list of numbers of 0.00001 to 255", lambda v: _list_of(v, _deviation)),
    "label_names": _NAMES,
    "label_descriptions": ("an object", lambda v: isinstance(v, dict)),
}
_ARGUMENTS = {
    "num_classes": _COUNT,
    "label_names": _NAMES,
    "img_size": _SIDES,
    "in_chans": ("a whole number of 1 to 64", lambda v: _whole(v, 1, 64)),
}


def check_config(config: Mapping[str, Any], where: str | Path) -> None:
    """Checks the content of a ``config.json``.

    The fields of ``pretrained_cfg`` are an allow-list: those of timm's that describe weights. ``model_args`` are the
    network's own and differ from one architecture to another. So every name that timm's factory keeps for itself is
    refused there, at any depth; a network opens no files.

    Args:
        config: The content.
        where: What holds it, for the error.

    Raises:
        InputError: something in it loads other files, is of another kind or out of range, or the numbers of outputs and
            of label names that it gives differ.
    """
    architecture, arguments = config.get("architecture"), config.get("model_args", {})
    if not isinstance(architecture, str) or not architecture:
        raise InputError(f"{where} names no architecture")
    if not re.fullmatch(r"[\w.-]+", architecture) or not timm.is_model(architecture):
        raise InputError(f"{where} is of the architecture {architecture!r}, which is no timm model here")
    cfg = config.get("pretrained_cfg", None if "pretrained_cfg" in config else _flat(config))
    for name, part in (("pretrained_cfg", cfg), ("model_args", arguments)):
        if not isinstance(part, dict):
            raise InputError(f"{where}: {name} must be an object, and is a {type(part).__name__}")
    _check_fields(cfg, where)
    if cfg.get("architecture") not in (None, architecture):
        raise InputError(f"{where} is of the architecture {architecture} at its root, of another in pretrained_cfg")
    check_arguments(arguments, where)
    if architecture == GRAFTED:
        _check_graft(arguments, where)
    _expect("num_classes", config.get("num_classes"), _COUNT, where)
    _expect("label_names", config.get("label_names"), _NAMES, where)
    _check_outputs({"": config, "model_args": arguments, "pretrained_cfg": cfg}, where)
    channels = arguments.get("in_chans") or (cfg.get("input_size") or (3,))[0]
    for name in ("mean", "std"):
        if cfg.get(name) is not None and len(cfg[name]) not in (1, channels):
            raise InputError(f"{where}: {name} has {len(cfg[name])} values for {channels} channels")
    sha256 = config.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-fA-F]{64}", sha256)):
        raise InputError(f"{where}: sha256 must be 64 hexadecimal digits, or left out")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of timm's older form, which has them at the root."""
    return {k: v for k, v in config.items() if k not in ("model_args", "num_features", "labels")}


def _expect(name: str, value: Any, rule: tuple[str, Callable[[Any], bool]], where: str | Path) -> None:
    wanted, allowed = rule
    try:
        good = value is None or allowed(value)
    except TypeError:  # a list is in no set
        good = False
    if not good:
        raise InputError(f"{where}: {name} must be {wanted}")


def _check_fields(cfg: Mapping[str, Any], where: str | Path) -> None:
    known = {field.name for field in fields(PretrainedCfg)}
    for name, value in cfg.items():
        if name in _SOURCES:
            if value:
                raise InputError(f"{where}: {name} would load something else than the weights beside it: take it out")
        elif name not in known:
            raise InputError(f"{where}: timm {timm.__version__} knows no field {name} of pretrained_cfg")
        elif name in _FIELDS:
            _expect(name, value, _FIELDS[name], where)


def check_arguments(arguments: Mapping[str, Any], where: str | Path) -> None:
    """Checks the arguments of a network, as ``check_config`` does.

    Raises:
        InputError: one is timm's factory's own, or out of range.
    """
    for name, rule in _ARGUMENTS.items():
        _expect(f"{name} of model_args", arguments.get(name), rule, where)
    for name, value in _nested(arguments):
        if name in _FACTORY:
            raise InputError(
                f"{where}: {name} in model_args could load other files or change what is loaded: take it out"
            )
        if "drop" in name and name.endswith("rate") and value is not None and not (_number(value) and 0 <= value < 1):
            raise InputError(f"{where}: {name} in model_args must be a number of 0 to 1, without 1")
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:
            raise InputError(f"{where}: {name} in model_args is above {LARGEST_NUMBER}, or not finite")


def _nested(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields every name and value in nested objects and lists; a value in a list has the name of the list."""
    waiting: list[tuple[str, Any]] = list(arguments.items())
    while waiting:
        name, value = waiting.pop()
        yield name, value
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((name, inner) for inner in value)


def _check_graft(arguments: Mapping[str, Any], where: str | Path) -> None:
    base = arguments.get("base")
    if not isinstance(base, str) or not re.fullmatch(r"[\w.-]+", base) or base == GRAFTED or not timm.is_model(base):
        raise InputError(f"{where}: base must be the name of a timm model")
    for name, (function, known) in _ADDED.items():
        recipe = arguments.get(name) or {}
        if not isinstance(recipe, dict) or not set(recipe) <= known:
            raise InputError(f"{where}: {name} must be an object of arguments of mxa.layers.{function}")


def _check_outputs(parts: Mapping[str, Mapping[str, Any]], where: str | Path) -> None:
    """Refuses numbers of outputs, and lists of their names, that differ; a number that is null is a fresh head.

    That of ``pretrained_cfg`` counts only where the root has none: timm's earlier versions left the original's there.
    """
    if not any("num_classes" in parts[part] for part in ("", "pretrained_cfg")):
        raise InputError(f"{where} has no num_classes: timm would take it for 1000, and make a fresh head")
    counts: dict[str, int] = {}
    first: list[str] | None = None
    for part, content in parts.items():
        at = f" of {part}" if part else ""
        if "num_classes" in content and not (part == "pretrained_cfg" and "num_classes" in parts[""]):
            if content["num_classes"] is None:
                raise InputError(f"{where}: num_classes{at} is null: give the number of outputs, or leave it out")
            counts[f"num_classes{at}"] = content["num_classes"]
        if (names := content.get("label_names")) is not None:
            counts[f"label_names{at}"] = len(names)
            try:
                align(names, ())
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            if first is not None and list(map(canonical, names)) != list(map(canonical, first)):
                raise InputError(f"{where} has two lists of label_names, and they differ")
            first = names
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{where} gives different numbers of outputs ({said}): make them those of the weights")
