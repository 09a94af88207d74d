"""Images, and the model of a few lines in place of a real one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mxa.commands.predict import files as predict_files
from mxa.deployment import runtimes

from .fake_predictor import fake_predictor


@pytest.fixture
def images(tmp_path):
    """75 images, of which two do not read; some are deeper than 8 bits."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(73):
        pixels = np.add.outer(np.arange(30), np.arange(36)) * 2 + rng.integers(0, 60)
        deep = i % 5 == 0
        Image.fromarray((pixels * 250).astype(np.uint16) if deep else pixels.astype(np.uint8)).save(
            folder / f"{i:03d}.png"
        )
    (folder / "013.png.png").write_bytes(b"no image")
    (folder / "zzz.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def faked(monkeypatch):
    """The model of a few lines, and parts of 8 images."""
    monkeypatch.setattr(runtimes, "open_predictor", fake_predictor)
    monkeypatch.setattr(predict_files, "IMAGES_OF_A_PART", 8)
