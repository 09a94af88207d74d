"""Logits of a model over a loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..utils.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

__all__ = ["check_finite", "predict_logits"]


def predict_logits(model: nn.Module, loader: DataLoader, amp: torch.dtype | None = None) -> np.ndarray:
    """Runs a model, in eval mode and on its own device, over every image in order.

    Args:
        model: ``(B, C, H, W)`` to logits ``(B, L)``.
        loader: Over a ``CXRDataset``, not shuffled; best of batches on the model's device (see ``make_loader``).
        amp: Type to autocast to.

    Returns:
        ``(N, L)`` float32.

    Raises:
        InputError: an image does not read, unless the dataset masks such images.
    """
    import torch

    device = next(model.parameters()).device
    model.eval()
    logits = []
    with torch.inference_mode():
        for images, _ in loader:
            with torch.autocast(device.type, amp, enabled=amp is not None):
                logits.append(model(images.to(device)).float().cpu())
    return torch.cat(logits).numpy()


def check_finite(logits: np.ndarray, labels: Sequence[str], files: Sequence[str], model: str) -> None:
    """Refuses outputs that are not finite.

    Args:
        logits: ``(N, L)``.
        labels: Names of the L outputs.
        files: Names of the N images; ``()`` where they have none.
        model: Name of the model.

    Raises:
        InputError: there is one; the message names the model, a label and an image.
    """
    bad = np.argwhere(~np.isfinite(logits))
    if len(bad):
        row, label = bad[0]
        what = f"{labels[label]} of {files[row]}" if len(files) else labels[label]
        raise InputError(f"{model}: {what} is not a finite number: its weights are damaged")
