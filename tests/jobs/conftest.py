import csv

import numpy as np
import pytest
from PIL import Image

from mxa.train import TrainConfig, train

LABELS = ("Edema", "Mass", "Bright")


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A table of 48 tiny images, two a patient; Bright can be seen, Mass is always 0, some Edema cells are blank."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "patient", "view", "split", *LABELS))
        for i in range(48):
            bright = int(rng.random() < 0.5)
            pixels = rng.integers(0, 60, (40, 48)) + 120 * bright
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
            edema = ("", "0", "1")[i % 3]
            split = ("train", "train", "val", "test")[i // 2 % 4]
            writer.writerow((f"{i}.png", f"p{i // 2}", ("AP", "PA")[i % 2], split, edema, 0, bright))
    return folder / "table.csv"


@pytest.fixture
def config(table, tmp_path):
    """Builds a small training configuration; fields can be overridden."""

    def build(**fields) -> TrainConfig:
        small = {
            "model": "efficientvit_ml_m0_mxa",
            "data": "table",
            "root": table,
            "img_size": 64,
            "epochs": 2,
            "batch_size": 8,
            "workers": 0,
            "output": tmp_path / "run",
        }
        return TrainConfig(**{**small, **fields})

    return build


@pytest.fixture(scope="session")
def run(table, tmp_path_factory):
    """A run folder whose model tells bright from dark."""
    output = tmp_path_factory.mktemp("trained") / "run"
    small = {"data": "table", "root": table, "img_size": 64, "batch_size": 8, "workers": 0}
    train(TrainConfig(model="efficientvit_ml_m0_mxa", epochs=6, output=output, **small))
    return output
