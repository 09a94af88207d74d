"""One checkpoint file that a kill at any moment leaves readable."""

from __future__ import annotations

import logging
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import InputError
from ..utils.files import atomic_write, whole_or_not_at_all

__all__ = ["check_state", "load_checkpoint", "save_checkpoint"]

_logger = logging.getLogger(__name__)
_KINDS = {"epoch": int, "step": int, "losses": list, "best": dict, "seconds": (int, float), "labels": (tuple, list)}
_KINDS |= {"config": dict, "same": dict, "bad": list, "model": dict, "optimizer": dict}
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
                _check_archive(path)
                state = torch.load(path, map_location="cpu", weights_only=True)
                if broken:
                    _logger.warning("%s: the one before it is used", broken[0])
                    os.replace(directory / NAME, directory / BROKEN)  # so that it never takes a good one's place
                return state
            except Exception as error:  # a truncated file raises one of many classes
                broken.append(f"{path}: {_reason(error)}")
    if broken:
        raise InputError(f"no checkpoint reads ({'; '.join(broken)}): train again in another --output")
    return None


def _check_archive(path: Path) -> None:
    """Compares every part of the file with its checksum, as ``torch.load`` does not."""
    with zipfile.ZipFile(path) as archive:
        if (part := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{part} is damaged")


def _reason(error: Exception) -> str:
    """Says why a file does not read; what torch advises then, to open it as code, is not passed on."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors and plain values, and is not opened"
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"it is damaged ({first})"


def check_state(state: Any, directory: Path, images: int) -> None:
    """Refuses a checkpoint that lacks what a run needs to go on.

    Args:
        state: From ``load_checkpoint``.
        directory: The run folder, for the error.
        images: Of the training set.

    Raises:
        InputError: a part is missing or of another kind; the message names it.
    """
    parts = state if isinstance(state, dict) else {}
    wrong = [k for k, kind in _KINDS.items() if not isinstance(parts.get(k), kind) or isinstance(parts.get(k), bool)]
    if not wrong:
        best, numbers = parts["best"], [parts["epoch"], parts["step"], parts["seconds"], *parts["losses"]]
        wrong += ["best"] * (type(best.get("epoch")) is not int or not isinstance(best.get("macro_auc"), float))
        wrong += ["losses"] * (
            not all(isinstance(number, int | float) and abs(number) < math.inf for number in numbers)
        )
        wrong += ["bad"] * (not all(type(row) is int and 0 <= row < images for row in parts["bad"]))
        wrong += ["epoch"] * (parts["epoch"] < 0 or parts["step"] != len(parts["losses"]))
        wrong += ["best"] * (type(best.get("epoch")) is int and not -1 <= best["epoch"] <= parts["epoch"])
        wrong += ["labels"] * (list(parts["labels"]) != parts["same"].get("label names"))
        wrong += ["optimizer"] * (not {"state", "param_groups"} <= parts["optimizer"].keys())
    if wrong:
        raise InputError(
            f"{directory / NAME} is no checkpoint of a run ({', '.join(wrong)} missing or of another kind): train "
            "again in another --output"
        )
