"""Weights in and out: strict loading, names of the outputs, saving in timm's own format."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from timm.models.efficientvit_msra import checkpoint_filter_fn as timm_filter_fn
from torch import nn

from ..labels import align, label_names
from ..layers.added import recipe_of
from ..utils.files import atomic_write, whole_or_not_at_all
from ..utils.json_files import read_json, to_json

__all__ = [
    "check_filled",
    "check_keys",
    "checkpoint_filter_fn",
    "for_gray",
    "label_names",
    "load_labels",
    "save_pretrained",
    "set_label_names",
    "resize_attention_biases",
]


def set_label_names(model: nn.Module, names: Sequence[str] | None) -> None:
    """Names a model's outputs, for ``label_names``, prediction, evaluation and saving; None makes them unknown.

    Raises:
        ValueError: there are more or fewer names than outputs, or two names mean the same.
    """
    if isinstance(names, str):
        raise ValueError(f"label names must be a sequence of names, got the text {names!r}")
    align(names or (), ())
    if names is not None and len(names) != model.num_classes:
        raise ValueError(f"{len(names)} label names for {model.num_classes} outputs")
    model.label_names = None if names is None else tuple(names)
    cfg = getattr(model, "pretrained_cfg", {})
    cfg.pop("label_names", None)
    if names is not None:
        cfg["label_names"] = model.label_names
    getattr(model, "_model_args", {}).pop("label_names", None)


def load_labels(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Gives a model the outputs ``names``.

    A label that the model has already, in any spelling, keeps its row of the head. Other rows start fresh. The rest of
    the model, the head's norm included, stays as it was.

    Args:
        model: A timm model whose classifier is one layer and whose outputs are named; it is changed in place.
        names: Names of the outputs in their new order.

    Returns:
        The model.

    Raises:
        ValueError: its outputs have no names, there are more or fewer names than rows of the head, or its classifier is
            not one layer.

    >>> import mxa, timm
    >>> model = mxa.load_labels(timm.create_model("efficientvit_ml_m0"), ["Edema", "Effusion", "Scoliosis"])
    >>> mxa.label_names(model)
    ('Edema', 'Effusion', 'Scoliosis')
    """
    if isinstance(names, str):
        raise ValueError(f"label names must be a sequence of names, got the text {names!r}")
    names = tuple(names)
    align(names, ())
    if not names:
        raise ValueError("give at least one name")
    old = label_names(model)
    if old is None:
        raise ValueError("the model's outputs have no names: set them with mxa.set_label_names(model, names)")
    kept = align(old, names)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layer = model.get_classifier()
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"{type(model).__name__} has no classifier of one layer, but {type(layer).__name__}")
    if len(layer.weight) != len(old):
        raise ValueError(f"the model has {len(old)} label names for a head of {len(layer.weight)} rows: set them anew")
    model.reset_classifier(len(names))
    head = model.get_classifier().to(layer.weight.device, layer.weight.dtype)
    own = model.state_dict()
    prefix = next(f"{name}." for name, module in model.named_modules() if module is head)
    rest = {k: v for k, v in before.items() if k in own and own[k].shape == v.shape and not k.startswith(prefix)}
    model.load_state_dict(rest, strict=False)
    with torch.no_grad():
        for row, source in enumerate(kept):
            for mine, theirs in ((head.weight, layer.weight), (head.bias, layer.bias)):
                if source is None or mine is None:
                    continue
                mine[row] = theirs[source]
    set_label_names(model, names)
    return model


def save_pretrained(model: nn.Module, directory: str | Path) -> None:
    """Writes ``model.safetensors`` and ``config.json``, with label names and preprocessing.

    ``timm.create_model("local-dir:DIR", pretrained=True)`` loads them. No tag is written: a tag names weights that are
    published, and these are others.

    Raises:
        InputError: they could not be written, as on a full disk; files that were there before are unchanged.
    """
    names = label_names(model)
    set_label_names(model, names)  # old ones of another head must not be saved
    arguments = getattr(model, "_model_args", {})
    for kind in {"grafted", "finding_head"} & arguments.keys():  # what timm has kept is what it was created with
        arguments[kind] = recipe_of(model, kind)
    tensors = model.state_dict().values()
    if not all(tensor.is_contiguous() for tensor in tensors):  # channels-last, which safetensors refuses
        model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    config = {"pretrained_cfg": {"tag": None}, "problem_type": "multi_label_classification"}
    if names:
        config["label_names"] = list(names)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with whole_or_not_at_all(directory / "model.safetensors"):
        atomic_write(directory / "model.safetensors", lambda path: save_file(model.state_dict(), path))
        atomic_write(directory / "config.json", lambda path: _write_config(model, path, config))


def _write_config(model: nn.Module, path: Path, config: dict[str, Any]) -> None:
    """Writes timm's ``config.json``. ``num_classes`` stands at its root alone: transformers takes no second one."""
    save_config_for_hf(model, path, config)
    content = read_json(path)
    content.get("model_args", {}).pop("num_classes", None)
    path.write_text(to_json(content, 2))


