"""Measures how the time and the memory of inference grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ...models.load import create
from ...utils.allocator import given_back
from ...utils.errors import InputError, require
from .config import BenchGrowthConfig
from .timing import peak_bytes, seconds, threads, write_record

__all__ = ["bench_growth"]

_BATCH, _SIDE = 8, 224  # of the other series


def bench_growth(config: BenchGrowthConfig) -> list[dict[str, Any]]:
    """Measures a forward pass of every model at every batch and image size, with every number of threads.

    An exponent is the slope of a straight line through the logarithms: time grows as ``batch ** exponent``, or as
    ``side ** exponent``. Memory is the growth of the process's peak during a pass, on Linux. 1 MB is 10^6 bytes.

    Returns:
        A row for each pass: ``model``, ``threads``, ``batch``, ``px`` (side), ``ms`` (median), ``images_per_s`` and
        ``memory_mb``. The last of a series has ``time_exponent`` and ``memory_exponent``; the others have ``"-"``.

    Raises:
        InputError: a model is unknown, a number is below 1, or Matplotlib is not installed and a folder is given.
    """
    if min((config.repeats, *config.batch_sizes, *config.img_sizes, *config.threads), default=0) < 1:
        raise InputError("batches, sides, threads and repeats must be at least 1")
    if config.output is not None:
        require("matplotlib", "train")
    rows: list[dict[str, Any]] = []
    for name in config.models:
        for count in config.threads:
            with threads(count):
                for batches, sides in ((config.batch_sizes, (_SIDE,)), ((_BATCH,), config.img_sizes)):
                    rows += _series(name, count, batches, sides, config.repeats)
    if config.output is not None:
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_record(replace(config, output=folder / "growth.json"), rows, torch.device("cpu"))
        _draw(rows, folder / "growth.png")
    return rows


def _series(name: str, count: int, batches: Sequence[int], sides: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """One of ``batches`` and ``sides`` holds a single number."""
    rows: list[dict[str, Any]] = []
    for side in sides:
        model = create(name, side).eval()
        for batch in batches:
            run = partial(model, torch.randn(batch, 3, side, side))
            with torch.inference_mode():
                memory = _peak(run)
                ms = median(seconds(run) for _ in range(repeats)) * 1e3
            rows.append({"model": name, "threads": count, "batch": batch, "px": side, "ms": ms})
            rows[-1] |= {"images_per_s": batch / ms * 1e3, "memory_mb": memory}
    sizes = batches if len(sides) == 1 else sides
    for key, of in (("time_exponent", "ms"), ("memory_exponent", "memory_mb")):
        for row in rows:
            row[key] = "-"
        values = [row[of] for row in rows]
        if len(set(sizes)) > 1 and all(isinstance(value, float) and value > 0 for value in values):
            rows[-1][key] = float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
    return rows


def _peak(function: Callable[[], object]) -> float | str:
    """Growth of the process's peak memory in MB while a function runs; "-" where the system does not tell."""
    with given_back():
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
        before = peak_bytes()
        function()
        grown = peak_bytes() - before
    return grown / 1e6 if grown > 0 else "-"


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, fixed, at, text in zip(
        figure.subplots(1, 2), ("batch", "px"), ("px", "batch"), (_SIDE, _BATCH), ("batch", "side (px)"), strict=True
    ):
        for name, count in dict.fromkeys((row["model"], row["threads"]) for row in rows):
            some = [row for row in rows if (row["model"], row["threads"], row[fixed]) == (name, count, at)]
            label = f"{name}, {count} thread{'s' if count > 1 else ''}"
            axes.plot([r[key] for r in some], [r["images_per_s"] for r in some], "o-", label=label)
        axes.set(xscale="log", yscale="log", xlabel=text, ylabel="images per second")
        axes.grid(True, which="both", alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
