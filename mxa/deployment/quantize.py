"""Graphs of 8-bit integers, and what another precision costs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..labels import align
from ..metrics.bootstrap import interval, patient_weights
from ..metrics.functional import auroc
from ..metrics.operating import LEAST
from ..utils.errors import InputError, require
from ..utils.processor import has_vnni
from ..utils.quiet import quiet
from .runtimes import check_processor

__all__ = ["auc_change", "check_precision", "quantize_onnx", "quantize_openvino"]

_FEW = 8  # channels of an output, below which its convolution stays fp32
_logger = logging.getLogger(__name__)


def check_precision(kind: str, precision: str) -> None:
    """Refuses a precision that a format does not have, or that this processor cannot check.

    Raises:
        InputError: see above.
    """
    known = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "bf16", "int8"), "torch-export": ("fp32",)}
    if precision not in known[kind]:
        raise InputError(f"{kind} has no {precision} on processors: give --precision {' or '.join(known[kind])}")
    if precision == "bf16":
        check_processor(precision)
    if precision == "int8" and not has_vnni():
        _logger.warning("this processor has no VNNI: int8 runs here, but may be slower than fp32")


def quantize_onnx(core: Any, inputs: Sequence[np.ndarray]) -> Any:
    """Quantises the dense convolutions, and the linear layers over tokens.

    Depthwise convolutions, attention, linear layers of one vector an image, and maps of few channels, such as MXA's
    heat maps, stay fp32: in 8 bits they save little time and may lose much.

    Args:
        core: What ``onnx_graph.core_graph`` made.
        inputs: Inputs to choose ranges on, each ``(1, C, H, W)``.
    """
    tools, onnx = require("onnxruntime.quantization", "onnx"), require("onnx", "onnx")

    class Reader(tools.CalibrationDataReader):
        def __init__(self):
            self.left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self.left, None)
            return None if x is None else {"x": x}

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(core, before)
        prepared = require("onnxruntime.quantization.shape_inference", "onnx")
        prepared.quant_pre_process(str(before), str(before), skip_symbolic_shape=True)
        graph = onnx.load(before).graph
        weights = {tensor.name for tensor in graph.initializer}
        few = {tensor.name for tensor in graph.initializer if tensor.dims and tensor.dims[0] < _FEW}
        exact = [
            node.name
            for node in graph.node
            if (node.op_type == "MatMul" and not weights & set(node.input))
            or (node.op_type == "Conv" and node.input[1] in few)
            or any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        ]
        tools.quantize_static(
            str(before),
            str(after),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul"],
            nodes_to_exclude=exact,
            per_channel=True,
            reduce_range=not has_vnni(),  # without VNNI, sums of two products of 8 bits overflow
        )
        return onnx.load(after)


def quantize_openvino(core: Any, inputs: Sequence[np.ndarray]) -> Any:
    """Quantises a graph with NNCF; arguments, and which layers, as ``quantize_onnx``.

    The ranges of activations are those that lose least, not the whole ranges: EfficientViT has rare large values.
    """
    nncf = require("nncf", "openvino")
    ranges = require("nncf.quantization.range_estimator", "openvino").RangeEstimatorParametersSet
    exact = [op.get_friendly_name() for op in core.get_ops() if not (_is_dense(op) or _is_data(op))]
    with quiet("nncf"):
        return nncf.quantize(
            core,
            nncf.Dataset(list(inputs)),
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=exact, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges.HISTOGRAM
            ),
        )


def _is_data(op: Any) -> bool:
    return op.get_type_name() in ("Constant", "Parameter", "Result")


def _is_dense(op: Any) -> bool:
    """Says whether an OpenVINO operation is a wide convolution, or a product of tokens ``(B, N, C)`` with weights."""
    if op.get_type_name() == "Convolution":
        return op.get_output_partial_shape(0)[1].get_length() >= _FEW
    if op.get_type_name() != "MatMul":
        return False
    constant = any(value.get_source_output().get_node().get_type_name() == "Constant" for value in op.inputs())
    return constant and op.get_output_partial_shape(0).rank.get_length() > 2


def auc_change(
    before: np.ndarray,
    after: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    dataset: Any,
    replicates: int = 300,
) -> dict[str, Any]:
    """Difference of two models' macro AUC on the same images, with an interval over patients.

    Args:
        before: Logits ``(N, L)`` of the model as it was.
        after: Logits of the other, on the same images.
        targets: ``(N, K)`` of the collection's labels: 1, 0 or NaN.
        labels: Names of the L outputs.
        dataset: The images' dataset: names of the K labels, and patients.
        replicates: Bootstrap replicates of patients.

    Raises:
        InputError: no label has 5 positives and 5 negatives.
    """
    pairs = [(i, k) for i, k in enumerate(align(dataset.labels, labels)) if k is not None]
    pairs = [(i, k) for i, k in pairs if min((targets[:, k] == 1).sum(), (targets[:, k] == 0).sum()) >= LEAST]
    if not pairs:
        raise InputError(f"no label has {LEAST} positives and {LEAST} negatives to measure the change of the AUC on")

    def macro(logits: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        return np.mean([auroc(logits[:, i], targets[:, k], weight) for i, k in pairs], axis=0)

    chunks = patient_weights(np.asarray(dataset.records.patients), replicates)
    drawn = np.concatenate([macro(after, w) - macro(before, w) for w in chunks])
    low, high = interval(drawn)
    return {
        "before": float(macro(before)),
        "after": float(macro(after)),
        "difference": float(macro(after) - macro(before)),
        "interval": [float(low), float(high)],
        "images": len(targets),
        "labels": len(pairs),
    }
