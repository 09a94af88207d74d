"""Writes a model's graph, in any format and precision, and its manifest into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from ..utils.files import digest
from . import onnx_graph, openvino_graph, torch_graph
from .fuse import deploy, prepare_graph
from .manifest import GRAPHS, Manifest
from .quantize import quantize_onnx, quantize_openvino

__all__ = ["write_graph"]


def write_graph(
    model: nn.Module, input_size: tuple[int, ...], manifest: Manifest, folder: Path, inputs: Sequence[np.ndarray] = ()
) -> Manifest:
    """Writes the graph of a model, folded for inference, and ``mxa.json``.

    Args:
        model: In eval mode; it is not changed.
        input_size: (C, H, W).
        manifest: Format, precision and preprocessing of the graph, and what it says of itself.
        folder: An empty folder.
        inputs: What the ranges of int8 are chosen on, each ``(1, C, H, W)``.

    Returns:
        The manifest with the hashes of the files, as it was written.

    Raises:
        InputError: a package is not installed, or the preprocessing cannot be in the graph.
    """
    model, path = deploy(model), folder / GRAPHS[manifest.format]
    if manifest.format == "torch-export":
        torch_graph.write_graph(model, input_size, manifest, path)
    else:
        onnx = manifest.format == "onnx"
        kind = onnx_graph if onnx else openvino_graph
        core = kind.core_graph(prepare_graph(model), input_size)
        if manifest.precision == "int8":
            core = (quantize_onnx if onnx else quantize_openvino)(core, inputs)
        if manifest.precision == "fp16" and onnx:
            core = onnx_graph.with_half_weights(core)
        kind.write_graph(core, manifest, path)
    manifest = replace(manifest, files={file.name: digest(file) for file in sorted(folder.iterdir())})
    manifest.write(folder)
    return manifest
