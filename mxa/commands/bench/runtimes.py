"""Measures what runs a model fastest on a CPU: PyTorch, the folded copy, ONNX Runtime or OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...data import create_transform
from ...deployment import deploy, load_exported
from ...deployment.graphs import write_graph
from ...deployment.manifest import Manifest
from ...deployment.predictor import ModelInfo
from ...deployment.quantize import check_precision
from ...models.load import create
from ...utils.errors import InputError
from .config import BenchRuntimesConfig
from .timing import alternate, threads, timed, write_record

__all__ = ["BenchRuntimesConfig", "bench_runtimes"]

_RANGES = 16  # random images that the ranges of int8 are chosen on: enough for its speed


def bench_runtimes(config: BenchRuntimesConfig) -> list[dict]:
    """Times every model in every runtime, with untrained weights.

    Returns:
        One row a model and runtime: ``model``, ``runtime``, ``latency_b1_ms``, ``latency_ms`` and ``images_per_s`` at
        ``batch_size``: medians, each with its ratio to the first row and the ratio's quartiles.

    Raises:
        InputError: an unknown model or runtime, a runtime that is not installed, or a precision that this processor
            lacks.
    """
    device = torch.device("cpu")
    for runtime in config.runtimes:
        kind, _, precision = runtime.partition("-")
        if kind not in ("eager", "deploy", "onnx", "openvino") or (precision and kind in ("eager", "deploy")):
            raise InputError(f"unknown runtime {runtime!r}: give eager, deploy, onnx or openvino, or such as onnx-int8")
        if precision:
            check_precision(kind, precision)
    planes = np.random.default_rng(0).integers(
        0, 256, (config.batch_size, config.img_size, config.img_size), dtype=np.uint8
    )
    torch.manual_seed(0)
    names, functions = [], []
    with threads(config.threads), tempfile.TemporaryDirectory() as folder:
        for name in config.models:
            model = create(name, config.img_size).eval()
            for runtime in dict.fromkeys(("eager", *config.runtimes) if name == config.models[0] else config.runtimes):
                names.append((name, runtime))
                functions.append(_opened(model, runtime, config, Path(folder) / f"{len(names)}"))
        first = alternate([partial(f, planes[:1]) for f in functions], config.repeats, device)
        rounds = alternate([partial(f, planes) for f in functions], config.repeats, device)
    speeds = [[config.batch_size / ms * 1e3 for ms in times] for times in rounds]
    rows = [
        {"model": name, "runtime": runtime}
        | timed("latency_b1_ms", first, i)
        | timed("latency_ms", rounds, i)
        | timed("images_per_s", speeds, i)
        for i, (name, runtime) in enumerate(names)
    ]
    write_record(config, rows, device)
    return rows


def _opened(
    model: nn.Module, runtime: str, config: BenchRuntimesConfig, folder: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes what turns gray planes ``(B, H, W)`` into logits."""
    kind, _, precision = runtime.partition("-")
    transform = create_transform({**model.pretrained_cfg, "input_size": (3, config.img_size, config.img_size)})
    normalize = transform.to_tensor.normalizer("cpu")
    if kind in ("eager", "deploy"):
        network = model if kind == "eager" else deploy(model)

        @torch.inference_mode()
        def run(planes: np.ndarray) -> np.ndarray:
            return network(normalize(torch.from_numpy(planes)[:, None])).numpy()

        return run
    folder.mkdir()
    shape = (3, config.img_size, config.img_size)
    labels = tuple(map(str, range(model.num_classes)))
    mean, std = (tuple(v.ravel().tolist()) for v in (transform.to_tensor.mean, transform.to_tensor.std))
    info = ModelInfo("bench", labels, shape[1:], "bicubic", "")
    manifest = Manifest(info, kind, precision or "fp32", "inside", mean, std)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((1, *shape), np.float32) for _ in range(_RANGES if precision == "int8" else 0)]
    write_graph(model, shape, manifest, folder, inputs)
    return load_exported(folder, config.threads).logits
