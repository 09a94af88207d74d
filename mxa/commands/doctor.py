"""What this machine lacks for mxa, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from .. import __version__
from ..utils import processor

__all__ = ["Check", "DoctorConfig", "doctor", "version_line"]

State = Literal["ok", "note", "fault"]
_HUB_SECONDS = 5.0
_DRIVER = Path("/proc/driver/nvidia/version")
_NOT_FOR_USERS = ("dev", "clients", "all")  # extras


@dataclass
class DoctorConfig:
    """What is looked at."""

    offline: bool = False
    """Do not ask the Hugging Face Hub."""


class Check(NamedTuple):
    """What was found of one thing: ok, a note (something that you may not need), or a fault."""

    state: State
    what: str
    found: str
    remedy: str = ""


def doctor(config: DoctorConfig) -> list[Check]:
    """Looks at packages, weights, device, processor, folders, the teacher's weights and the Hub, in this order.

    Returns:
        A check for each thing. Every note and every fault has its remedy.
    """
    checks: list[Check] = []
    for part in (_pytorch, _packages, _weights, _device, _allocator, _folders, _teacher, partial(_hub, config.offline)):
        try:
            checks.extend(part())
        except Exception as error:  # such as torch that does not import: what is left can still be looked at
            what = getattr(part, "func", part).__name__.strip("_")
            checks.append(Check("fault", what, f"not looked at: {_line(error)}", "mend the other faults first"))
    return checks


def version_line() -> str:
    """Versions of mxa, Python, torch and timm, and the device; nothing of them is imported."""
    named = ", ".join(f"{name} {_version(name) or 'is missing'}" for name in ("torch", "timm"))
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    device = "NVIDIA driver" if _DRIVER.exists() else "Apple GPU" if apple else "CPU"
    return f"mxa {__version__} (Python {platform.python_version()}, {named}, {device})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pytorch() -> Iterator[Check]:
    yield Check("ok", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        found = f"torch {torch.__version__}, torchvision {_version('torchvision')}: they match"
        yield Check("ok", "PyTorch", found)
    except Exception as error:  # an import of another build raises one of many classes
        remedy = "install both from one place: pip install --force-reinstall torch torchvision"
        yield Check("fault", "PyTorch", f"torch and torchvision do not match: {_line(error)}", remedy)


def _packages() -> Iterator[Check]:
    """What mxa needs, and each of its extras, beside what is installed."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires("mxa") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("note", "extras", "unknown: mxa runs from a folder and is not installed", "pip install -e FOLDER")
        return
    lacking: dict[str, list[str]] = {"": []}
    for requirement in map(Requirement, texts):
        found = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        extra = found[1] if found else ""
        if extra in _NOT_FOR_USERS or requirement.name == "mxa":
            continue
        version = _version(requirement.name)
        if version is None:
            lacking.setdefault(extra, []).append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            lacking.setdefault(extra, []).append(f"{requirement.name}{requirement.specifier} (it has {version})")
        else:
            lacking.setdefault(extra, [])
    missing = lacking.pop("")
    versions = ", ".join(f"{name} {_version(name)}" for name in ("timm", "torchxrayvision", "huggingface-hub"))
    if missing:
        yield Check("fault", "packages", _lacks(missing), "pip install mxa")
    else:
        yield Check("ok", "packages", versions)
    yield Check("ok", "extras", ", ".join(extra for extra, names in lacking.items() if not names) or "none")
    for extra, names in lacking.items():
        if names:
            yield Check("note", f"extra {extra}", _lacks(names), f'pip install "mxa[{extra}]"')


def _lacks(names: list[str]) -> str:
    return f"lacks {', '.join(names)}"


def _weights() -> Iterator[Check]:
    """The weights that come with mxa, against their hash."""
    from ..models.hub import SHIPPED, manifest, packaged
    from ..utils.files import digest

    entry = manifest()[SHIPPED]
    path = packaged(entry)
    if path and path.is_file() and digest(path) == entry["sha256"]:
        yield Check("ok", "weights", f"{SHIPPED} is as released")
    else:
        remedy = "pip install --force-reinstall --no-deps mxa"
        yield Check("fault", "weights", f"{SHIPPED} is missing, or not as released", remedy)


def _device() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        yield Check("ok", "device", f"{torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} in all")
    elif _DRIVER.exists():
        found = f"an NVIDIA driver, but torch {torch.__version__} sees no GPU"
        yield Check("fault", "device", found, "install the CUDA build of torch that goes with the driver")
    else:
        yield Check("ok", "device", "no GPU: the CPU")
    known = processor.flags()
    has = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in known]
    found = f"{processor.core_count()} cores, {torch.get_num_threads()} threads; {', '.join(has) or 'unknown'}"
    yield Check("ok", "processor", found)
    if not processor.has_vnni():
        yield Check("note", "8 bits", "no VNNI: --precision int8 is slow here", "export in fp32")
    if known and not {"avx512_bf16", "amx_bf16"} & known:
        yield Check("note", "bf16", "no AVX512-BF16 or AMX: --precision bf16 is refused here", "export in fp32")


def _allocator() -> Iterator[Check]:
    from ..utils.allocator import keep_memory

    if keep_memory():
        yield Check("ok", "allocator", "glibc keeps the memory of freed tensors in every command")
        return
    set_by_hand = [name for name in os.environ if name.startswith("MALLOC_")]
    found = f"{', '.join(set_by_hand)} of the environment has the last word" if set_by_hand else "not glibc"
    remedy = "leave it out, unless it is wanted" if set_by_hand else "training may be slower (docs/training.md)"
    yield Check("note", "allocator", found, remedy)


def _folders() -> Iterator[Check]:
    from huggingface_hub import constants

    folders = (
        ("this folder", Path.cwd(), "work in another, or give --output"),
        ("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder of yours"),
        ("the Hub's cache", Path(constants.HF_HUB_CACHE), "set HF_HOME to a folder of yours"),
    )
    for what, folder, remedy in folders:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
            yield Check("ok", what, f"{folder} can be written")
        except OSError as error:
            yield Check("fault", what, f"{folder} cannot be written: {error.strerror}", remedy)


def _teacher() -> Iterator[Check]:
    from ..task.teacher import XRV_CACHE

    folder = Path(XRV_CACHE).expanduser()
    held = sorted(path.name for path in folder.glob("*.pt")) if folder.is_dir() else []
    if held:
        yield Check("ok", "teacher", f"{folder} holds {', '.join(held)}")
    else:
        remedy = "--teacher xrv:NAME names the file to download and where it goes; needed only to distil from it"
        yield Check("note", "teacher", f"no weights of TorchXRayVision in {folder}", remedy)


def _hub(offline: bool) -> Iterator[Check]:
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        yield Check("note", "Hub", f"not asked: {why}", "leave it out to download weights")
        return
    started = time.monotonic()
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=_HUB_SECONDS):
            yield Check("ok", "Hub", f"{constants.ENDPOINT} answers in {time.monotonic() - started:.1f} s")
    except (OSError, ValueError) as error:
        remedy = "set HF_ENDPOINT to a mirror, HTTPS_PROXY to a proxy, or copy files by hand (docs/weights.md)"
        yield Check("note", "Hub", f"{constants.ENDPOINT} cannot be reached: {_line(error)}", remedy)


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
