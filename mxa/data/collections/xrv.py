"""Reads any dataset object of TorchXRayVision."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ...utils.errors import InputError
from ..gray import as_gray
from ..records import Records
from ..views import normal_view

__all__ = ["XrvRecords", "read_xrv", "shipped_table"]


def shipped_table(name: str) -> Path:
    """Finds a table that TorchXRayVision ships, without importing it, which would silence the process's warnings."""
    return Path(find_spec("torchxrayvision").origin).parent / "data" / name


@dataclass(frozen=True)
class XrvRecords(Records):
    """Records whose images a TorchXRayVision dataset reads; ``paths`` number them."""

    dataset: Any = None

    def image(self, index: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Reads one image through the dataset and its transform, and maps [-1024, 1024] to [0, 255]."""
        number = int(self.paths[index].rpartition("-")[2])
        try:
            pixels = np.asarray(self.dataset[number]["img"], dtype=np.float32)
        except Exception as error:  # whatever their reader raises for one image
            raise InputError(f"{self.paths[index]} does not read: {error or type(error).__name__}") from None
        return as_gray((pixels.squeeze() / 1024 + 1).clip(0, 2) * 127.5)


def read_xrv(dataset: Any) -> XrvRecords:
    """Reads the labels of a TorchXRayVision dataset (any object with its ``pathologies``, ``labels`` and ``csv``).

    Its pathologies keep their names; one named ``""`` is left out. Patients, views, sexes and ages are those that
    TorchXRayVision puts into ``csv`` (``patientid``, ``view``, ``sex_male``, ``sex_female``, ``age_years``).

    Raises:
        InputError: not such a dataset, its rows and labels differ in number, or a label is out of range.
    """
    try:
        labels, csv = np.asarray(dataset.labels, dtype=np.float32), dataset.csv.reset_index(drop=True)
        names = list(dataset.pathologies)
    except AttributeError as error:
        raise InputError(f"{type(dataset).__name__} is not a TorchXRayVision dataset: {error}") from None
    if not len(csv) == len(labels) == len(dataset) or labels.shape[1] != len(names):
        raise InputError(f"{type(dataset).__name__}: its csv, labels and pathologies differ in number")
    if ((labels != -1) & ((labels < 0) | (labels > 1))).any():
        raise InputError(f"{type(dataset).__name__}: a label is neither in 0 to 1, -1 (uncertain) nor NaN")
    named = [i for i, name in enumerate(names) if name]

    def column(name: str, default: Any = "") -> pd.Series:
        return csv[name] if name in csv else pd.Series([default] * len(csv))

    paths = [f"{type(dataset).__name__}-{i}" for i in range(len(csv))]
    male, female = (column(f"sex_{sex}", False).fillna(False).astype(bool) for sex in ("male", "female"))
    return XrvRecords(
        tuple(str(names[i]) for i in named),
        paths,
        labels[:, named],
        column("patientid").astype(str).tolist() if "patientid" in csv else paths,
        views=[normal_view(str(v)) for v in column("view")],
        sexes=np.where(male, "M", np.where(female, "F", "")).astype(object),
        ages=pd.to_numeric(column("age_years", np.nan), errors="coerce"),
        dataset=dataset,
    )
