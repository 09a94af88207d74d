"""Helpers for the tests of collections."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
