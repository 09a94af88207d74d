"""Logits of a model over a loader."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

__all__ = ["predict_logits"]


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
