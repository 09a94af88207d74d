"""A model as a graph of ``torch.export`` that takes gray images and gives logits and probabilities."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.json_files import to_json
from ..utils.quiet import quiet
from .manifest import Manifest

__all__ = ["write_graph"]

_FILTERS = {"bicubic": "bicubic", "bilinear": "bilinear"}


class _FromGray(nn.Module):
    """A network from gray images of any size, or from its own input, to logits and probabilities."""

    def __init__(self, network: nn.Module, manifest: Manifest):
        super().__init__()
        self.network, self.size, self.inside = network, manifest.info.input_size, manifest.preprocessing == "inside"
        self.filter = manifest.resize_filter(_FILTERS) if self.inside else ""
        for name, value in zip(
            ("mean", "std", "temperatures"), (*manifest.mean_and_std, manifest.temperatures), strict=True
        ):
            self.register_buffer(name, torch.from_numpy(value))

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
    with quiet("torch.export"), torch.no_grad():
        program = torch.export.export(
            _FromGray(model, manifest).eval(), (images,), dynamic_shapes=(sizes,), strict=False
        )
        torch.export.save(program, path, extra_files={"mxa.json": to_json(manifest.described())})
