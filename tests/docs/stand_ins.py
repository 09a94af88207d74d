"""Small stand-ins for what the pages call NIH, my.csv, xray.dcm, runs/a and so on."""

from __future__ import annotations

import csv
import runpy
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from mxa.data.collections.phantom import PhantomSample, describe
from mxa.train import TrainConfig, train

from .pages import ROOT

write_dicom = runpy.run_path(str(ROOT / "examples" / "draw_films.py"))["write_dicom"]


def noise(number: int, size: int = 32) -> PhantomSample:
    """A phantom's labels and patient with a picture of noise: drawing takes long."""
    labels, patient, view = describe(number)
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
    return PhantomSample(pixels, labels, {}, view, patient)


FILM = ROOT / "examples" / "images" / "00001373_038.jpg"


def write_stage(folder: Path, nih: Path, chexpert: Path) -> None:
    """Fills ``folder``, where a page's commands run, with what a page may take for given.

    Args:
        folder: An empty folder.
        nih: A collection in NIH's layout, which gets a list of boxes.
        chexpert: One in CheXpert's layout.
    """
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(ROOT / "docs" / "results", folder / "docs" / "results")  # a page writes into it
    images = sorted(image.name for image in (nih / "images").iterdir())
    header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")
    _write_csv(nih / "BBox_List_2017.csv", header, [(n, "Effusion", 100, 200, 300, 300, "", "", "") for n in images])
    _write_csv(folder / "theirs.csv", ("image", "Effusion"), [(name, 0.01 * i) for i, name in enumerate(images)])
    for name in ("NIH", "NIH512"):
        (folder / name).symlink_to(nih)
    for name in ("CHEXPERT", "CheXpert", "CheXpert-v1.0-small", "ROOT"):
        (folder / name).symlink_to(chexpert)
    _write_tables(folder)
    film = Image.open(FILM).convert("L")
    for name in ("xray.png", "a.png", "b.png", "b.jpg", "photo.jpg", "FILE.png"):
        film.save(folder / name)
    for name in ("xray.dcm", "film.dcm", "chest.dcm", "scan.dcm", "a.dcm"):
        write_dicom(folder / name, noise(0), 0)
    for name, count in {"films": 2, "FILMS": 40, "xrays": 2, "study": 2, "dicoms": 2}.items():
        (folder / name).mkdir()
        for number in range(count):
            write_dicom(folder / name / f"{number}.dcm", noise(number), number)


def _write_tables(folder: Path) -> None:
    """160 images of 80 patients, half of them brighter: Effusion. Every image has a box."""
    rng = np.random.default_rng(0)
    (folder / "files").mkdir()
    rows, boxes = [], []
    for i in range(160):
        bright = i // 2 % 2
        pixels = rng.integers(0, 60, (32, 36)) + 120 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "files" / f"{i}.png")
        rows.append((f"files/{i}.png", f"p{i // 2}", ("AP", "PA")[i % 2], bright, i % 2))
        boxes.append((f"files/{i}.png", ("Cardiomegaly", "Effusion")[bright], 0.1, 0.1, 0.6, 0.6))
    for name in ("my.csv", "mine.csv", "read.csv"):
        _write_csv(folder / name, ("path", "patient", "view", "Effusion", "Cardiomegaly"), rows)
    _write_csv(folder / "boxes.csv", ("path", "label", "x1", "y1", "x2", "y2"), boxes)


def _write_csv(path: Path, header: tuple, rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def small_run(root: Path, output: Path) -> Path:
    """Trains a model on a table for a moment."""
    small = {"img_size": 64, "batch_size": 16, "workers": 0, "epochs": 1, "test_fraction": 0.2}
    train(TrainConfig(model="efficientvit_ml_m0_mxa", data="table", root=root, output=output, **small))
    return output
