"""Speed and memory as ratios to peers, measured in the same run.

Absolute times say more about a machine and its moment than about a model. Every round here times each contender once,
in a shuffled order, so that noise hits all alike; a ratio is the median over rounds of the round's own quotient, and
its interquartile range says how far to trust it.
"""

from __future__ import annotations

import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from .errors import InputError, require
from .layers.roi import roi_resize
from .models.load import create
from .yaml_fields import read_named

__all__ = [
    "BenchLayersConfig",
    "BenchModelsConfig",
    "alternate",
    "bench_layers",
    "bench_models",
    "print_table",
    "threads",
    "timed",
    "write_record",
]

_M5_MAPS = ((192, 14), (288, 7), (384, 4))  # channels and side of the maps that MXA sees in M5 at 224x224
_MIN_SECONDS = 0.005  # shorter calls are timed several at once


@dataclass
class BenchModelsConfig:
    """Compares models with peers: parameters, MACs, latency, training step and memory."""

    models: tuple[str, ...] = ("efficientvit_ml_m5", "efficientvit_ml_m5_mxa")
    """Names of timm models (ours are registered there), or NAME: {argument: value}."""
    peers: tuple[str, ...] = ("efficientvit_m5",)
    """Names of timm models to compare with; the first is the reference of all ratios."""
    batch_size: int = 32
    """Images per batch, at least 2; latency is measured at 1 too."""
    img_size: int = 224
    """Side of the images in pixels."""
    num_classes: int = 14
    """Outputs of every model."""
    repeats: int = 20
    """Rounds; each times every model once."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    device: str = "cpu"
    """Where to run: "cpu", "cuda", "cuda:1"."""
    channels_last: bool = False
    """Lay images and weights out channels-last in memory."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


@dataclass
class BenchLayersConfig:
    """Compares roi_resize with affine_grid and grid_sample at the map sizes of M5."""

    batch_sizes: tuple[int, ...] = (1, 32)
    """Maps per batch."""
    repeats: int = 20
    """Rounds; each times both once."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    device: str = "cpu"
    """Where to run: "cpu", "cuda", "cuda:1"."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


def bench_models(config: BenchModelsConfig) -> list[dict]:
    """Measures peers and models against the first peer (the first model, if there are no peers).

    A training step is forward, binary cross-entropy, backward and clearing the gradients, without an optimizer. MACs
    are half of torch's ``FlopCounterMode`` at batch 1 (products and convolutions). ``train_memory_mb`` is what a
    training step needs beyond the weights: on CUDA the growth of allocated memory to its peak; on the CPU, which has no
    such counter, the tensors that the forward pass saves for the backward pass, each storage counted once
    (deterministic; for M5 at batch 32 5 to 8 % below the growth of the resident set).

    Returns:
        One row per model, peers first: ``model`` and ``params_m``, ``macs_g``, ``latency_b1_ms``, ``latency_ms``,
        ``images_per_s``, ``train_ms``, ``train_memory_mb``, the last four at ``batch_size``. Times are medians; 1 MB is
        10^6 bytes. Each has its ``_ratio`` to the reference, the timed ones also the ratio's quartiles ``_ratio_iqr``.

    Raises:
        InputError: a model is unknown, there is none, ``repeats`` is below 1, or ``batch_size`` is below 2 (batch norm
            cannot train on one).
    """
    names = (*config.peers, *config.models)
    if not names or config.batch_size < 2:
        raise InputError("name at least one model or peer, and give batch norm a batch_size of at least 2")
    device = torch.device(config.device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    with threads(config.threads):
        torch.manual_seed(0)
        shape = (config.batch_size, 3, config.img_size, config.img_size)
        images = torch.randn(shape, device=device).contiguous(memory_format=layout)
        targets = torch.randint(2, (config.batch_size, config.num_classes), device=device).float()
        models = [_build(name, config).to(device, memory_format=layout).eval() for name in names]
        one = images[:1].contiguous(memory_format=layout)
        params = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models]
        macs = [_macs(model, one) for model in models]
        with torch.inference_mode():
            first = alternate([partial(model, one) for model in models], config.repeats, device)
            rounds = alternate([partial(model, images) for model in models], config.repeats, device)
        speeds = [[config.batch_size / ms * 1e3 for ms in times] for times in rounds]
        steps = [partial(_training_step, model.train(), images, targets) for model in models]
        training = alternate(steps, config.repeats, device)
        memory = [_memory(model, step, images, device) / 1e6 for model, step in zip(models, steps, strict=True)]
    rows = []
    for i, name in enumerate(names):
        row = {"model": name} | _counted("params_m", params, i) | _counted("macs_g", macs, i)
        row |= timed("latency_b1_ms", first, i) | timed("latency_ms", rounds, i) | timed("images_per_s", speeds, i)
        rows.append(row | timed("train_ms", training, i) | _counted("train_memory_mb", memory, i))
    write_record(config, rows, device)
    return rows