def resize_attention_biases(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Resizes position biases to the model's windows, as timm does; those of another number of heads stay."""
    own = model.state_dict()
    other = {
        k: v
        for k, v in state_dict.items()
        if k.endswith("attention_biases") and k in own and v.shape[0] != own[k].shape[0]
    }
    return {**timm_filter_fn({k: v for k, v in state_dict.items() if k not in other}, model), **other}


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


_ADDED = (".mxa.", ".finding_head.")


def check_keys(state_dict: dict[str, torch.Tensor], model: nn.Module, adapted: Collection[str] = ()) -> None:
    """Checks that a state dict fills a model.

    Args:
        state_dict: What is to be loaded.
        model: The model.
        adapted: Keys that may be missing or of another shape. The keys of MXA, and of a finding head, may be missing
            too, all of them but not some: a model with either can start from a plain backbone.

    Raises:
        RuntimeError: a key is missing, unexpected or of another shape; the message lists the keys.
    """
    own = model.state_dict()
    absent = [part for part in _ADDED if not any(part in f".{k}" for k in state_dict)]
    optional = {k for k in own if k in adapted or any(part in f".{k}" for part in absent)}
    problems = {
        "missing": [k for k in own if k not in state_dict and k not in optional],
        "unexpected": [k for k in state_dict if k not in own],
        "of another shape": [
            k for k, v in state_dict.items() if k in own and v.shape != own[k].shape and k not in optional
        ],
        "of another kind of number": _other_kind(state_dict, own),
    }
    _refuse_any(problems, model)


def check_filled(state_dict: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Checks that a state dict saved with a model's configuration names every tensor of the model.

    timm's own loader leaves some models filled in part. Where the number of outputs differs from the saved one, the
    classifier may be missing.

    Raises:
        RuntimeError: a key is missing, or holds whole numbers where the model has fractions; the message lists the
            keys.
    """
    own, cfg = model.state_dict(), model.pretrained_cfg
    names = cfg.get("classifier") or ()
    fresh = [f"{name}." for name in ((names,) if isinstance(names, str) else names)]
    fresh = tuple(fresh if model.num_classes != cfg.get("num_classes") else ())
    counted = [k for k in own if not k.startswith(fresh) and not k.endswith("num_batches_tracked")]
    missing = [k for k in counted if k not in state_dict]
    _refuse_any({"missing": missing, "of another kind of number": _other_kind(state_dict, own)}, model)


def _other_kind(state_dict: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """Lists tensors of whole numbers where the model has fractions, as quantised weights are, or the reverse."""
    return [k for k, v in state_dict.items() if k in own and v.is_floating_point() != own[k].is_floating_point()]


def _refuse_any(problems: dict[str, list[str]], model: nn.Module) -> None:
    if any(problems.values()):
        found = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys)
        raise RuntimeError(f"these weights are not those of {model.pretrained_cfg.get('architecture')}: {found}")


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Prepares a checkpoint for timm's loader and checks every key, which the loader does not.

    Position biases are resized to the model's windows. Two things may differ: the head is replaced where the number of
    outputs differs, and the stem's first convolution is adapted where the number of channels differs. One channel takes
    the normalisation of each of the three into its weights: a gray image has the same features, but for the border.

    Raises:
        RuntimeError: anything else does not fit (see ``check_keys``).
    """
    state_dict = resize_attention_biases(state_dict, model)
    cfg = model.pretrained_cfg
    own = model.state_dict()
    adapted = set()
    if model.num_classes != cfg["num_classes"]:
        norm = "head.bn.weight"
        kept = norm in own and norm in state_dict and own[norm].shape == state_dict[norm].shape
        replaced = "head.linear." if kept else "head."
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(replaced)}
        adapted |= {k for k in own if k.startswith(replaced)}
    if model.in_chans != cfg["input_size"][0]:
        adapted.add(cfg["first_conv"] + ".weight")
        if model.in_chans == 1:
            state_dict = for_gray(state_dict, cfg)
    check_keys(state_dict, model, adapted)
    fresh = {k: v for k, v in own.items() if ".mxa." in k and k not in state_dict}  # the loader may be strict
    acts = any(v.any() for k, v in fresh.items() if k.endswith("mxa.ls.gamma"))
    if acts and model.num_classes == cfg["num_classes"] and cfg.get("tag") != "r224_in1k":
        raise RuntimeError(
            f"these weights have no MXA, and random MXA would change their outputs: load {cfg['architecture'][:-4]} "
            "instead, or give mxa_init_values=0.0 (it adds nothing until it is trained), or another num_classes"
        )
    return {**state_dict, **fresh}


def for_gray(state_dict: dict[str, torch.Tensor], cfg: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Scales the channels of the first convolution, which timm's loader then sums, and shifts its norm.

    With the means m and deviations s of the channels c, ``sum_c W_c (x - m_c) / s_c`` of a gray x is
    ``sum_c (s / s_c) W_c (x - m) / s`` and a constant, where m and s are timm's for one channel: the averages.
    """
    weight, norm = cfg["first_conv"] + ".weight", cfg["first_conv"].removesuffix(".conv") + ".bn.running_mean"
    if weight not in state_dict or norm not in state_dict or state_dict[weight].shape[1:2] != (len(cfg["mean"]),):
        return state_dict  # check_keys says what is wrong
    mean, std = (torch.tensor(cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    old = state_dict[weight].float()
    constant = (old * (mean.mean() - mean) / std).sum((1, 2, 3))
    return {**state_dict, weight: old * std.mean() / std, norm: state_dict[norm].float() - constant}
