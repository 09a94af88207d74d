"""Shared fixtures: real X-rays beside the repository, tiny made collections and runs, and a Hub on a local port."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image

import mxa
from mxa.labels import CHEXPERT
from mxa.models import hub as weights
from mxa.models import save_pretrained
from mxa.train import TrainConfig, train
from mxa.utils.files import digest

from .contracts import randomise
from .hub_server import Hub

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
        rows, splits = [], {"train_val": [], "test": []}
        for i in range(24):
            patient = NIH_PATIENTS[i // 3]
            name = f"{patient:08d}_{i % 3:03d}.png"
            _write_noise(root / "images" / name, i)
            view = ("PA", "AP")[i % 2]
            rows.append((name, NIH_FINDINGS[i % 5], i % 3, patient, 60, "F", view, 2048, 2500, 0.171, 0.171))
            splits["test" if patient in (6, 7) else "train_val"].append(name)
        _write_csv(root / "Data_Entry_2017.csv", NIH_HEADER, rows)
        if lists:
            for split, names in splits.items():
                (root / f"{split}_list.txt").write_text("\n".join(names))
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
        for split, patients in (("train", CHEXPERT_PATIENTS), ("valid", (64541, 64542))):
            rows = []
            for i in range(3 * len(patients)):
                view = ("AP", "PA", "")[i % 3]
                kind = "Frontal" if view else "Lateral"
                inside = f"{split}/patient{patients[i // 3]:05d}/study{i % 3 + 1}/view1_{kind.lower()}.jpg"
                _write_noise(root / inside, i)
                labels = [turn[(i + j) % 4] for j in range(14)]
                rows.append((f"CheXpert-v1.0-small/{inside}", "Male", 60, kind, view, *labels))
            if cells and split == "train":
                rows = [(*rows[3 * i][:5], *row) for i, row in enumerate(cells)]
            _write_csv(root / f"{split}.csv", CHEXPERT_HEADER, rows)
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


TABLE_LABELS = ("Edema", "Mass", "Bright")


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A table of 48 tiny images, two a patient; Bright can be seen, Mass is always 0, some Edema cells are blank."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "patient", "view", "split", *TABLE_LABELS))
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


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Leaves the pictures of a report empty: drawing them takes most of the time of a test of something else."""
    monkeypatch.setattr("mxa.evaluation.report.plots.encode", lambda figure: "")


@pytest.fixture
def crossings(monkeypatch) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Device, type and shape of all images that ``Tensor.to`` has moved."""
    seen, to = [], torch.Tensor.to

    def watched(tensor, *args, **kwargs):
        moved = to(tensor, *args, **kwargs)
        if tensor.ndim == 4 and tensor.shape[-1] > 16:  # neither weights nor statistics
            seen.append((moved.device.type, tensor.dtype, tuple(tensor.shape)))
        return moved

    monkeypatch.setattr(torch.Tensor, "to", watched)
    return seen


HUB_NAME = "efficientvit_ml_m0_mxa.chexpert"
HUB_REPO = f"lab/{HUB_NAME}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server; this process's client asks it, with a cache of its own and no token."""
    server = Hub()
    for name in ("HF_TOKEN", "MXA_HUB_ORG", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    yield server
    server.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder of weights for CheXpert."""
    folder = tmp_path_factory.mktemp("weights") / "m0"
    model = randomise(timm.create_model("efficientvit_ml_m0_mxa"))
    mxa.set_label_names(model, mxa.labels.CHEXPERT)
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def published(hub, trained, monkeypatch):
    """The weights on the Hub, and a manifest and a configuration that name them."""
    commit = hub.push(HUB_REPO, trained)
    path = trained / "model.safetensors"
    known = {"repo": HUB_REPO, "revision": commit, "sha256": digest(path), "size": path.stat().st_size}
    entry = {**weights.manifest()[HUB_NAME], **known}
    monkeypatch.setitem(weights.manifest(), HUB_NAME, entry)
    return {"hf_hub_id": f"{HUB_REPO}@{commit}", "hf_hub_filename": "model.safetensors"}


@pytest.fixture
def python(hub, tmp_path):
    """Starts Python processes whose client asks the server."""

    def start(code: str, **env) -> subprocess.Popen:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", **env}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MXA_"))}
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={**clean, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Finds a program of Debian's, or skips the test; where everything must be there, it fails."""
    packages = {"dciodvfy": "dicom3tools", "Orthanc": "orthanc", "chromium": "chromium"}

    def find(name: str) -> str:
        first = "/usr/bin:/usr/sbin"  # pynetdicom has a storescu too
        path = shutil.which(name, path=f"{first}:{os.environ.get('PATH', '')}")
        if path is None:
            reason = f"needs {name}: apt-get install {packages.get(name, 'dcmtk')}"
            (pytest.fail if os.environ.get("MXA_REQUIRE_DATA") else pytest.skip)(reason)
        return path

    return find
