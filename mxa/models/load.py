"""Models by name, run folder or file, for the main jobs."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import clean_state_dict, model_entrypoint, resolve_model_input_args
from timm.models._factory import parse_model_name
from timm.models._pretrained import PretrainedCfg
from torch import nn

from ..labels import align
from ..utils.errors import InputError
from .finding import add_finding_head
from .hub import SHIPPED, WeightsError, checked_tensors, config_of, read_config, read_weights, weights_of
from .weights import check_filled, check_keys, for_gray, label_names, resize_attention_biases

__all__ = ["create", "fill_weights", "init_weights", "load_model", "named_outputs", "read_checkpoint"]

_logger = logging.getLogger(__name__)


def create(name: str, img_size: int | tuple[int, int] | None = None, **kwargs) -> nn.Module:
    """Creates a timm model; whatever goes wrong is one clear error.

    Args:
        name: A timm name, ``local-dir:`` or ``hf-hub:``.
        img_size: Side of the input, or its height and width; given to the models whose input size is fixed when they
            are built.
        **kwargs: As for timm.

    Raises:
        InputError: no such model, an argument it does not have, or weights that cannot be had; the message says what
            to do.
    """
    if ":" not in name and not timm.is_model(name):
        architecture = name.split(".")[0]
        close = timm.list_models(f"*{architecture}*") or difflib.get_close_matches(architecture, timm.list_models())
        near = f"close to it: {', '.join(close[:5])}; " if close else ""
        raise InputError(
            f"unknown model {name!r}: no folder, and no timm model; {near}timm.list_models() has all names"
        )
    try:
        source, place = parse_model_name(name)
        if source:  # before timm reads it; from the Hub, at the commit that is checked
            cfg = PretrainedCfg(source=source, file=place, hf_hub_id=place)
            config = config_of(cfg, kwargs.get("cache_dir"))
            name = name if source == "local-dir" else f"hf-hub:{place.partition('@')[0]}@{config.parent.name}"
        if base := kwargs.get("base"):  # of a grafted model: it is the base that may have a fixed input
            sized = resolve_model_input_args(base, {"img_size": img_size})
            return timm.create_model(name, **kwargs, **{k: v for k, v in sized.items() if k == "img_size"})
        arguments = resolve_model_input_args(name, {"img_size": img_size}, **kwargs)
        return _create_from(arguments) if source and kwargs.get("pretrained") else timm.create_model(**arguments)
    except Exception as error:  # a network raises one of many classes for arguments that do not fit
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise InputError(f"{name} has no argument {unknown[1]}") from error
        raise InputError(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _create_from(arguments: dict[str, Any]) -> nn.Module:
    """Creates a model from a folder or a repository. timm's own models get the weights that are read and checked here.

    timm's loader would take a pickle where there is no safetensors file, and know no hash.
    """
    cfg = PretrainedCfg(**arguments["pretrained_cfg"])
    own = model_entrypoint(arguments["model_name"]).__module__.startswith(f"{__package__}.")
    if own or cfg.source not in ("local-dir", "hf-hub") or cfg.state_dict:
        return timm.create_model(**arguments)
    state = weights_of(arguments["model_name"], cfg, arguments.get("cache_dir"))
    given = {**arguments["pretrained_cfg"], "state_dict": state, "source": None}
    model = timm.create_model(**{**arguments, "pretrained_cfg": given})
    model.pretrained_cfg.pop("state_dict")
    model.pretrained_cfg["source"] = cfg.source
    if not arguments.get("features_only"):
        check_filled(state, model)
    return model


def load_model(name: str | Path, finding_head: bool = False, **kwargs) -> nn.Module:
    """Loads a model with its weights, in eval mode, from a run folder or by a timm name.

    Args:
        name: Run folder, or a timm name with weights.
        finding_head: Give the small model that comes with mxa the finding head that comes with it.
        **kwargs: As for timm.

    Raises:
        InputError: it is neither, or the weights do not fit.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} is not a run folder: it has no config.json")
        name = f"local-dir:{path}"
    elif path.exists() or path.suffix in (".pt", ".pth", ".safetensors"):
        raise InputError(f"{path} is not a run folder: give the folder that holds config.json and model.safetensors")
    model = create(str(name), pretrained=True, **kwargs).eval()
    return add_finding_head(model) if finding_head and str(name) == SHIPPED else model


