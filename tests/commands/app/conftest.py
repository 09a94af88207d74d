"""Models of each kind that the page shows in its own way, and X-rays."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import mxa
from mxa.deployment.export import ExportConfig, export
from mxa.layers import attach_finding_head
from mxa.models import save_pretrained
from mxa.models.hub import SHIPPED

from ...contracts import randomise

EXAMPLES = Path(__file__).parents[3] / "examples" / "images"
HEAD_LABELS = ("Cardiomegaly", "Pleural Effusion", "Mass & <b>more</b>")


@pytest.fixture(scope="session")
def film() -> Path:
    """An X-ray."""
    return EXAMPLES / "00001373_038.jpg"


@pytest.fixture(scope="session")
def png(film, tmp_path_factory) -> Path:
    """The same pixels as a PNG."""
    path = tmp_path_factory.mktemp("films") / "film.png"
    Image.open(film).convert("L").save(path)
    return path


@pytest.fixture(scope="session")
def headed(tmp_path_factory) -> Path:
    """A model with a finding head, which has no calibration."""
    folder = tmp_path_factory.mktemp("models") / "headed"
    torch.manual_seed(0)
    model = timm.create_model("efficientvit_ml_m0", num_classes=len(HEAD_LABELS))
    mxa.set_label_names(model, HEAD_LABELS)
    save_pretrained(randomise(attach_finding_head(model)), folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The small model as a graph."""
    folder = tmp_path_factory.mktemp("models") / "exported"
    export(ExportConfig(model=SHIPPED, output=folder, format="torch-export"))
    return folder
