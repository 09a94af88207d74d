"""A model as a graph of ``torch.export`` that takes gray images and gives logits and probabilities."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.json_files import to_json
from .manifest import Manifest
from .onnx_graph import described, resize_filter

__all__ = ["write_graph"]

_FILTERS = {"bicubic": "bicubic", "bilinear": "bilinear"}


class _FromGray(nn.Module):
    """A network from gray images of any size, or from its own input, to logits and probabilities."""

    def __init__(self, network: nn.Module, manifest: Manifest):
        super().__init__()
        info, calibration = manifest.info, manifest.info.calibration
        self.network, self.size, self.inside = network, info.input_size, manifest.preprocessing == "inside"
        self.filter = resize_filter(manifest, _FILTERS) if self.inside else ""
        temperatures = [calibration.temperatures.get(label, 1.0) if calibration else 1.0 for label in info.labels]
        self.register_buffer("temperatures", torch.tensor(temperatures))
        self.register_buffer("mean", torch.tensor(manifest.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(manifest.std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = images
        if self.inside:  # Pillow resizes the rows, rounds, then resizes the columns
            x = x.float()
            for size in ((x.shape[2], self.size[1]), self.size):
                x = F.interpolate(x, size, mode=self.filter, antialias=True).clamp(0, 255).round()
            x = (x / 255 - self.mean) / self.std
        logits = self.network(x)
        return logits, torch.sigmoid(logits / self.temperatures)


def write_graph(model: nn.Module, input_size: tuple[int, ...], manifest: Manifest, path: Path) -> None:
    """Traces a model, for any batch and size of the images, and writes it.

    Args:
        model: In eval mode; best what ``deploy`` made of it.
        input_size: (C, H, W).
        manifest: What is written into the file, and which preprocessing it gets.
        path: The file.

    Raises:
        InputError: the preprocessing cannot be in the graph.
    """
    dim = torch.export.Dim
    sizes, images = {0: dim("batch", min=1)}, torch.zeros(2, *input_size)
    if manifest.preprocessing == "inside":
        sizes |= {2: dim("height", min=8, max=16384), 3: dim("width", min=8, max=16384)}
        images = torch.zeros(2, 1, 301, 287, dtype=torch.uint8)
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.export.export(
            _FromGray(model, manifest).eval(), (images,), dynamic_shapes=(sizes,), strict=False
        )
        torch.export.save(program, path, extra_files={"mxa.json": to_json(described(manifest))})
