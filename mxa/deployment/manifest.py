"""``mxa.json``, which says what an exported folder holds. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.calibration import Calibration
from ..utils.errors import InputError
from ..utils.files import digest, write_text
from ..utils.json_files import read_json, to_json
from .predictor import ModelInfo

__all__ = ["GRAPHS", "MANIFEST", "Manifest", "read_manifest"]

MANIFEST = "mxa.json"
#: The graph's file of each format.
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml", "torch-export": "model.pt2"}
_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    Attributes:
        info: What has to be known of the model.
        format: ``"onnx"``, ``"openvino"`` or ``"torch-export"``.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``.
        preprocessing: ``"inside"``: the graph takes uint8 gray ``(batch, 1, height, width)`` of any size.
            ``"outside"``: it takes float32 ``(batch, channels, height, width)``, resized and normalised.
        mean: Mean of each channel, for gray in [0, 1].
        std: Standard deviation of each.
        files: SHA-256 of each file of the graph, by name.
        parity: How far the graph was from PyTorch when it was exported.
        provenance: Versions, date, and what the model was trained on.
    """

    info: ModelInfo
    format: str
    precision: str
    preprocessing: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: dict[str, str] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def temperatures(self) -> np.ndarray:
        """The temperature of each label, ``(1, L)``, float32: 1 where it has none."""
        known = self.info.calibration.temperatures if self.info.calibration else {}
        return np.array([[known.get(label, 1.0) for label in self.info.labels]], np.float32)

    @property
    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Both ``(1, C, 1, 1)``, float32."""
        mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
        return mean, std

    def normalize(self, planes: np.ndarray) -> np.ndarray:
        """Turns planes ``(B, H, W)`` in [0, 255] into the network's input ``(B, C, H, W)``, float32."""
        mean, std = self.mean_and_std
        return (planes[:, None].astype(np.float32).clip(0, 255) / 255 - mean) / std

    def resize_filter(self, filters: Mapping[str, str]) -> str:
        """Returns a runtime's name for the filter of the resize.

        Raises:
            InputError: it has none.
        """
        name = self.info.interpolation
        if name not in filters:
            raise InputError(f"a graph cannot resize by {name}: give --preprocessing outside")
        return filters[name]

    def described(self) -> dict[str, str]:
        """What a graph says of itself, as text by name."""
        info = self.info
        return {
            "labels": to_json(list(info.labels)),
            "input_size": to_json(list(info.input_size)),
            "preprocessing": self.preprocessing,
            "interpolation": info.interpolation,
            "mean": to_json(list(self.mean)),
            "std": to_json(list(self.std)),
            "calibrated": to_json(info.calibration is not None),
            "weights_sha256": info.weights_sha256,
            "name": info.name,
        }

    def write(self, folder: Path) -> None:
        """Writes ``mxa.json`` into a folder that holds the graph."""
        content = {"mxa_export": _VERSION, **asdict(self)}
        content["info"]["calibration"] = self.info.calibration and asdict(self.info.calibration)
        write_text(folder / MANIFEST, to_json(content, 1) + "\n")


def read_manifest(folder: str | Path) -> Manifest:
    """Reads ``mxa.json`` and checks the files that it names.

    Raises:
        InputError: it is not there or damaged, is of another version of the format, or a file is missing or changed.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is not an exported folder: it has no {MANIFEST}; write one with mxa export")
    content = read_json(path)
    if content.pop("mxa_export", None) != _VERSION:
        raise InputError(f"{path} is not of this version of mxa: export the model again")
    try:
        found = _manifest(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): export the model again") from None
    for name, wanted in found.files.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}: export the model again")
        if digest(folder / name) != wanted:
            raise InputError(f"{folder / name} is not the file that was exported, its hash differs: export it again")
    return found


def _manifest(content: Mapping[str, Any]) -> Manifest:
    info = dict(content["info"])
    if calibration := info["calibration"]:
        info["calibration"] = Calibration(**calibration)
    labels = tuple(info["labels"])
    height, width = info["input_size"]
    sides = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
    if not labels or len(set(labels)) != len(labels) or not all(isinstance(label, str) for label in labels):
        raise ValueError("labels must be different names")
    if not sides or content["preprocessing"] not in ("inside", "outside") or content["format"] not in GRAPHS:
        raise ValueError("it names another input or format than mxa writes")
    graph = GRAPHS[content["format"]]
    if graph not in content["files"] or any(Path(name).name != name for name in content["files"]):
        raise ValueError(f"its files must be names in its folder, {graph} among them")
    info |= {"labels": labels, "input_size": (height, width)}
    numbers = {k: tuple(map(float, content[k])) for k in ("mean", "std")}
    if len(numbers["mean"]) != len(numbers["std"]) or len(numbers["mean"]) not in (1, 3) or 0.0 in numbers["std"]:
        raise ValueError("mean and std must be of one or three channels")
    return Manifest(**{**content, **numbers, "info": ModelInfo(**info)})
