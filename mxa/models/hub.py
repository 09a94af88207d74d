"""Where weights come from: the manifest, the package, the Hugging Face Hub, a folder or a file.

Only safetensors are read, never a pickle. What the manifest has a hash for must have that hash.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models._pretrained import PretrainedCfg
from torch import nn

from ..labels import canonical
from ..utils.errors import InputError
from ..utils.files import digest

__all__ = [
    "SHIPPED",
    "WEIGHTS_FILE",
    "WeightsError",
    "fetch",
    "load_own_copy",
    "manifest",
    "named",
    "packaged",
    "read_config",
    "read_weights",
    "stored_hash",
    "weights_of",
]

WEIGHTS_FILE = "model.safetensors"
#: Weights that come with the package, for trying things out.
SHIPPED = "efficientvit_ml_m0_mxa.r160_nih8k"

_logger = logging.getLogger(__name__)


class WeightsError(RuntimeError, InputError):
    """Weights that cannot be had, or that nobody vouched for. The message says what, where, and what to do."""


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """What is known of the weights of each ``architecture.tag``.

    An entry has ``repo``, ``revision``, ``file``, ``sha256``, ``size``, ``labels``, ``preprocessing``, ``data``,
    ``terms``, ``recipe``, ``metrics`` and ``license``; one without ``sha256`` is not published, and one without
    ``repo`` that has one comes with the package.
    """
    return json.loads(Path(__file__).with_name("weights.json").read_text())


def _organisation() -> tuple[str, str | None] | None:
    """The organisation of ``MXA_HUB_ORG``, ``name`` or ``name@revision``, whose own copies are loaded."""
    value = os.environ.get("MXA_HUB_ORG", "").strip()
    name, _, revision = value.partition("@")
    return (name, revision or None) if name else None


def weights_of(variant: str, cfg: PretrainedCfg, cache_dir: str | None = None) -> dict[str, torch.Tensor]:
    """Reads the weights that a configuration names.

    Args:
        variant: Name of the architecture.
        cfg: A configuration of the registry, of a folder (``local-dir:``) or of the Hub (``hf-hub:``).
        cache_dir: The Hub's cache; ``HF_HOME`` says where by default.

    Raises:
        WeightsError: there are none, they cannot be had, are damaged, or are no safetensors.
    """
    if cfg.state_dict:
        return cfg.state_dict
    name = f"{variant}.{cfg.tag or 'chexpert'}"
    if cfg.file:
        path, entry = Path(cfg.file), manifest().get(name, {})
        if cfg.source == "local-dir":
            path = path / WEIGHTS_FILE
            return read_weights(path, stored_hash(path))
        return read_weights(path, entry["sha256"] if path == packaged(entry) else stored_hash(path))
    if cfg.hf_hub_id:
        repo, _, revision = cfg.hf_hub_id.partition("@")
        path = fetch(repo, cfg.hf_hub_filename or WEIGHTS_FILE, revision or None, cache_dir)
        known = [e["sha256"] for e in manifest().values() if (e["repo"], e["revision"]) == (repo, revision)]
        return read_weights(path, known[0] if known else stored_hash(path))
    if cfg.url:
        raise WeightsError(f"{name}: weights are not loaded from a URL: download {cfg.url} and give file=PATH")
    raise WeightsError(_unpublished(name, variant))


def stored_hash(weights: Path) -> str | None:
    """The hash that ``mxa publish`` wrote into the configuration beside the weights."""
    config = weights.with_name("config.json")
    return read_config(config).get("sha256") if config.is_file() and weights.name == WEIGHTS_FILE else None


def load_own_copy(
    variant: str, cfg: PretrainedCfg, overlay: dict[str, Any] | None = None, **kwargs: Any
) -> nn.Module | None:
    """A model with the weights that the organisation of ``MXA_HUB_ORG`` keeps under this name.

    None where it is unset, and where the configuration or its overlay name another source.

    The copy's ``config.json`` must be of this architecture and these labels; its preprocessing is taken.

    Raises:
        WeightsError: the copy cannot be had, is another model's, or has another hash than the manifest's.
    """
    name = f"{variant}.{cfg.tag}"
    entry, own = manifest().get(name), _organisation()
    elsewhere = cfg.source or cfg.file or cfg.state_dict or any((overlay or {}).get(k) for k in ("hf_hub_id", "url"))
    if entry is None or packaged(entry) or elsewhere or own is None:
        return None
    owner, revision = own
    repo, cache_dir = f"{owner}/{name}", kwargs.get("cache_dir")
    config = fetch(repo, "config.json", revision, cache_dir)
    path = fetch(repo, WEIGHTS_FILE, config.parent.name, cache_dir)
    content = read_config(config)
    theirs = (content.get("architecture"), tuple(content.get("label_names") or ()))
    if theirs[0] != variant or list(map(canonical, theirs[1])) != list(map(canonical, cfg.label_names)):
        raise WeightsError(
            f"{repo} holds {theirs[0]} for {', '.join(theirs[1]) or 'outputs without names'}, not {variant} for "
            f"{', '.join(cfg.label_names)}: load it by its own name, hf-hub:{repo}"
        )
    found = digest(path)
    if entry["sha256"] not in (None, found):
        raise WeightsError(_other_hash(path, found, entry["sha256"]))
    _logger.info("%s: SHA-256 %s", name, found)
    kwargs.pop("mxa", None)  # of the architecture, which the folder names
    if overlay:
        kwargs["pretrained_cfg_overlay"] = overlay
    try:
        model = timm.create_model(f"local-dir:{config.parent}", pretrained=True, **kwargs)
    except TypeError as error:
        raise WeightsError(f"{repo}: its config.json asks for what {variant} has not ({error})") from error
    for key in ("file", "source"):
        model.pretrained_cfg.pop(key)
    model.pretrained_cfg.update(hf_hub_id=f"{repo}@{config.parent.name}", tag=cfg.tag)
    return model


def read_config(path: Path) -> dict[str, Any]:
    """Reads a ``config.json``.

    Raises:
        WeightsError: it does not read.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} does not read ({error}): delete {path.resolve()}, and get it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no model's configuration")
    return content


