"""The regions of interest that a model's MXA blocks look at (paper, figure I.1)."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..errors import InputError, require
from ..layers import MeanROIHead, ROIHead

__all__ = ["draw_rois", "predict_rois"]


@torch.inference_mode()
def predict_rois(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Runs a model and collects the box of every ROI head, through hooks.

    A cell of a map stands for the input around its centre: the first cell's centre is the first pixel, and each
    further one lies ``stride`` pixels on. The boxes are in those input coordinates, clamped to the image.

    Args:
        model: A model with MXA.
        images: ``(B, C, H, W)``.

    Returns:
        Module name of each head to its boxes ``(B, 4)``, ``x1, y1, x2, y2`` in [0, 1] of the input image.

    Raises:
        InputError: the model has no ROI head.
    """
    heads = {name: m for name, m in model.named_modules() if isinstance(m, (ROIHead, MeanROIHead))}
    if not heads:
        raise InputError("the model has no MXA block: choose one of the _mxa models")
    found: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def collect(module: nn.Module, inputs: tuple[torch.Tensor], boxes: torch.Tensor) -> None:
            cells = inputs[0].shape[-2:]
            found[name] = _to_image(boxes, cells, images.shape[-2:]).cpu()

        return collect

    handles = [m.register_forward_hook(hook(name)) for name, m in heads.items()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _to_image(boxes: torch.Tensor, cells: torch.Size, size: torch.Size) -> torch.Tensor:
    """Boxes in [0, 1] of a map of ``cells`` (H, W) to [0, 1] of the image of ``size`` (H, W) it was made from."""
    stride = [2 ** round(torch.tensor(s / c).log2().item()) for c, s in zip(cells, size, strict=True)]
    corners = []
    for i, corner in enumerate(boxes.unbind(1)):
        axis = 1 - i % 2  # x is the second axis
        pixel = (corner * cells[axis] - 0.5) * stride[axis] + 0.5
        corners.append((pixel / size[axis]).clamp(0, 1))
    return torch.stack(corners, dim=1)


def draw_rois(image: Image.Image, rois: dict[str, torch.Tensor], path: str | Path, title: str = "") -> None:
    """Draws the boxes of one image, a colour a stage, and writes a PNG.

    Args:
        image: The X-ray.
        rois: From ``predict_rois``; the first box of each head is drawn.
        path: The file to write.
        title: Written above the image.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    require("matplotlib", "explain")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    width, height = image.size
    figure = Figure(figsize=(6, 6 * height / width + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(image.convert("F"), cmap="gray", vmin=0, vmax=255)
    colours, styles = ("#ffd23f", "#3bceac", "#ff5d8f", "#7aa2ff"), ("-", "--", ":", "-.")
    stages = sorted({_stage(name) for name in rois})
    for name, boxes in rois.items():
        x1, y1, x2, y2 = boxes[0].tolist()
        stage = stages.index(_stage(name))
        label = f"{_stage(name)}, block {int(name.split('.')[3]) + 1}" if name.startswith("stages.") else name
        rectangle = Rectangle(
            (x1 * width, y1 * height),
            (x2 - x1) * width,
            (y2 - y1) * height,
            fill=False,
            linewidth=2,
            edgecolor=colours[stage % 4],
            linestyle=styles[stage % 4],
            label=label,
        )
        axes.add_patch(rectangle)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the picture {path}: {error}") from None


def _stage(name: str) -> str:
    parts = name.split(".")
    return f"stage {int(parts[1]) + 1}" if parts[0] == "stages" else parts[0]
