"""A model as an OpenVINO graph that takes gray images and gives logits and probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils.errors import require
from ..utils.quiet import quiet
from .manifest import Manifest

__all__ = ["core_graph", "write_graph"]

_FILTERS = {"bicubic": "bicubic_pillow", "bilinear": "bilinear_pillow"}


def core_graph(model: nn.Module, input_size: tuple[int, ...]) -> Any:
    """Traces a model: float32 ``(batch, C, H, W)`` to logits ``(batch, L)``, for any batch.

    Args:
        model: In eval mode; best what ``deploy`` made of it.
        input_size: (C, H, W).

    Returns:
        An ``openvino.Model``.
    """
    openvino = require("openvino", "openvino")
    with quiet():
        return openvino.convert_model(
            model, example_input=torch.zeros(2, *input_size), input=[openvino.PartialShape([-1, *input_size])]
        )


def write_graph(core: Any, manifest: Manifest, path: Path) -> None:
    """Adds the preprocessing, the probabilities and what the graph says of itself, and writes it.

    Raises:
        InputError: the preprocessing cannot be in the graph.
    """
    openvino = require("openvino", "openvino")
    ops = require("openvino.opset11", "openvino")
    info = manifest.info
    old = core.get_parameters()[0]
    if manifest.preprocessing == "inside":
        images = ops.parameter([-1, 1, -1, -1], np.uint8)
        x = _preprocessing(ops, images, manifest)
    else:
        images = x = ops.parameter([-1, len(manifest.mean), *info.input_size], np.float32)
    images.output(0).set_names({"images"})
    for taker in old.output(0).get_target_inputs():
        taker.replace_source_output(x.output(0))
    logits = core.get_results()[0].input_value(0)
    probabilities = ops.sigmoid(ops.divide(logits, ops.constant(manifest.temperatures)))
    results = [ops.result(logits), ops.result(probabilities)]
    for result, name in zip(results, ("logits", "probabilities"), strict=True):
        result.output(0).set_names({name})
    graph = openvino.Model(results, [images], info.name)
    for name, text in manifest.described().items():
        graph.set_rt_info(text, ["mxa", name])
    openvino.save_model(graph, path, compress_to_fp16=manifest.precision == "fp16")


def _preprocessing(ops: Any, images: Any, manifest: Manifest) -> Any:
    """From ``images`` to ``x``. Pillow resizes the rows, rounds, then resizes the columns; so does this.

    The images are resized as channels of one image, ``(1, batch, H, W)``. OpenVINO works along channels: with one of
    them the resize takes four times as long and more.
    """
    mode = manifest.resize_filter(_FILTERS)
    height, width = manifest.info.input_size
    mean, std = manifest.mean_and_std
    swapped = ops.constant(np.array([1, 0, 2, 3], np.int64))
    x = ops.transpose(ops.convert(images, "f32"), swapped)
    for axis, size in ((3, width), (2, height)):
        sizes, axes = np.array([size], np.int64), np.array([axis], np.int64)
        x = ops.interpolate(x, sizes, mode, "sizes", cube_coeff=-0.5, axes=axes)
        x = ops.round(ops.clamp(x, 0.0, 255.0), "half_to_even")
    x = ops.transpose(x, swapped)
    return ops.add(ops.multiply(x, ops.constant(1 / (255 * std))), ops.constant(-mean / std))
