"""One checkpoint file that a kill at any moment leaves readable."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from .errors import InputError

__all__ = ["atomic_write", "load_checkpoint", "save_checkpoint"]

_logger = logging.getLogger(__name__)
NAME, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Calls ``write`` on a temporary file beside ``path``, flushes it to the disk and moves it into place.

    Where that fails (a full disk), what was at ``path`` is still there and the temporary file is not.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_checkpoint(state: dict, directory: Path) -> None:
    """Writes ``checkpoint.pt`` and keeps the one before it as ``checkpoint.previous.pt``."""

    def write(temporary: Path) -> None:
        torch.save(state, temporary)
        if (directory / NAME).exists():
            os.replace(directory / NAME, directory / PREVIOUS)

    atomic_write(directory / NAME, write)


def load_checkpoint(directory: Path) -> dict | None:
    """Reads the newest whole checkpoint of a run folder, on the CPU; None where there is none.

    Raises:
        InputError: there are checkpoints and none of them reads.
    """
    broken = []
    for path in (directory / NAME, directory / PREVIOUS):
        if path.exists():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if broken:
                    _logger.warning("%s: the one before it is used", broken[0])
                return state
            except Exception as error:  # a truncated file raises one of many classes
                broken.append(f"{path}: {error}")
    if broken:
        raise InputError(f"no checkpoint reads ({'; '.join(broken)}): train again in another --output")
    return None