def bench_layers(config: BenchLayersConfig) -> list[dict]:
    """Measures ``roi_resize`` against ``affine_grid`` and ``grid_sample``, which compute the same.

    Returns:
        One row per map size, batch size and pass: ``maps`` (C x H x W), ``batch``, ``pass`` (``"forward"``, or
        ``"forward+backward"`` to map and box), ``grid_sample_ms`` and ``roi_resize_ms`` (medians), and the latter's
        ``roi_resize_ms_ratio`` and ``roi_resize_ms_ratio_iqr`` to ``grid_sample``.
    """
    device = torch.device(config.device)
    rows = []
    with threads(config.threads):
        torch.manual_seed(0)
        for channels, side in _M5_MAPS:
            for batch in config.batch_sizes:
                x = torch.randn(batch, channels, side, side, device=device, requires_grad=True)
                corners = torch.rand(2, batch, 2, device=device)
                boxes = torch.cat([corners[0] * 0.4, 0.6 + corners[1] * 0.4], dim=1).requires_grad_()
                resizes = (_grid_resize, roi_resize)
                with torch.inference_mode():
                    forward = alternate([partial(f, x, boxes) for f in resizes], config.repeats, device)
                both = alternate([partial(_resize_and_back, f, x, boxes) for f in resizes], config.repeats, device)
                for name, rounds in (("forward", forward), ("forward+backward", both)):
                    row = {"maps": f"{channels}x{side}x{side}", "batch": batch, "pass": name}
                    row["grid_sample_ms"] = median(times[0] for times in rounds)
                    rows.append(row | timed("roi_resize_ms", rounds, 1))
    write_record(config, rows, device)
    return rows


def print_table(rows: Sequence[dict]) -> None:
    """Prints rows of ``bench_models`` or ``bench_layers``, each ratio (and its quartiles) under its value.

    Raises:
        InputError: rich is not installed.
    """
    table = require("rich.table", "train").Table(box=require("rich.box", "train").SIMPLE, padding=(0, 1, 0, 0))
    keys = [key for key in rows[0] if not key.endswith(("_ratio", "_ratio_iqr"))]
    for key in keys:
        text = isinstance(rows[0][key], str)
        table.add_column(key.replace("_", "\n"), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, key) for key in keys))
    console = require("rich.console", "train").Console()
    if not console.is_terminal:
        console.width = 120  # of a file or a pipe, rich would think 80
    console.print(table)


def _cell(row: dict, key: str) -> str:
    text = f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])
    if f"{key}_ratio" in row:
        text += f"\n{row[f'{key}_ratio']:.2f}x"
    if f"{key}_ratio_iqr" in row:
        text += "\n" + "-".join(f"{ratio:.2f}" for ratio in row[f"{key}_ratio_iqr"])
    return text


def _build(name: str, config: BenchModelsConfig) -> nn.Module:
    name, arguments = read_named(name, "the model")
    return create(name, config.img_size, **{"num_classes": config.num_classes, **(arguments or {})})


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Uses so many CPU threads inside the block; torch's own choice by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _macs(model: nn.Module, image: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2 / 1e9


def _training_step(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> None:
    F.binary_cross_entropy_with_logits(model(images), targets).backward()
    model.zero_grad()


def _grid_resize(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The usual way to do what ``roi_resize`` does."""
    x1, y1, x2, y2 = boxes.unbind(1)
    zero = torch.zeros_like(x1)
    theta = torch.stack([x2 - x1, zero, x1 + x2 - 1, zero, y2 - y1, y1 + y2 - 1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _resize_and_back(resize: Callable, x: torch.Tensor, boxes: torch.Tensor) -> None:
    y = resize(x, boxes)
    torch.autograd.grad(y, (x, boxes), y.detach())


def _memory(model: nn.Module, step: Callable[[], object], images: torch.Tensor, device: torch.device) -> int:
    """Bytes, as the docstring of ``bench_models`` says."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def note(tensor: torch.Tensor) -> None:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda _: None):
        model(images)
    return sum(storage.nbytes() for address, storage in saved.items() if address not in weights)


def alternate(functions: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Milliseconds per call, ``repeats`` rounds of one time per function, each round in another order."""
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None

    def seconds(function: Callable[[], object], calls: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize()
        return (time.perf_counter() - start) / calls

    for function in functions:  # warm-up
        seconds(function, 2)
    calls = [math.ceil(_MIN_SECONDS / seconds(function, 1)) for function in functions]
    order = list(range(len(functions)))
    shuffle = random.Random(0).shuffle
    rounds = []
    for _ in range(repeats):
        shuffle(order)
        times = {i: seconds(functions[i], calls[i]) * 1e3 for i in order}
        rounds.append([times[i] for i in sorted(order)])
    return rounds


def _counted(key: str, values: Sequence[float], i: int) -> dict:
    return {key: values[i], f"{key}_ratio": values[i] / values[0]}


def timed(key: str, rounds: Sequence[Sequence[float]], i: int) -> dict:
    """Median of contender i, and the median and quartiles of its quotient with contender 0 in the same round."""
    low, middle, high = np.quantile([times[i] / times[0] for times in rounds], (0.25, 0.5, 0.75)).tolist()
    return {key: median(times[i] for times in rounds), f"{key}_ratio": middle, f"{key}_ratio_iqr": [low, high]}


def write_record(config: Any, rows: list[dict], device: torch.device) -> None:
    """Writes configuration, environment and rows as JSON, where the configuration names a file."""
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
    Path(config.output).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
