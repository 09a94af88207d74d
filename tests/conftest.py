"""Shared fixtures: the real X-rays beside the repository, and tiny made collections in the published layouts."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mxa.labels import CHEXPERT

DATA = Path(os.environ.get("MXA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def _real(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        reason = f"needs the X-rays of {folder}: set MXA_DATA to the folder that holds {name}"
        (pytest.fail if os.environ.get("MXA_REQUIRE_DATA") else pytest.skip)(reason)
    return folder


@pytest.fixture(scope="session")
def nih_sample() -> Path:
    """713 images of 488 patients, no lists."""
    return _real("nih-sample")


@pytest.fixture(scope="session")
def nih_8k() -> Path:
    """7,992 images of 2,173 patients, with lists."""
    return _real("nih-8k")


@pytest.fixture(scope="session")
def nih_boxes() -> Path:
    """594 images with boxes; its training list is empty."""
    return _real("nih-boxes")


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _write_noise(path: Path, seed: int, size: tuple[int, int] = (40, 44)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(path)


NIH_HEADER = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"),
    *("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"),
)
NIH_PATIENTS = (1, 2, 3, 4, 5, 6, 7, 21)  # 3 validates
NIH_FINDINGS = ("No Finding", "Effusion", "Cardiomegaly|Edema", "Effusion|Infiltration", "No Finding")


@pytest.fixture
def made_nih(tmp_path) -> Callable[..., Path]:
    """Writes a folder in NIH layout: 24 images of noise, three of each of 8 patients, findings in turn, PA and AP.

    With ``lists``, the patients 6 and 7 are the test list and the rest the training list.
    """

    def make(lists: bool = False) -> Path:
        root = tmp_path / "nih"
        rows, parts = [], {"train_val": [], "test": []}
        for i in range(24):
            patient = NIH_PATIENTS[i // 3]
            name = f"{patient:08d}_{i % 3:03d}.png"
            _write_noise(root / "images" / name, i)
            view = ("PA", "AP")[i % 2]
            rows.append((name, NIH_FINDINGS[i % 5], i % 3, patient, 60, "F", view, 2048, 2500, 0.171, 0.171))
            parts["test" if patient in (6, 7) else "train_val"].append(name)
        _write_csv(root / "Data_Entry_2017.csv", NIH_HEADER, rows)
        if lists:
            for part, names in parts.items():
                (root / f"{part}_list.txt").write_text("\n".join(names))
        return root

    return make


CHEXPERT_HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT)
CHEXPERT_PATIENTS = (1, 2, 3, 4, 5, 6, 7, 8)  # 6 validates


@pytest.fixture
def made_chexpert(tmp_path) -> Callable[..., Path]:
    """Writes a folder in CheXpert layout: three JPEGs a patient (AP, PA, lateral), 8 training and 2 valid patients.

    A cell of row i and label j is blank, negative, uncertain or positive in turn: ``(i + j) % 4``. ``cells`` replaces
    every row of ``train.csv`` by a row of label cells for each frontal image of a patient of its own.
    """
    turn = ("", "0.0", "-1.0", "1.0")

    def make(cells: list[list[str]] | None = None) -> Path:
        root = tmp_path / "chexpert"
        for part, patients in (("train", CHEXPERT_PATIENTS), ("valid", (64541, 64542))):
            rows = []
            for i in range(3 * len(patients)):
                view = ("AP", "PA", "")[i % 3]
                kind = "Frontal" if view else "Lateral"
                inside = f"{part}/patient{patients[i // 3]:05d}/study{i % 3 + 1}/view1_{kind.lower()}.jpg"
                _write_noise(root / inside, i)
                labels = [turn[(i + j) % 4] for j in range(14)]
                rows.append((f"CheXpert-v1.0-small/{inside}", "Male", 60, kind, view, *labels))
            if cells and part == "train":
                rows = [(*rows[3 * i][:5], *row) for i, row in enumerate(cells)]
            _write_csv(root / f"{part}.csv", CHEXPERT_HEADER, rows)
        return root

    return make


@pytest.fixture
def made_table(tmp_path) -> Callable[..., Path]:
    """Writes a table of 24 images of 12 patients with the labels Edema, Mass and Effusion; returns the CSV.

    Edema alternates, Mass is blank, 0 and 1 in turn, Effusion is uncertain in every fourth row and else 1. ``without``
    leaves out columns (``patient``, ``view``, ``split``).
    """

    def make(without: tuple[str, ...] = ()) -> Path:
        path = tmp_path / "table" / "table.csv"
        rows = []
        for i in range(24):
            _write_noise(path.parent / "files" / f"{i}.png", i)
            split = ("train", "train", "val", "test")[i // 2 % 4]
            view = ("AP", "PA", "lateral")[i % 3]
            labels = {"Edema": i % 2, "Mass": ("", 0, 1)[i % 3], "Effusion": 1 if i % 4 else -1}
            rows.append({"path": f"files/{i}.png", "patient": f"p{i // 2}", "view": view, "split": split, **labels})
        header = [name for name in rows[0] if name not in without]
        _write_csv(path, header, [[row[name] for name in header] for row in rows])
        return path

    return make