def named_outputs(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of a model's outputs.

    Raises:
        InputError: they are unknown.
    """
    names = label_names(model)
    if names is None:
        raise InputError(
            "the model's outputs have no names: set them with mxa.set_label_names(model, names) and save it"
        )
    return names


def read_checkpoint(path: Path, allowed: Sequence[type] = ()) -> tuple[dict[str, torch.Tensor], tuple[str, ...] | None]:
    """Reads the tensors of a file, and the names of its outputs.

    The names are in the file or in the ``config.json`` beside it; None where they are in neither.

    Args:
        path: A ``.safetensors`` file, or a pickle, which is opened with ``weights_only=True``.
        allowed: Classes that a pickle may hold beside tensors.

    Raises:
        InputError: no such file, another kind of file, or no state dict in it.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        config = path.with_name("config.json")
        names = read_config(config).get("label_names") if config.is_file() else None
        try:
            return read_weights(path), None if names is None else tuple(names)
        except WeightsError as error:
            raise InputError(f"{path} is not a checkpoint: {error}") from None
    try:
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle of something else, a truncated file: torch has no common class for them
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if first.startswith("Weights only load failed"):
            first = "it holds other objects, such as a whole model: save its state_dict()"
        raise InputError(f"{path} is not a checkpoint of tensors alone, and nothing else is opened: {first}") from None
    names = content.get("labels") if isinstance(content, dict) else None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path} is not a checkpoint: it holds no state_dict")
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
        raise InputError(f"{path}: labels must be a list of names")
    return clean_state_dict(checked_tensors(content, path)), None if names is None else tuple(names)


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def init_weights(model: nn.Module, start: str) -> set[str]:
    """Starts a model from other weights.

    The head takes the rows of labels that both have, by name; its other rows stay as they are.

    Args:
        model: The model to fill, its label names set.
        start: A timm name with weights, a run folder, or a file (``.safetensors``, ``.pt``) of the same architecture.

    Returns:
        The keys that were filled, without those of the head.

    Raises:
        InputError: no such start, its label names are not as many as its head's rows, or its weights are of another
            architecture; the message lists the keys.
    """
    path = Path(start)
    if path.is_file():
        state, names = read_checkpoint(path)
    else:
        origin = load_model(start)
        state, names = origin.state_dict(), label_names(origin)
    return fill_weights(model, state, names, start)


def fill_weights(
    model: nn.Module, state: dict[str, torch.Tensor], names: Sequence[str] | None, origin: str
) -> set[str]:
    """Fills a model as ``init_weights`` does, from a state whose outputs are ``names``; errors call it ``origin``."""
    cfg = model.pretrained_cfg
    own = model.state_dict()
    stems, heads = _names(cfg.get("first_conv")), _names(cfg.get("classifier"))
    head_keys = [k for k in own if k.rpartition(".")[0] in heads]
    rows = align(names or (), label_names(model) or ())
    for key in head_keys:
        if names and key in state and len(state[key]) != len(names):
            raise InputError(
                f"{origin} has {len(names)} label names for a head of {len(state[key])} rows: name every row, in order"
            )
        fresh = own[key].clone()
        for i, row in enumerate(rows):
            if row is not None and key in state and state[key].shape[1:] == fresh.shape[1:]:
                fresh[i] = state[key][row]
        state[key] = fresh
    if len(stems) == 1 and own[f"{stems[0]}.weight"].shape[1] == 1:
        state = for_gray(state, {**cfg, "first_conv": stems[0]})
    for stem in (f"{name}.weight" for name in stems):
        if stem in state and state[stem].shape[1] != own[stem].shape[1]:
            state[stem] = timm.models.adapt_input_conv(own[stem].shape[1], state[stem])
    state = resize_attention_biases(state, model)
    try:
        check_keys(state, model)
    except RuntimeError as error:
        raise InputError(f"{origin}: {error}") from None
    model.load_state_dict(state, strict=False)
    if head_keys:
        kept = [name for name, row in zip(label_names(model) or (), rows, strict=True) if row is not None]
        _logger.info("%s: the head keeps %s; other rows start fresh", origin, ", ".join(kept) or "no row")
    return set(state) - set(head_keys)
