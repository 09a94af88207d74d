"""What ``mxa export`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.config import DataConfig

__all__ = ["ExportConfig"]


@dataclass
class ExportConfig(DataConfig):
    """What is exported, and how."""

    unused = ("uncertain", "boxes")

    model: str
    """Run folder, or a timm name with weights."""
    output: Path
    """Folder to write: the graph and mxa.json."""
    format: Literal["onnx", "openvino", "torch-export"] = "onnx"
    """Format of the graph."""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """fp16 halves the file and computes in fp32; bf16 (OpenVINO) computes in bf16; int8 chooses its ranges on training
    images, and is scored on validation patients."""
    preprocessing: Literal["inside", "outside"] = "inside"
    """inside: the graph takes uint8 gray of any size. outside: it takes the resized and normalised input."""
    max_drop: float = 0.005
    """Most that another precision may lose of the macro AUC of the validation patients."""
    overwrite: bool = False
    """Replace what an earlier export wrote there."""
