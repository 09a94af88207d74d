"""Models by name, run folder or exported folder, each behind a ``Predictor``. Imports a runtime when it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ..utils.errors import InputError, require
from ..utils.json_files import parse_json
from .manifest import GRAPHS, MANIFEST, Manifest, read_manifest
from .predictor import ModelInfo, Predictor, Xray, Xrays

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RUNTIMES", "load_exported", "open_predictor", "predict", "torch_predictor"]

#: The runtime of each format, and the extra that installs it.
RUNTIMES = {"onnx": "onnx", "openvino": "openvino", "torch-export": "torch"}


def open_predictor(
    model: str | Path | nn.Module | Predictor,
    runtime: Literal["auto", "torch", "onnx", "openvino"] = "auto",
    device: str | None = None,
) -> Predictor:
    """Opens a model for predictions.

    Args:
        model: A timm name with weights, a run folder, an exported folder, a module, or a ``Predictor``, which is given
            back.
        runtime: What must run it; by default what can.
        device: Of PyTorch; ``cuda`` where there is one, else ``cpu``, by default.

    Raises:
        InputError: no such model, outputs without names, a calibration of other weights, or another runtime than asked
            for.
    """
    if isinstance(model, Predictor):
        found = model
    elif isinstance(model, (str, Path)) and (Path(model) / MANIFEST).is_file():
        found = load_exported(model)
    elif runtime not in ("auto", "torch"):
        raise InputError(f"{model} is not exported: run mxa export {model} --format {runtime} --output FOLDER first")
    else:
        found = torch_predictor(model, device)
    if runtime not in ("auto", found.runtime):
        raise InputError(f"{model} was exported for {found.runtime}, not for {runtime}: leave --runtime out")
    return found


def load_exported(folder: str | Path, threads: int | None = None) -> Predictor:
    """Opens what ``mxa export`` wrote. ONNX and OpenVINO need no PyTorch.

    Args:
        folder: The exported folder.
        threads: Threads of the runtime; as many as it likes by default.

    Raises:
        InputError: it is damaged or changed, its runtime is not installed, or this processor lacks its precision.
    """
    manifest = read_manifest(folder)
    path = Path(folder) / GRAPHS[manifest.format]
    opened = {"onnx": _open_onnx, "openvino": _open_openvino, "torch-export": _open_torch}[manifest.format]
    return Predictor(manifest.info, _with_input(manifest, opened(path, manifest, threads)), RUNTIMES[manifest.format])


def _with_input(manifest: Manifest, run: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Makes of planes what the graph takes."""
    if manifest.preprocessing == "inside":
        return lambda planes: run(np.round(planes).clip(0, 255).astype(np.uint8)[:, None])
    return lambda planes: run(manifest.normalize(planes))


def _open_onnx(path: Path, manifest: Manifest, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class for each kind, which it does not export
        raise _unreadable(path, "ONNX Runtime", error) from None
    _check_outputs(path, manifest, session.get_outputs()[0].shape[-1], session.get_modelmeta().custom_metadata_map)
    return lambda x: session.run(["logits"], {"images": x})[0]


def _open_openvino(path: Path, manifest: Manifest, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    openvino = require("openvino", "openvino")
    core = openvino.Core()
    config: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "bf16" if manifest.precision == "bf16" else "f32"}
    config |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    check_processor(manifest.precision)
    try:
        graph = core.read_model(path)
        said = {"labels": str(graph.get_rt_info(["mxa", "labels"]).value)}
        compiled = core.compile_model(graph, "CPU", config)
    except RuntimeError as error:
        raise _unreadable(path, "OpenVINO", error) from None
    _check_outputs(path, manifest, compiled.output("logits").partial_shape[1].get_length(), said)
    request = compiled.create_infer_request()
    return lambda x: request.infer({"images": x})["logits"].copy()


def _open_torch(path: Path, manifest: Manifest, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    try:
        extra = {"mxa.json": ""}
        graph = torch.export.load(path, extra_files=extra).module()
    except Exception as error:  # whatever a damaged archive raises
        raise _unreadable(path, "PyTorch", error) from None
    _check_outputs(path, manifest, len(manifest.info.labels), parse_json(extra["mxa.json"], path))
    if threads is not None:
        torch.set_num_threads(threads)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(torch.from_numpy(x))[0].numpy()

    return run


def check_processor(precision: str) -> None:
    """Refuses a precision that OpenVINO would quietly replace by another on this processor.

    Raises:
        InputError: bf16 where the processor has neither AVX512-BF16 nor AMX.
    """
    if precision != "bf16":
        return
    core = require("openvino", "openvino").Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError("this processor has no bf16 (AVX512-BF16 or AMX): export with --precision fp32 or int8")


def _unreadable(path: Path, runtime: str, error: Exception) -> InputError:
    return InputError(f"{path} is no graph that this {runtime} reads ({' '.join(str(error).split())}): export it again")


def _check_outputs(path: Path, manifest: Manifest, count: Any, said: dict[str, Any]) -> None:
    labels = list(manifest.info.labels)
    if count != len(labels) or parse_json(said.get("labels", "null"), path, (list,)) != labels:
        raise InputError(f"the labels of {path} are not those of {MANIFEST} beside it: export the model again")


def torch_predictor(model: str | Path | nn.Module, device: str | None = None) -> Predictor:
    """Opens a model that PyTorch runs, as ``open_predictor`` does."""
    from torch import nn

    from ..models.load import load_model
    from ..utils.distributed import pick_device

    if isinstance(model, nn.Module):
        return predictor_of(copy.deepcopy(model), type(model).__name__)
    return predictor_of(load_model(model).to(pick_device(device)), str(model))


def predictor_of(network: nn.Module, name: str) -> Predictor:
    """Makes the predictor of a module, which it keeps and sets to eval mode, under the name that it was loaded by."""
    import torch

    from ..data import create_transform, data_config
    from ..evaluation.calibrate import find_calibration
    from ..evaluation.evaluate import weights_sha256
    from ..models.load import named_outputs

    network.eval()
    where = next(network.parameters()).device
    normalize = create_transform(network).to_tensor.normalizer(where)
    cfg = data_config(network)

    @torch.inference_mode()
    def run(planes: np.ndarray) -> np.ndarray:
        return network(normalize(torch.from_numpy(planes).to(where)[:, None])).float().cpu().numpy()

    size, sha256 = cfg["input_size"][1:], weights_sha256(name, network)
    info = ModelInfo(name, named_outputs(network), size, cfg["interpolation"], sha256, find_calibration(name))
    return Predictor(info, run, "torch", network)


@overload
def predict(images: Xray, model: str | Path | nn.Module | Predictor | None = None) -> dict[str, float]: ...


@overload
def predict(images: Xrays, model: str | Path | nn.Module | Predictor | None = None) -> list[dict[str, float]]: ...


def predict(
    images: Xray | Xrays, model: str | Path | nn.Module | Predictor | None = None
) -> dict[str, float] | list[dict[str, float]]:
    """Predicts the findings of one image, or of each of a list.

    To predict often, open the model once: ``predictor = mxa.deployment.open_predictor(model)``, then
    ``predictor(image)``.

    Args:
        images: A path (PNG, JPEG, DICOM ...), a PIL image, an array, a tensor, or a list of them.
        model: What ``open_predictor`` takes; the small model that comes with mxa by default.

    Returns:
        ``{label: probability}``, or a list of such dicts. The probabilities are calibrated where the run is.

    Raises:
        InputError: as ``open_predictor``, or an image that does not read.
    """
    if model is None:
        from ..models.hub import SHIPPED

        model = SHIPPED
    return open_predictor(model)(images)
