"""Measures on a GPU what MXA costs there: one table of at most six minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...layers.roi import ROIPool
from ...models.load import create
from ...utils.errors import InputError
from .config import BenchCudaConfig
from .timing import alternate, write_record

__all__ = ["bench_cuda"]


class _LiteralPool(ROIPool):
    """The paper's crop as it is written: a loop over the images, each cut at whole cells and resized."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        cut = []
        for one, box in zip(x, self.head(x).tolist(), strict=True):  # the host waits for every box
            left, right = int(box[0] * width), max(int(box[2] * width), int(box[0] * width) + 1)
            top, bottom = int(box[1] * height), max(int(box[3] * height), int(box[1] * height) + 1)
            part = one[None, :, top:bottom, left:right]
            cut.append(F.interpolate(part, (height, width), mode="bilinear", align_corners=False))
        return torch.cat(cut)


def bench_cuda(config: BenchCudaConfig) -> list[dict[str, Any]]:
    """Measures training and inference with MXA on a GPU, in bf16 and channels-last, and looks for host syncs.

    A training step is forward, loss, backward and clearing the gradients. It first runs where any wait for the host is
    an error, and the model is compiled with ``fullgraph=True``, which refuses a graph break.

    Returns:
        A row for each check: ``check``, ``value`` (the median), ``quartiles``, and ``goal``.

    Raises:
        InputError: the device is not there, the model has no MXA, or a number is out of range.
    """
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is at hand: give --device cpu to run the same steps without one")
    if not config.model.endswith("_mxa") or config.batch_size < 2:
        raise InputError("give a model whose name ends with _mxa, and a --batch-size of at least 2")
    torch.manual_seed(0)
    names = (config.model, config.model.removesuffix("_mxa"), config.model)
    models = [create(name, config.img_size, num_classes=14) for name in names]
    models = [model.to(device, memory_format=torch.channels_last) for model in models]
    for module in models[2].modules():
        if type(module) is ROIPool:
            module.__class__ = _LiteralPool
    shape = (config.batch_size, 3, config.img_size, config.img_size)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(2, (config.batch_size, 14), device=device).float()

    ours, plain, literal = (partial(_step, model.train(), images, targets) for model in models)
    ours()
    with _no_sync(device):
        ours()
    times = alternate([ours, plain, literal], config.repeats, device)
    waits = [_row("training step: waits for the host", [0.0], "0")] if device.type == "cuda" else []  # others have none
    rows = [
        *waits,
        _row("training: images/s, MXA over plain", [p / o for o, p, _ in times], ">= 0.90"),
        _row("training: images/s, MXA over the paper's crop in a loop", [w / o for o, _, w in times], ">= 4"),
    ]
    eager = models[0].eval()
    options = {"mode": "reduce-overhead"} if device.type == "cuda" else {"backend": "aot_eager"}
    compiled = torch.compile(eager, fullgraph=True, **options)  # reduce-overhead: CUDA graphs
    with torch.inference_mode():
        times = alternate([partial(eager, images), partial(_half, compiled, images)], config.repeats, device)
    rows.append(_row("inference: graph breaks", [0.0], "0"))
    rows.append(_row("inference: compiled, bf16 and CUDA graphs over eager fp32", [e / c for e, c in times], ">= 5"))
    write_record(config, rows, device)
    return rows


def _step(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> None:
    with torch.autocast(images.device.type, torch.bfloat16):
        loss = F.binary_cross_entropy_with_logits(model(images), targets)
    loss.backward()
    model.zero_grad()


def _half(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
        return model(images)


@contextmanager
def _no_sync(device: torch.device) -> Iterator[None]:
    """Makes a wait of the host for the device an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _row(check: str, values: list[float], goal: str) -> dict[str, Any]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"check": check, "value": middle, "quartiles": f"{low:.2f} to {high:.2f}", "goal": goal}
