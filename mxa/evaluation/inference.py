"""Logits of a model over a loader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..utils.errors import InputError

__all__ = ["check_finite", "predict_logits"]


@torch.inference_mode()
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
    device = next(model.parameters()).device
    model.eval()
    logits = []
    for images, _ in loader:
        with torch.autocast(device.type, amp, enabled=amp is not None):
            logits.append(model(images.to(device)).float().cpu())
    return torch.cat(logits).numpy()


def check_finite(logits: np.ndarray, labels: Sequence[str], files: Sequence[str], model: str) -> None:
    """Refuses outputs that are not finite.

    Args:
        logits: ``(N, L)``.
        labels: Names of the L outputs.
        files: Names of the N images.
        model: Name of the model.

    Raises:
        InputError: there is one; the message names the model, a label and an image.
    """
    bad = np.argwhere(~np.isfinite(logits))
    if len(bad):
        row, label = bad[0]
        raise InputError(f"{model}: {labels[label]} of {files[row]} is not a finite number: its weights are damaged")
