"""A model as an ONNX graph that takes gray images and gives logits and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils.errors import require
from ..utils.quiet import quiet
from .manifest import Manifest

__all__ = ["OPSET", "core_graph", "with_half_weights", "write_graph"]

OPSET = 20
_FILTERS = {"bicubic": "cubic", "bilinear": "linear"}
_HALVED = 64  # numbers of a weight from which it is stored as fp16


def core_graph(model: nn.Module, input_size: tuple[int, ...]) -> Any:
    """Traces a model: ``x``, float32 ``(batch, C, H, W)``, to ``logits`` ``(batch, L)``, for any batch.

    Args:
        model: In eval mode; best what ``deploy`` made of it.
        input_size: (C, H, W).

    Returns:
        An ``onnx.ModelProto``.
    """
    require("onnx", "onnx"), require("onnxscript", "onnx")
    batch = torch.export.Dim("batch", min=1)
    with quiet("torch.onnx", "onnxscript", "onnx_ir", "torch.export"):
        exported = torch.onnx.export(
            model,
            (torch.zeros(2, *input_size),),  # a batch of 1 would be taken for a constant
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["x"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    graph = exported.model_proto
    for part in (*graph.graph.node, *graph.graph.initializer, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.graph.value_info[:], graph.graph.metadata_props[:], graph.functions[:], graph.metadata_props[:]
    return graph


def with_half_weights(graph: Any) -> Any:
    """Stores weights as fp16; the runtime makes them fp32 as it loads the graph, and computes in fp32."""
    onnx = require("onnx", "onnx")
    casts = []
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= _HALVED:
            name = tensor.name
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_fp16"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_fp16"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


def write_graph(core: Any, manifest: Manifest, path: Path) -> None:
    """Adds the preprocessing, the probabilities and what the graph says of itself, and writes it.

    Raises:
        InputError: the preprocessing cannot be in the graph.
    """
    onnx = require("onnx", "onnx")
    h, types = onnx.helper, onnx.TensorProto
    info, graph = manifest.info, core.graph
    before, constants = [], {}
    if manifest.preprocessing == "inside":
        before, constants = _preprocessing(manifest)
        images = h.make_tensor_value_info("images", types.UINT8, ["batch", 1, "height", "width"])
    else:
        shape = ["batch", len(manifest.mean), *info.input_size]
        before = [h.make_node("Identity", ["images"], ["x"])]
        images = h.make_tensor_value_info("images", types.FLOAT, shape)
    constants["temperatures"] = manifest.temperatures
    after = [
        h.make_node("Div", ["logits", "temperatures"], ["tempered"]),
        h.make_node("Sigmoid", ["tempered"], ["probabilities"]),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(images)
    for name in ("logits", "probabilities"):
        graph.output.append(h.make_tensor_value_info(name, types.FLOAT, ["batch", len(info.labels)]))
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    h.set_model_props(core, manifest.described())
    core.producer_name, core.producer_version = "mxa", manifest.provenance.get("mxa", "")
    onnx.checker.check_model(core)
    onnx.save(core, path)


def _preprocessing(manifest: Manifest) -> tuple[Sequence[Any], dict[str, np.ndarray]]:
    """Nodes from ``images`` to ``x``. Pillow resizes the rows, rounds, then resizes the columns; so does this."""
    h = require("onnx", "onnx").helper
    mode = manifest.resize_filter(_FILTERS)
    height, width = manifest.info.input_size
    mean, std = manifest.mean_and_std
    constants = {
        "gray_low": np.float32(0),
        "gray_high": np.float32(255),
        "gray_scale": 1 / (255 * std),
        "gray_shift": -mean / std,
        "width_out": np.array([width], np.int64),
        "height_out": np.array([height], np.int64),
    }
    nodes, last = [h.make_node("Cast", ["images"], ["gray"], to=1)], "gray"
    for axis, size in ((3, "width_out"), (2, "height_out")):
        resized, clipped, rounded = (f"{kind}_{axis}" for kind in ("resized", "clipped", "rounded"))
        how = {"mode": mode, "antialias": 1, "exclude_outside": 1, "coordinate_transformation_mode": "half_pixel"}
        how |= {"cubic_coeff_a": -0.5} if mode == "cubic" else {}
        nodes += [
            h.make_node("Resize", [last, "", "", size], [resized], axes=[axis], **how),
            h.make_node("Clip", [resized, "gray_low", "gray_high"], [clipped]),
            h.make_node("Round", [clipped], [rounded]),
        ]
        last = rounded
    nodes += [h.make_node("Mul", [last, "gray_scale"], ["scaled"]), h.make_node("Add", ["scaled", "gray_shift"], ["x"])]
    return nodes, {name: np.asarray(value) for name, value in constants.items()}
