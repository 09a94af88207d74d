"""Networks, images and inputs of the tests of teachers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from mxa import set_label_names
from mxa.data.transforms import ToXrayTensor
from mxa.labels import CHEXPERT

IMAGENET = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
#: The student's names of the 11 outputs that ``chex`` was trained for, by its own names.
TRAINED = {name: name for name in CHEXPERT if name not in ("No Finding", "Pleural Other", "Support Devices")} | {
    "Pleural Effusion": "Effusion"
}


def file_of(home: Path, name: str) -> Path:
    return next((home / ".torchxrayvision" / "models_data").glob(f"{name}-*"))


def gray(size: int = 224, count: int = 2) -> np.ndarray:
    """Images ``(B, H, W)``, uint8, with black and white in each."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = 0, 255
    return images


def batch(images: np.ndarray, cfg=IMAGENET) -> torch.Tensor:
    """What a student of this configuration sees, ``(B, C, H, W)``."""
    return ToXrayTensor(cfg["mean"], cfg["std"]).normalize(torch.from_numpy(images)[:, None])


def xrv_input(images: np.ndarray) -> torch.Tensor:
    from torchxrayvision.datasets import normalize

    return torch.from_numpy(np.stack([normalize(image, 255) for image in images]))[:, None]


def named(count: int = 3, **kwargs) -> nn.Module:
    """A small timm model with names."""
    model = timm.create_model("test_convnext", num_classes=count, **kwargs).eval()
    set_label_names(model, ("Edema", "Mass", "Pleural Effusion", "Fracture")[:count])
    return model
