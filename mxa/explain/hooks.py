"""Looking into a model as it runs: hooks and modes that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..layers import MeanROIHead, ROIHead
from .geometry import Grid

__all__ = ["evaluating", "observe", "true_gradients"]

Look = Callable[[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], Grid]], None]


def observe(model: nn.Module, images: torch.Tensor, looks: Mapping[nn.Module, Look]) -> None:
    """Runs a model once, in eval mode and without gradients, and shows what passes some of its modules.

    The grid of a map follows from the strided convolutions and poolings before it: a kernel of ``k`` with padding
    ``p`` moves the first centre by ``(k - 1) / 2 - p``. A map that was made smaller by anything else is taken to
    divide the image evenly.

    Args:
        model: The model; hooks and modes are as before afterwards.
        images: ``(B, C, H, W)``.
        looks: A function for each module to look at. It is called with the module's first input, its output, and a
            function from a map ``(B, C, h, w)`` at that place to its ``Grid``.
    """
    size = tuple(images.shape[-2:])
    now = Grid(size, (1.0, 1.0), (0.0, 0.0), size)

    def shrink(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal now
        before, after = tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:])
        if before != now.cells or before == after:
            return
        kernel, stride, padding = (_pair(getattr(module, a)) for a in ("kernel_size", "stride", "padding"))
        first = [f + s * ((k - 1) / 2 - p) for f, s, k, p in zip(now.first, now.stride, kernel, padding, strict=True)]
        now = Grid(after, tuple(a * b for a, b in zip(now.stride, stride, strict=True)), tuple(first), size)

    def grid_of(x: torch.Tensor) -> Grid:
        cells = tuple(x.shape[-2:])
        if cells == now.cells:
            return now
        even = tuple(s / c for s, c in zip(size, cells, strict=True))
        return Grid(cells, even, tuple((s - 1) / 2 for s in even), size)

    shrinking = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]
    handles = [m.register_forward_hook(shrink) for m in shrinking if _pair(m.stride) != (1, 1)]
    for module, look in looks.items():
        hook = lambda m, inputs, output, look=look: look(inputs[0], output, grid_of)  # noqa: E731
        handles.append(module.register_forward_hook(hook))
    try:
        with evaluating(model), torch.no_grad():  # not inference mode: timm's attention keeps biases between calls
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def _pair(value: int | tuple[int, int] | str) -> tuple[int, int]:
    if isinstance(value, str):  # "valid" is the only text that a strided convolution takes as its padding
        return 0, 0
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode, and each of its modules back in its own mode afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Gives the boxes of MXA their mathematical gradient: none where a corner is held at the border.

    In training the gradient passes through the clamp, so that a box can leave the border. An attribution would then
    count a movement of the box that does not happen.
    """

    def hold(_, inputs: tuple[torch.Tensor, ...], boxes: torch.Tensor) -> torch.Tensor:
        return torch.where((boxes > 0) & (boxes < 1), boxes, boxes.detach())

    heads = [m for m in model.modules() if isinstance(m, (ROIHead, MeanROIHead))]
    handles = [m.register_forward_hook(hold) for m in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
