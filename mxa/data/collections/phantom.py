"""Procedural chest phantom: a seeded, download-free stand-in for a chest X-ray collection.

Prevalences are 2-30 % for each finding, 33-45 % for the parent Lung Opacity and 30-50 % for No Finding.
It teaches nothing about patients: use it to exercise code and to compare methods on known boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...labels import CHEXPERT as LABELS
from ..records import Records
from .phantom_scene import OPACITIES, SceneParams, keyed_rng, render, sigmoid
from .reader import CollectionReader

__all__ = ["Phantom", "PhantomRecords", "PhantomSample", "describe", "draw"]

COUNT = 1600
SIZE = 224

# Sampled in this order: (name, base logit, weight of the patient's severity, {earlier finding: added logit}).
_PRIORS = (
    ("Cardiomegaly", -2.1, 0.5, {}),
    ("Enlarged Cardiomediastinum", -3.1, 0.4, {"Cardiomegaly": 0.7}),
    ("Edema", -2.7, 0.7, {"Cardiomegaly": 1.3}),
    ("Pneumonia", -2.8, 0.4, {}),
    ("Consolidation", -3.0, 0.5, {"Pneumonia": 1.2}),
    ("Lung Lesion", -2.7, 0.1, {}),
    ("Pleural Effusion", -2.0, 0.6, {"Edema": 1.2, "Cardiomegaly": 0.5, "Consolidation": 0.6}),
    ("Atelectasis", -2.4, 0.4, {"Pleural Effusion": 0.9}),
    ("Fracture", -3.3, 0.2, {}),
    ("Pneumothorax", -3.1, 0.2, {"Fracture": 1.2}),
    ("Pleural Other", -3.3, 0.1, {"Pleural Effusion": 0.6}),
    ("Lung Opacity", -2.2, 0.3, {}),
    ("Support Devices", -1.5, 0.9, {"Pneumothorax": 1.0, "Edema": 0.5}),
)


@dataclass(frozen=True)
class PhantomSample:
    """One drawn radiograph.

    Attributes:
        image: (H, W) uint8, gray, air dark and bone bright.
        labels: (14,) float32, 0 or 1, in the order of `LABELS`.
        boxes: Label name -> (K, 4) float32 xyxy in [0, 1]; one entry for every positive label but No Finding. Lung
            Opacity holds its children's boxes, or its own where it stands alone.
        view: "AP" or "PA".
        patient: Number shared by the patient's one to three consecutive images.
    """

    image: np.ndarray
    labels: np.ndarray
    boxes: dict[str, np.ndarray]
    view: str
    patient: int


def describe(index: int, seed: int = 0) -> tuple[np.ndarray, int, str]:
    """Returns labels, patient and view of one image without drawing it (some 60 microseconds).

    Args:
        index: Image number, 0 or more.
        seed: Collection seed, 0 or more.

    Returns:
        (14,) float32 labels, the patient's number, and "AP" or "PA".

    Raises:
        ValueError: If `index` or `seed` is negative.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must be 0 or more, got {index} and {seed}")
    block, place = divmod(index, 6)
    patient = 3 * block + ((0, 1, 1, 2, 2, 2), (0, 0, 1, 2, 2, 2), (0, 0, 0, 1, 2, 2))[block % 3][place]
    rng = keyed_rng(seed, 0, index)
    severity = 0.7 * keyed_rng(seed, 1, patient).standard_normal() + 0.7 * rng.standard_normal()
    chance = rng.random(len(_PRIORS) + 1)
    view = "AP" if chance[-1] < sigmoid(0.2 + 0.8 * severity) else "PA"
    found: set[str] = set()
    for p, (name, logit, weight, raised_by) in zip(chance[:-1], _PRIORS, strict=True):
        logit += weight * severity + sum(more for other, more in raised_by.items() if other in found)
        if p < sigmoid(logit) or (name == "Lung Opacity" and found.intersection(OPACITIES)):
            found.add(name)
    if not found - {"Support Devices"}:
        found.add("No Finding")
    return np.array([name in found for name in LABELS], np.float32), patient, view


def draw(index: int, size: int = 224, seed: int = 0) -> PhantomSample:
    """Draws image number `index` of the collection `seed`.

    The same arguments give the same sample; labels and boxes don't depend on `size`.

    Args:
        index: Image number, 0 or more.
        size: Side of the square image in pixels, 32 or more.
        seed: Collection seed, 0 or more.

    Returns:
        The image with its labels, boxes, view and patient.

    Raises:
        ValueError: If `index` or `seed` is negative or `size` is below 32.
    """
    if size < 32:
        raise ValueError(f"size must be 32 or more, got {size}")
    labels, patient, view = describe(index, seed)
    findings = {name for name, on in zip(LABELS, labels, strict=True) if on} - {"No Finding"}
    image, boxes = render(SceneParams(index, seed, patient, view), findings, size)
    return PhantomSample(image, labels, boxes, view, patient)


@dataclass(frozen=True)
class PhantomRecords(Records):
    """Records whose images are drawn when they are read; ``paths`` name them by number."""

    def image(self, index: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Draws one image, gray, of ``SIZE`` pixels a side."""
        return Image.fromarray(draw(int(self.paths[index].rpartition("-")[2]), SIZE).image)


class Phantom(CollectionReader):
    """``COUNT`` drawn phantoms; 20 % of the patients test, 10 % validate."""

    test_percent = 20

    def read(self, root: Path | None = None, split: str | None = None) -> PhantomRecords:
        """See ``CollectionReader.read``; no file is read."""
        rows = [describe(i) for i in range(COUNT)]
        return PhantomRecords(
            LABELS,
            [f"phantom-{i:05d}" for i in range(COUNT)],
            np.stack([labels for labels, _, _ in rows]),
            [str(patient) for _, patient, _ in rows],
            views=[view for _, _, view in rows],
        )
