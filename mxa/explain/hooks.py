"""Looking into a model as it runs: hooks and modes that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..layers import MeanROIHead, ROIHead
from ..layers.grid import Grid, tracked_grids

__all__ = ["evaluating", "observe", "true_gradients"]

Look = Callable[[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], Grid]], None]


def observe(model: nn.Module, images: torch.Tensor, looks: Mapping[nn.Module, Look]) -> None:
    """Runs a model once, in eval mode and without gradients, and shows what passes some of its modules.

    Args:
        model: The model; hooks and modes are as before afterwards.
        images: ``(B, C, H, W)``.
        looks: A function for each module to look at. It is called with the module's first input, its output, and a
            function from a map ``(B, C, h, w)`` at that place to its ``Grid`` (see ``tracked_grids``).
    """
    with tracked_grids(model, (images.shape[-2], images.shape[-1])) as grid_of:
        handles = []
        for module, look in looks.items():
            hook = lambda m, inputs, output, look=look: look(inputs[0], output, grid_of)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
        try:
            with evaluating(model), torch.no_grad():  # not inference mode: timm's attention keeps biases between calls
                model(images)
        finally:
            for handle in handles:
                handle.remove()


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

    def hold(_: nn.Module, inputs: tuple[torch.Tensor, ...], boxes: torch.Tensor) -> torch.Tensor:
        return torch.where((boxes > 0) & (boxes < 1), boxes, boxes.detach())

    heads = [m for m in model.modules() if isinstance(m, (ROIHead, MeanROIHead))]
    handles = [m.register_forward_hook(hold) for m in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
