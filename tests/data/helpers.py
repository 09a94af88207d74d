"""Helpers for the tests of collections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mxa.data.box_files import match_boxes, read_box_table
from mxa.data.collections.nih import boxes_file
from mxa.labels import NIH

NAN = float("nan")


def counts(dataset) -> dict[str, int]:
    """Positives of each label that has any."""
    positives = (dataset.records.targets == 1).sum(0)
    return {name: int(n) for name, n in zip(dataset.labels, positives, strict=True) if n}


def column(dataset, label: str) -> np.ndarray:
    return dataset.records.targets[:, dataset.labels.index(label)]


def names(dataset) -> set[str]:
    return set(dataset.filenames(basename=True))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def boxes_of(path: Path, labels: tuple[str, ...] = NIH) -> dict[str, dict[str, np.ndarray]]:
    """A file's boxes, or those of a folder's ``BBox_List_2017.csv``, by image and label."""
    table = read_box_table(boxes_file(path) if path.is_dir() else path)
    images = sorted(set(table.images))
    found = match_boxes(table, images, labels, lambda i: pytest.fail("the file says the size"))
    return {images[i]: boxes for i, boxes in found.items()}
