"""Measures speed and memory as ratios to peers, in the same run.

Absolute times say more about a machine and its moment than about a model. Every round here times each contender once,
in a shuffled order, so that noise hits all alike. A ratio is the median over rounds of the round's own quotient; its
interquartile range says how far to trust it.
"""

from __future__ import annotations

import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch

from ...utils.errors import InputError
from ...utils.files import write_text

__all__ = ["alternate", "counted", "kilobytes", "peak_bytes", "seconds", "threads", "timed", "write_record"]

_MIN_SECONDS = 0.005  # shorter calls are timed several at once


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Sets the number of CPU threads inside the block; None leaves torch's own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alternate(functions: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Times functions in ``repeats`` rounds, each in another order: for each round, milliseconds per call of each."""
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    for function in functions:  # warm-up
        seconds(function, 2, device)
    calls = [math.ceil(_MIN_SECONDS / seconds(function, 1, device)) for function in functions]
    order = list(range(len(functions)))
    shuffle = random.Random(0).shuffle
    rounds = []
    for _ in range(repeats):
        shuffle(order)
        times = {i: seconds(functions[i], calls[i], device) * 1e3 for i in order}
        rounds.append([times[i] for i in sorted(order)])
    return rounds


def counted(key: str, values: Sequence[float], i: int) -> dict:
    """Returns the value of contender i, and its ratio to that of contender 0."""
    return {key: values[i], f"{key}_ratio": values[i] / values[0]}


def timed(key: str, rounds: Sequence[Sequence[float]], i: int) -> dict:
    """Returns the median of contender i, and the median and quartiles of its ratio to contender 0 in the same round."""
    low, middle, high = np.quantile([times[i] / times[0] for times in rounds], (0.25, 0.5, 0.75)).tolist()
    return {key: median(times[i] for times in rounds), f"{key}_ratio": middle, f"{key}_ratio_iqr": [low, high]}


def write_record(config: Any, rows: list[dict], device: torch.device) -> None:
    """Writes configuration, environment and rows as JSON, if the configuration names a file."""
    if config.output is None:
        return
    environment = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": getattr(config, "threads", None) or torch.get_num_threads(),
    }
    record = {"config": asdict(config), "environment": environment, "rows": rows}
    write_text(Path(config.output), json.dumps(record, indent=2, default=str, allow_nan=False) + "\n")


def kilobytes(path: str, name: str) -> int:
    """Reads one value in kB from a file of Linux's ``/proc``; 0 if there is no such file."""
    with suppress(OSError), open(path) as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))
    return 0


def peak_bytes() -> int:
    """The largest resident memory that this process had, in bytes; 0 where the system does not tell."""
    return kilobytes("/proc/self/status", "VmHWM:") * 1024


def seconds(function: Callable[[], object], calls: int = 1, device: torch.device | None = None) -> float:
    """How long one of several calls takes, with what they leave a CUDA device to do."""
    synchronize = partial(torch.cuda.synchronize, device) if device and device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return (time.perf_counter() - start) / calls