def packaged(entry: dict[str, Any]) -> Path | None:
    """The file of an entry that comes with the package."""
    return Path(__file__).with_name(entry["file"]) if entry.get("sha256") and not entry.get("repo") else None


def named(
    cfg: PretrainedCfg,
    overlay: dict[str, Any],
    state: dict[str, torch.Tensor],
    label_names: Sequence[str] | None,
    num_classes: int | None,
) -> PretrainedCfg:
    """A configuration with as many outputs as its weights have, and their names where something says them.

    Those of an overlaid file are in the ``config.json`` beside it; of one without, and of overlaid tensors, in the
    overlay; of any others in the configuration.

    Args:
        cfg: The configuration, without the overlay's ``label_names``.
        overlay: What was laid over it.
        state: The weights.
        label_names: Names that are asked for.
        num_classes: Outputs that are asked for.

    Raises:
        WeightsError: other names are given for outputs that are trained.
    """
    head = state.get(f"{cfg.classifier}.weight")
    given, config = overlay.get("label_names"), None
    if overlay.get("file"):
        config = Path(cfg.file).with_name("config.json")
        config = config if config.is_file() else None
    stored, outputs = cfg.label_names, cfg.num_classes
    if config is not None:
        stored = read_config(config).get("label_names")
    elif given and (overlay.get("file") or overlay.get("state_dict")):
        stored = given
    if overlay.get("file") and head is not None and (config is not None or num_classes == len(head)):
        outputs = len(head)
    stored = tuple(stored) if stored and (head is None or len(head) == len(stored)) else None
    if stored and num_classes in (None, outputs):
        for names in filter(None, (given, label_names)):
            if list(map(canonical, names)) != list(map(canonical, stored)):
                raise WeightsError(
                    f"these weights are for {', '.join(stored)}: other names for the same outputs would be wrong; load "
                    "them, then mxa.load_labels(model, names)"
                )
    return dataclasses.replace(cfg, num_classes=outputs, label_names=stored)


def _unpublished(name: str, variant: str) -> str:
    recipe = "paper_mxa_kd" if variant.endswith("_mxa") else "paper_baseline"
    return (
        f"no weights are published for {name} yet. (1) Train them: mxa train --recipe {recipe} --model {variant} "
        f"--data chexpert --root ROOT --output RUN. (2) Load your own: "
        f'timm.create_model("local-dir:RUN", pretrained=True), or '
        f"pretrained_cfg_overlay=dict(file='model.safetensors', num_classes=..., label_names=...). (3) Load an "
        f"organisation's copy from the Hub: MXA_HUB_ORG=name reads name/{name}. ImageNet weights to start from: "
        f"{variant}.r224_in1k with num_classes=...; random weights: pretrained=False."
    )


