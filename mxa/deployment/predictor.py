"""One call for a model, whatever runs it: PyTorch, ONNX Runtime or OpenVINO. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from PIL import Image

from ..data.gray import input_gray
from ..data.image_io import read_checked
from ..evaluation.calibration import Calibration
from ..evaluation.inference import check_finite
from ..metrics.operating import sigmoid

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ModelInfo", "PlaneReader", "Predictor", "Xray", "Xrays"]

Xray: TypeAlias = "str | Path | Image.Image | np.ndarray | torch.Tensor"
"""One image, in any of the forms that are read."""
Xrays: TypeAlias = "list[Any] | tuple[Any, ...]"
"""Several of them."""


@dataclass(frozen=True)
class ModelInfo:
    """What has to be known of a model to use it.

    Attributes:
        name: Its name, for messages and reports.
        labels: Names of its outputs.
        input_size: Height and width of its input, in pixels.
        interpolation: How an image is resized to that: ``"bicubic"``, ``"bilinear"``, or another filter of Pillow's.
        weights_sha256: Hash of its weights.
        calibration: Its temperatures and thresholds, where it has some.
    """

    name: str
    labels: tuple[str, ...]
    input_size: tuple[int, int]
    interpolation: str
    weights_sha256: str
    calibration: Calibration | None = None


@dataclass(frozen=True)
class PlaneReader:
    """Reads an image as the plane that a model takes. It can be sent to another process.

    Attributes:
        input_size: Height and width of the plane.
        interpolation: Filter of Pillow's, by its name.
        identifiers: Give the SOP, study and series instance UIDs of DICOM files too.
    """

    input_size: tuple[int, int]
    interpolation: str
    identifiers: bool = False

    def __call__(self, path: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Reads a file, as ``mxa.data.image_io.read_checked`` does.

        Returns:
            The plane ``(H, W)``: uint8, or float32 in [0, 255] for an image deeper than 8 bits. And what there is to
            say of the file: ``warning``, ``identifiers``.

        Raises:
            InputError: it does not read.
        """
        image, about = read_checked(Path(path), self.input_size, self.identifiers)
        return self.resize(image), about

    def resize(self, image: Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
        """Resizes an image in memory, whatever ``mxa.data.to_gray`` takes, to the plane."""
        gray = input_gray(image)
        height, width = self.input_size
        if gray.size != (width, height):
            gray = gray.resize((width, height), Image.Resampling[self.interpolation.upper()])
        return np.asarray(gray)


class Predictor:
    """A model behind one call.

    ``predictor(image)`` gives the probability of each label; ``predictor([image, ...])`` a list of such dicts. An image
    is a path (PNG, JPEG, DICOM ...), a PIL image, an array or a tensor.

    Args:
        info: What the model is.
        run: Planes ``(B, H, W)``, uint8 or float32 in [0, 255], to logits ``(B, L)``, float32.
        runtime: ``"torch"``, ``"onnx"`` or ``"openvino"``.
        network: The module, where there is one: an exported model has none.
    """

    def __init__(
        self, info: ModelInfo, run: Callable[[np.ndarray], np.ndarray], runtime: str, network: nn.Module | None = None
    ):
        self.info, self.runtime, self.network = info, runtime, network
        self._run = run

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.info.labels

    def reader(self, identifiers: bool = False) -> PlaneReader:
        """Makes what reads an image for this model."""
        return PlaneReader(self.info.input_size, self.info.interpolation, identifiers)

    def logits(self, planes: Sequence[np.ndarray], files: Sequence[str] = ()) -> np.ndarray:
        """Computes the logits of planes that ``reader`` read: B times ``(H, W)`` to ``(B, L)``, float32.

        Raises:
            InputError: a logit is not finite; the message names its label, and its image where ``files`` are given.
        """
        logits = self._run(np.stack(planes))
        check_finite(logits, self.labels, files, self.info.name)
        return logits

    def probabilities(self, logits: np.ndarray, calibrated: bool = True) -> np.ndarray:
        """Turns logits ``(B, L)`` into probabilities, calibrated where the model has a calibration."""
        calibration = self.info.calibration if calibrated else None
        return sigmoid(logits) if calibration is None else calibration.probabilities(self.labels, logits)

    @overload
    def __call__(self, images: Xray, batch_size: int = 32) -> dict[str, float]: ...

    @overload
    def __call__(self, images: Xrays, batch_size: int = 32) -> list[dict[str, float]]: ...

    def __call__(self, images: Xray | Xrays, batch_size: int = 32) -> dict[str, float] | list[dict[str, float]]:
        """Predicts one image, or each of several.

        Raises:
            InputError: an image does not read, or a logit is not finite.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        reader, found = self.reader(), []
        for start in range(0, len(images), batch_size):
            planes = [_plane(reader, image) for image in images[start : start + batch_size]]
            found += [self._named(row) for row in self.probabilities(self.logits(planes))]
        return found

    def _named(self, values: Iterable[float]) -> dict[str, float]:
        return {label: float(value) for label, value in zip(self.labels, values, strict=True)}


def _plane(reader: PlaneReader, image: Any) -> np.ndarray:
    return reader(image)[0] if isinstance(image, (str, Path)) else reader.resize(image)
