"""A model behind TorchXRayVision's interface, for code that was written for its classifiers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..data import create_transform, data_config
from ..evaluation.calibrate import find_calibration
from ..evaluation.calibration import Calibration
from ..labels import XRV, align
from ..models.load import load_model, named_outputs
from ..utils.errors import InputError

__all__ = ["XrvModel"]


class XrvModel(nn.Module):
    """A model as one of TorchXRayVision's classifiers: its input, its names of the outputs, its attributes.

    The first 18 outputs are those of TorchXRayVision's classifiers, in their order and spelling. One that the model
    lacks is named ``""`` and is 0.5, as theirs. Labels of the model that they lack come after, under their own names.

    Args:
        model: A run folder, a timm name with weights, or a module, which is copied.
        point: Operating point of the calibration. With it the outputs are on TorchXRayVision's scale, by its
            ``op_norm``: 0.5 is the threshold, and a label without a threshold is 0.5. By default they are the
            probabilities of ``mxa.predict``.

    Attributes:
        pathologies: Names of the T outputs, also as ``targets``.
        op_threshs: Thresholds ``(T,)`` of ``point``, NaN where there is none; None without ``point``. As with
            TorchXRayVision's models, ``model.op_threshs = None`` gives plain probabilities.

    Shape: gray images ``(B, 1, H, W)`` or ``(1, H, W)`` of any size, in [-1024, 1024], to ``(B, T)`` in [0, 1].

    Raises:
        InputError: no such model, outputs without names, no calibration for ``point``, or an image that has other
            channels or values beyond [-1024, 1024].
    """

    def __init__(self, model: str | Path | nn.Module, point: Literal["youden", "specificity95", "f1"] | None = None):
        super().__init__()
        with warnings.catch_warnings():  # its import silences the process's warnings
            from torchxrayvision import models
        self._xrv = models
        self.model = (copy.deepcopy(model) if isinstance(model, nn.Module) else load_model(model)).eval()
        self.eval()
        labels = named_outputs(self.model)
        held = align(labels, XRV)
        rest = [i for i in range(len(labels)) if i not in held]
        source = [*(len(labels) if i is None else i for i in held), *rest]  # of a missing label: one past the last
        theirs = ["" if i is None else name for i, name in zip(held, XRV, strict=True)]
        self.targets = self.pathologies = theirs + [labels[i] for i in rest]
        calibration = None if isinstance(model, nn.Module) else find_calibration(str(model))
        temperatures = calibration.temperatures if calibration else {}
        to_tensor, cfg = create_transform(self.model).to_tensor, data_config(self.model)
        self._size, self._filter = cfg["input_size"][1:], cfg["interpolation"]
        if self._filter not in ("bicubic", "bilinear"):
            raise InputError(f"the model resizes by {self._filter}: bicubic and bilinear can be done on tensors")
        for name, value in {
            "op_threshs": None if point is None else _thresholds(calibration, point, self.targets, model),
            "_source": torch.tensor(source),
            "_temperatures": torch.tensor([temperatures.get(label, 1.0) for label in labels]),
            "_mean": torch.from_numpy(to_tensor.mean),
            "_std": torch.from_numpy(to_tensor.std),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predicts images ``(B, 1, H, W)``; returns ``(B, T)`` in the order of ``pathologies``."""
        found = torch.sigmoid(self.model(self._input(x)) / self._temperatures)
        found = F.pad(found, (0, 1), value=0.5)[:, self._source]
        return found if self.op_threshs is None else self._xrv.op_norm(found, self.op_threshs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the last features of images, maps ``(B, C, h, w)`` for most networks, as its DenseNet's."""
        return self.model.forward_features(self._input(x))

    def features2(self, x: torch.Tensor) -> torch.Tensor:
        """Computes what the last layer sees of images, vectors ``(B, D)``, as its DenseNet's."""
        return self.model.forward_head(self.model.forward_features(self._input(x)), pre_logits=True)

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        x = (x[None] if x.ndim == 3 else x).float()
        if x.ndim != 4 or x.shape[1] != 1:
            raise InputError(f"the images have shape {tuple(x.shape)}; expected (B, 1, H, W)")
        if not x.detach().abs().max() <= 1025:
            raise InputError("the images have values beyond [-1024, 1024]: see torchxrayvision.utils.normalize")
        self._xrv.utils.warn_normalization(x)  # [0, 1] and [0, 255]
        if x.shape[2:] != self._size:
            x = F.interpolate(x, self._size, mode=self._filter, antialias=True)
        return ((x / 1024 + 1).clamp(0, 2) / 2 - self._mean) / self._std


def _thresholds(
    calibration: Calibration | None, point: str, targets: Sequence[str], model: str | Path | nn.Module
) -> torch.Tensor:
    if calibration is None:
        name = type(model).__name__ if isinstance(model, nn.Module) else model
        raise InputError(f"{name} has no calibration: give a run folder after mxa calibrate, or leave point out")
    if point not in calibration.thresholds:
        raise InputError(f"unknown operating point {point!r}: give {', '.join(calibration.thresholds)}")
    chosen = calibration.thresholds[point]
    index = align(tuple(chosen), targets)
    return torch.tensor([torch.nan if i is None else list(chosen.values())[i] for i in index])
