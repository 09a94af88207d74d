"""Where weights come from: the package, the Hugging Face Hub, a folder or a file.

Weights are read from safetensors alone, never from a pickle. A file whose hash is known must have that hash.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub import constants, errors, hf_hub_download
from safetensors import SafetensorError
from timm.models._pretrained import PretrainedCfg
from torch import nn

from ..labels import canonical
from ..utils.errors import InputError
from ..utils.files import digest
from ..utils.json_files import read_json
from ..utils.text import printable
from .config_file import check_config

__all__ = [
    "SHIPPED",
    "WEIGHTS_FILE",
    "WeightsError",
    "checked_tensors",
    "config_of",
    "fetch",
    "hub_errors",
    "load_own_copy",
    "manifest",
    "named",
    "packaged",
    "read_config",
    "read_weights",
    "same_labels",
    "weights_of",
]

WEIGHTS_FILE = "model.safetensors"
#: Weights that come with the package, for trying things out.
SHIPPED = "efficientvit_ml_m0_mxa.r160_nih8k"
PATIENCE = 5.0  # seconds after which it is said what is waited for
_logger = logging.getLogger(__name__)


class WeightsError(RuntimeError, InputError):
    """Weights that cannot be loaded, or that are not what they should be."""


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """Reads ``weights.json``: what is known of the weights of each ``architecture.tag``.

    An entry has ``repo``, ``revision``, ``file``, ``sha256``, ``size``, ``labels``, ``preprocessing``, ``data``,
    ``terms``, ``recipe``, ``metrics`` and ``license``. Without ``sha256`` the weights are not published. With
    ``sha256`` and without ``repo`` they come with the package, perhaps with a ``finding_head``.
    """
    return json.loads(Path(__file__).with_name("weights.json").read_text())


def packaged(entry: dict[str, Any]) -> Path | None:
    """Returns the file of an entry of the manifest that comes with the package, else None."""
    return Path(__file__).with_name(entry["file"]) if entry["sha256"] and not entry["repo"] else None


def weights_of(variant: str, cfg: PretrainedCfg, cache_dir: str | None = None) -> dict[str, torch.Tensor]:
    """Reads the weights that a configuration names.

    Args:
        variant: Name of the architecture.
        cfg: A configuration of the registry, of a folder (``local-dir:``) or of the Hub (``hf-hub:``).
        cache_dir: Folder of the Hub's cache; huggingface_hub's own by default.

    Raises:
        WeightsError: the configuration names none, or they cannot be loaded.
    """
    if cfg.state_dict:
        return cfg.state_dict
    config = config_of(cfg, cache_dir)
    if cfg.file:
        path = config.with_name(WEIGHTS_FILE) if config else Path(cfg.file)
        known = [entry["sha256"] for entry in manifest().values() if packaged(entry) == path]
    elif cfg.hf_hub_id:
        repo, _, revision = cfg.hf_hub_id.partition("@")
        commit = config.parent.name if config else revision or None  # what the configuration was read of
        path = fetch(repo, cfg.hf_hub_filename or WEIGHTS_FILE, commit, cache_dir)
        known = [e["sha256"] for e in manifest().values() if (e["repo"], e["revision"]) == (repo, revision)]
    else:
        raise WeightsError(_unpublished(variant, cfg))
    return read_weights(path, *known)


def config_of(cfg: PretrainedCfg, cache_dir: str | None = None) -> Path | None:
    """Finds and checks the ``config.json`` that a configuration was read from.

    Args:
        cfg: The configuration.
        cache_dir: Folder of the Hub's cache; huggingface_hub's own by default.

    Returns:
        The file; None where the configuration is of the registry.

    Raises:
        WeightsError: it cannot be had, or may not be used (see ``read_config``).
    """
    if cfg.source == "local-dir":
        path = Path(cfg.file, "config.json")
    elif cfg.source == "hf-hub":
        repo, _, revision = cfg.hf_hub_id.partition("@")
        path = fetch(repo, "config.json", revision or None, cache_dir)
    else:
        return None
    read_config(path)
    return path


def _unpublished(variant: str, cfg: PretrainedCfg) -> str:
    name = f"{variant}.{cfg.tag or 'chexpert'}"
    recipe = "paper_mxa_kd" if variant.endswith("_mxa") else "paper_baseline"
    problem = f"weights are not loaded from a URL, {cfg.url}" if cfg.url else f"no weights are published for {name} yet"
    size = variant.removesuffix("_mxa")
    packed = [
        known for known, entry in manifest().items() if known.startswith((f"{size}.", f"{size}_")) and packaged(entry)
    ]
    small = f"For trying things out there is {' and '.join(packed)}, without a download. " if packed else ""
    return (
        f"{problem}. {small}(1) Train them: mxa train --recipe {recipe} --model {variant} --data chexpert --root ROOT "
        '--output RUN. (2) Load your own: timm.create_model("local-dir:RUN", pretrained=True), or '
        "pretrained_cfg_overlay=dict(file='model.safetensors', num_classes=..., label_names=...). (3) Load an "
        f"organisation's copy from the Hub: MXA_HUB_ORG=name reads name/{name}. ImageNet weights to start from: "
        f"{variant}.r224_in1k with num_classes=...; random weights: pretrained=False."
    )


def load_own_copy(
    variant: str, cfg: PretrainedCfg, overlay: dict[str, Any] | None = None, **kwargs: Any
) -> nn.Module | None:
    """Loads a model of the manifest from the repository that the organisation ``MXA_HUB_ORG`` has under its name.

    ``MXA_HUB_ORG`` is ``organisation`` or ``organisation@revision``. Preprocessing is that of the repository's
    ``config.json``.

    Args:
        variant: Name of the architecture.
        cfg: Its configuration, ``overlay`` included.
        overlay: As ``pretrained_cfg_overlay`` of ``timm.create_model``.
        **kwargs: For ``timm.create_model``.

    Returns:
        The model; None where ``MXA_HUB_ORG`` is not set, and where the configuration names another source.

    Raises:
        WeightsError: the copy cannot be loaded, is of another architecture, has other labels, or has another hash than
            the manifest's.
    """
    name = f"{variant}.{cfg.tag}"
    entry = manifest().get(name)
    organisation, _, revision = os.environ.get("MXA_HUB_ORG", "").strip().partition("@")
    elsewhere = cfg.source or cfg.file or cfg.state_dict or any((overlay or {}).get(k) for k in ("hf_hub_id", "url"))
    if not organisation or elsewhere or entry is None or packaged(entry):
        return None
    repo, cache_dir = f"{organisation}/{name}", kwargs.get("cache_dir")
    config = fetch(repo, "config.json", revision or None, cache_dir)
    commit = config.parent.name
    path = fetch(repo, WEIGHTS_FILE, commit, cache_dir)
    metadata = read_config(config)
    architecture, names = metadata.get("architecture"), metadata.get("label_names") or ()
    if architecture != variant or not same_labels(names, cfg.label_names):
        raise WeightsError(
            f"{repo} holds {architecture} for {', '.join(names) or 'outputs without names'}, not {variant} for "
            f"{', '.join(cfg.label_names)}: load it by its own name, hf-hub:{repo}"
        )
    _logger.info("%s: SHA-256 %s", name, _check_hash(path, entry["sha256"]))
    kwargs.pop("mxa", None)  # the entrypoint of the architecture gives it again
    name = f"hf-hub:{repo}@{commit}"
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def named(
    cfg: PretrainedCfg,
    overlay: dict[str, Any],
    state: dict[str, torch.Tensor],
    label_names: Sequence[str] | None,
    num_classes: int | None,
) -> PretrainedCfg:
    """Returns a configuration whose ``num_classes`` and ``label_names`` are those of the weights.

    Names of an overlaid file come from the ``config.json`` beside it. Without one they come from the overlay, as those
    of overlaid tensors do. Otherwise they are the configuration's own.

    Args:
        cfg: The configuration, with the overlay but for its ``label_names``.
        overlay: The ``pretrained_cfg_overlay``.
        state: The weights.
        label_names: Names that are asked for.
        num_classes: Number of outputs that is asked for.

    Raises:
        WeightsError: trained outputs would get other names.
    """
    head, file, given = state.get(f"{cfg.classifier}.weight"), overlay.get("file"), overlay.get("label_names")
    stored, outputs = cfg.label_names, cfg.num_classes
    config = Path(file).with_name("config.json") if file else None
    beside = config is not None and config.is_file()
    if beside:
        stored = read_config(config).get("label_names")
        if stored and head is not None and len(stored) != len(head):
            raise WeightsError(f"{file} has {len(head)} outputs, and {config} names {len(stored)}: make it again")
    elif file or overlay.get("state_dict"):
        stored = given or stored
    if file and head is not None and (beside or num_classes == len(head)):
        outputs = len(head)
    stored = tuple(stored) if stored and (head is None or len(head) == len(stored)) else None
    for names in filter(None, (given, label_names)):
        if stored and num_classes in (None, outputs) and not same_labels(names, stored):
            raise WeightsError(
                f"these weights are for {', '.join(stored)}: other names for the same outputs would be wrong; load "
                "them, then mxa.load_labels(model, names)"
            )
    return dataclasses.replace(cfg, num_classes=outputs, label_names=stored)


def same_labels(names: Sequence[str], others: Sequence[str]) -> bool:
    """Tells whether two lists name the same findings in the same order, in any spelling."""
    return list(map(canonical, names)) == list(map(canonical, others))


def fetch(repo: str, file: str, revision: str | None = None, cache_dir: str | None = None) -> Path:
    """Downloads a file from the Hub, or finds it in the cache, as huggingface_hub and its environment variables say.

    Raises:
        WeightsError: the file cannot be had.
    """
    with hub_errors(f"{file} of {repo} was not loaded"), _say_if_slow(f"{file} of {repo}"):
        path = Path(hf_hub_download(repo, file, revision=revision, cache_dir=cache_dir))
    _logger.info("%s of %s on %s, revision %s", file, repo, constants.ENDPOINT, path.parent.name)
    return path


@contextmanager
def _say_if_slow(what: str) -> Iterator[None]:
    """Logs once what is waited for, if the block takes longer than ``PATIENCE``."""
    said = f"waiting for {what} from {constants.ENDPOINT}, {PATIENCE:g} s so far"
    timer = threading.Timer(PATIENCE, _logger.warning, (said,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns an error of huggingface_hub into a ``WeightsError``.

    Its message says what failed, what the client says, how long it was waited for, and what to check.
    """
    started = time.monotonic()
    try:
        yield
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:
        # a file that is neither on the server nor in the cache: the cause says why the server did not give it
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        waited = time.monotonic() - started
        raise WeightsError(
            f"{what}: {' '.join(str(cause).split()) or type(cause).__name__} (after {waited:.0f} s; check the "
            f"name, the network, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT, which is {constants.ENDPOINT})"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Reads a ``config.json``, and checks it as ``mxa.models.config_file.check_config`` does.

    Raises:
        WeightsError: it is missing, damaged, or may not be used.
    """
    try:
        config = read_json(path)
        check_config(config, path)
    except InputError as error:
        raise WeightsError(str(error)) from None
    return config


def read_weights(path: Path, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Reads a safetensors file, fp16 and bf16 tensors as float32.

    Args:
        path: The file.
        sha256: The hash that it must have; by default that of the ``config.json`` beside a ``model.safetensors``.

    Raises:
        WeightsError: the file is missing, has another hash, is not a safetensors file with tensors, or holds a value
            that is not finite.
    """
    if any("\ud800" <= c <= "\udfff" for c in str(path)):
        raise WeightsError(f"{printable(path)} has a name that is not UTF-8, which safetensors does not open")
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is not a .safetensors file, and pickles are not loaded: mxa convert {path} makes a safe one"
        )
    if not path.is_file():
        pickles = sorted(p for end in (".bin", ".pth", ".pt") for p in path.parent.glob(f"*{end}"))
        remedy = f"; pickles are not loaded: mxa convert {pickles[0]} makes a safe one" if pickles else ""
        raise WeightsError(f"there is no {path}: a model's folder holds {WEIGHTS_FILE} and config.json{remedy}")
    config = path.with_name("config.json")
    if sha256 is None and path.name == WEIGHTS_FILE and config.is_file():
        sha256 = read_config(config).get("sha256")
    if sha256:
        _check_hash(path, sha256)
    try:
        state = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, f"is not a whole safetensors file ({error})") from error
    if not state:
        raise _damaged(path, "holds no weights")
    return checked_tensors(state, path)


