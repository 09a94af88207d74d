"""Logits of a model over a loader."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from .errors import InputError

__all__ = ["pick_device", "predict_logits"]


def pick_device(name: str | None) -> torch.device:
    """Returns the device named, by default CUDA where there is one, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


@torch.inference_mode()
def predict_logits(model: nn.Module, loader: DataLoader, amp: bool = False) -> np.ndarray:
    """Runs a model, in eval mode and on its own device, over every image in order.

    Args:
        model: ``(B, C, H, W)`` to logits ``(B, L)``.
        loader: Over a ``CXRDataset``, not shuffled.
        amp: bfloat16 autocast.

    Returns:
        ``(N, L)`` float32.

    Raises:
        InputError: an image does not read, unless the dataset masks such images.
    """
    device = next(model.parameters()).device
    model.eval()
    logits = []
    for images, _ in loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits.append(model(images.to(device)).float().cpu())
    return torch.cat(logits).numpy()
