"""One checkpoint file that a kill at any moment leaves readable."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from ..utils.errors import InputError
from ..utils.files import atomic_write, whole_or_not_at_all

__all__ = ["load_checkpoint", "save_checkpoint"]

_logger = logging.getLogger(__name__)
NAME, PREVIOUS, BROKEN = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.broken.pt"


def save_checkpoint(state: dict, directory: Path) -> None:
    """Writes ``checkpoint.pt`` and keeps the one before it as ``checkpoint.previous.pt``.

    Raises:
        InputError: it could not be written.
    """
    with whole_or_not_at_all(directory / NAME):
        atomic_write(directory / NAME, lambda temporary: torch.save(state, temporary), directory / PREVIOUS)


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
                    os.replace(directory / NAME, directory / BROKEN)  # so that it never takes a good one's place
                return state
            except Exception as error:  # a truncated file raises one of many classes
                broken.append(f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    if broken:
        raise InputError(f"no checkpoint reads ({'; '.join(broken)}): train again in another --output")
    return None