def fetch(repo: str, file: str, revision: str | None = None, cache_dir: str | None = None) -> Path:
    """Downloads a file from the Hub, or finds it in the cache, by huggingface_hub and its environment variables.

    Raises:
        WeightsError: it cannot be had; the message says whether a name, a right or the network is missing.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    where = f"{repo}{f'@{revision}' if revision else ''} on {constants.ENDPOINT}"
    token = "set HF_TOKEN (or run: hf auth login) to a token that may read it"
    try:
        path = Path(hf_hub_download(repo, file, revision=revision, cache_dir=cache_dir))
    except errors.GatedRepoError as error:
        raise WeightsError(f"{where} is gated: ask for access on its page, and {token}") from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{where}: no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(f"{where}: no such repository, or a private one: check the name, and {token}") from error
    except errors.LocalEntryNotFoundError as error:
        kept = cache_dir or constants.HF_HUB_CACHE
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise WeightsError(f"{where}: {_status(error.__cause__, token)}") from error
        if constants.is_offline_mode():
            raise WeightsError(
                f"{file} of {where} is not in the cache {kept} and HF_HUB_OFFLINE is set: unset it once, or give a "
                "folder (local-dir:)"
            ) from error
        raise WeightsError(
            f"{where} cannot be reached and {file} is not in the cache {kept}: check the network, set HF_ENDPOINT to a "
            "mirror, or give a folder (local-dir:)"
        ) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(
            f"{where} has no {file}; weights are read as safetensors alone, never as a pickle"
        ) from error
    except errors.HFValidationError as error:
        raise WeightsError(f"{repo!r} is no name of a repository (organisation/name): {error}") from error
    except errors.HfHubHTTPError as error:
        raise WeightsError(f"{where}: {_status(error, token)}") from error
    except (OSError, errors.HTTPError) as error:
        raise WeightsError(f"{where}: {file} was not downloaded ({error}): load again") from error
    _logger.info("%s of %s, revision %s", file, where, path.parent.name)
    return path


def _status(error: Any, token: str) -> str:
    status = error.response.status_code
    return f"no access: {token}" if status in (401, 403) else f"the server answered {status}: try again later"


def read_weights(path: Path, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Reads a safetensors file; of fp16 and bf16 tensors float32 ones are made.

    Args:
        path: The file.
        sha256: The hash it must have. A file that had it is not hashed again until its size or time changes.

    Raises:
        WeightsError: there is no such file, it has another hash, or is no safetensors file.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is no .safetensors file: pickles are not loaded; mxa convert {path} makes a safe one"
        )
    if not path.is_file():
        raise WeightsError(f"there is no {path}: a model's folder holds {WEIGHTS_FILE} and config.json")
    if sha256 is not None:
        _verify(path, sha256)
    try:
        state = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        looks = "a pickle by another name: it is not opened" if start in (b"PK", b"\x80\x02", b"\x80\x04") else error
        raise WeightsError(f"{path} is no whole safetensors file ({looks}): {_again(path)}") from error
    if not state:
        raise WeightsError(f"{path} holds no weights: {_again(path)}")
    half = (torch.float16, torch.bfloat16)
    return {key: value.float() if value.dtype in half else value for key, value in state.items()}


def _again(path: Path) -> str:
    if path.parent == Path(__file__).parent:
        return "install mxa again"
    return f"delete {path.resolve()}, and load or make it again"


def _other_hash(path: Path, found: str, wanted: str) -> str:
    return (
        f"{path} is damaged or was replaced: its SHA-256 is {found}, that of these weights is {wanted}; {_again(path)}"
    )


def _verify(path: Path, sha256: str) -> None:
    from huggingface_hub import constants

    status = path.stat()
    seen = {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = Path(constants.HF_HOME) / "mxa" / f"{sha256}.json"
    try:
        if json.loads(note.read_text()) == seen:
            return
    except (OSError, ValueError):
        pass
    found = digest(path)
    if found != sha256:
        raise WeightsError(_other_hash(path, found, sha256))
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(seen))
    except OSError:  # a home that cannot be written to: it is hashed again next time
        pass