def checked_tensors(state: Mapping[str, Any], origin: str | Path) -> dict[str, torch.Tensor]:
    """Checks what is taken for a state dict; returns its tensors, those of fewer than 32 bits as float32.

    Args:
        state: Tensors by name.
        origin: What holds them, for the error.

    Raises:
        WeightsError: a name is not text, or a value is not a plain tensor of finite numbers.
    """
    found = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{origin} holds something else than tensors with names")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise WeightsError(
                f"{origin}: {key} is not a plain tensor, but sparse, quantized, complex or without values"
            )
        try:
            value = value.detach()
            if value.is_floating_point():
                value = value.float() if value.dtype.itemsize < 4 else value
                finite = bool(value.isfinite().all())
        except (RuntimeError, NotImplementedError):  # a type that torch stores, and does not compute with
            raise WeightsError(f"{origin}: {key} is of the type {value.dtype}: save it as float32") from None
        if value.is_floating_point() and not finite:
            raise WeightsError(f"{origin}: {key} holds a value that is not finite: the weights are damaged")
        found[key] = value
    return found


def _check_hash(path: Path, wanted: str | None) -> str:
    """Returns a file's SHA-256, which must be ``wanted`` where that is known."""
    found = digest(path)
    if wanted is not None and wanted.lower() != found:
        raise _damaged(path, f"is damaged or was replaced: its SHA-256 is {found}, that of these weights is {wanted}")
    return found


def _damaged(path: Path, problem: str) -> WeightsError:
    shipped = path.parent == Path(__file__).parent
    remedy = "install mxa again" if shipped else f"delete {path.resolve()}, and load or make it again"
    return WeightsError(f"{path} {problem}; {remedy}")
