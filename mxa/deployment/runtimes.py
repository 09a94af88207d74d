"""Models by name, run folder or exported folder, each behind a ``Predictor``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .predictor import ModelInfo, Predictor

if TYPE_CHECKING:
    from torch import nn

__all__ = ["open_predictor", "predict", "torch_predictor"]


def open_predictor(model: str | Path | nn.Module | Predictor, device: str | None = None) -> Predictor:
    """Opens a model for predictions.

    Args:
        model: A timm name with weights, a run folder, a module, or a ``Predictor``, which is given back.
        device: Of PyTorch; ``cuda`` where there is one, else ``cpu``, by default.

    Raises:
        InputError: no such model, outputs without names, or a calibration of other weights.
    """
    return model if isinstance(model, Predictor) else torch_predictor(model, device)


def torch_predictor(model: str | Path | nn.Module, device: str | None = None) -> Predictor:
    """Opens a model that PyTorch runs, as ``open_predictor`` does."""
    import torch
    from torch import nn

    from ..data import create_transform, data_config
    from ..evaluation.calibrate import NAME, read_calibration
    from ..evaluation.evaluate import weights_sha256
    from ..models.load import load_model, named_outputs
    from ..utils.distributed import pick_device

    name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    network = copy.deepcopy(model) if isinstance(model, nn.Module) else load_model(model).to(pick_device(device))
    network.eval()
    where = next(network.parameters()).device
    normalize = create_transform(network).to_tensor.normalizer(where)
    cfg = data_config(network)

    @torch.inference_mode()
    def run(planes: np.ndarray) -> np.ndarray:
        return network(normalize(torch.from_numpy(planes).to(where)[:, None])).float().cpu().numpy()

    calibration = read_calibration(name) if (Path(name) / NAME).is_file() else None
    size, sha256 = cfg["input_size"][1:], weights_sha256(name, network)
    info = ModelInfo(name, named_outputs(network), size, cfg["interpolation"], sha256, calibration)
    return Predictor(info, run, "torch")


def predict(images: Any, model: str | Path | nn.Module | Predictor | None = None) -> Any:
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
