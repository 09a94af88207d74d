"""Models and images for the tests of explanations."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

LABELS = ("Edema", "Mass", "Pleural Effusion")


def make(name: str) -> nn.Module:
    """A fresh model in which everything counts: no weight is left at zero, and the batch statistics are real."""
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=160, num_classes=3, label_names=LABELS)
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # plain means
        model.train()(torch.randn(16, 3, 160, 160))
    return model.eval()


@pytest.fixture(scope="session")
def mxa():
    """M0 with MXA at 160 pixels: 10 x 10 cells in windows of 7, then 5 x 5 and 3 x 3."""
    return make("efficientvit_ml_m0_mxa")


@pytest.fixture(scope="session")
def plain():
    return make("efficientvit_ml_m0")


@pytest.fixture(scope="session")
def images():
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
