"""VinDr-CXR (Nguyen et al., 2022), as PhysioNet and as Kaggle publish it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ...labels import VINDR, align, canonical
from ...utils.errors import InputError
from ..records import Records
from ..tables import find_table, has_table, read_header, read_table_file
from .image_paths import with_suffixes
from .reader import CollectionReader

__all__ = ["VinDr"]


class VinDr(CollectionReader):
    """The folder with ``annotations/image_labels_train.csv`` and ``..._test.csv``, or Kaggle's ``train.csv``.

    Three radiologists read each training image. A label that most of them gave is positive, one that fewer gave is
    uncertain, and one that none gave is negative; so U-Ones means "any reader" and U-Zeros "most readers". A test image
    has one row, the consensus of five. Images lie in ``train/`` and ``test/``, as DICOM, PNG or JPEG. Patients are not
    published: every image counts as a patient of its own.
    """

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        root = Path(root)
        folder = root / "annotations" if (root / "annotations").is_dir() else root
        files = {split: f"image_labels_{split}.csv" for split in ("train", "test")}
        tables = {split: _physionet(find_table(folder, f)) for split, f in files.items() if has_table(folder, f)}
        if not tables:
            tables = {"train": _kaggle(find_table(root, "train.csv"))}
        cells = pd.concat(tables.values())
        splits = [split for split, rows in tables.items() for _ in range(len(rows))]
        names = cells.index.tolist()
        paths = [
            path
            for split, rows in tables.items()
            for path in with_suffixes(root, [f"{split}/{name}" for name in rows.index], ".dicom")
        ]
        return Records(tuple(cells.columns), paths, cells.to_numpy(np.float32), names, splits=splits, root=str(root))


def _physionet(path: Path) -> pd.DataFrame:
    header = read_header(path)
    labels = {name: VINDR[i] for name, i in zip(header, align(VINDR, header), strict=True) if i is not None}
    if not labels:
        raise InputError(f"{path} has none of VinDr's labels")
    table = read_table_file(path, ("image_id",), tuple(labels), ("rad_id",))
    shares = table.groupby("image_id", sort=True)[list(labels)].mean().rename(columns=labels)
    return _cells(shares)


def _kaggle(path: Path) -> pd.DataFrame:
    table = read_table_file(path, ("image_id", "class_name", "rad_id")).drop_duplicates()
    names = {canonical(name): name for name in VINDR}
    if unknown := [c for c in table["class_name"].unique() if canonical(c) not in names]:
        raise InputError(f"{path}: unknown class {', '.join(unknown)}")
    readers = table.groupby("image_id")["rad_id"].nunique()
    votes = table.groupby(["image_id", "class_name"])["rad_id"].nunique().unstack(fill_value=0)
    shares = votes.div(readers, axis=0)
    return _cells(shares.rename(columns={c: names[canonical(c)] for c in shares}))


def _cells(shares: pd.DataFrame) -> pd.DataFrame:
    """Turns the share of readers who gave a label into 1 (most), -1 (fewer) or 0 (none), in VinDr's order of labels."""
    cells = pd.DataFrame(np.where(shares > 0.5, 1, np.where(shares > 0, -1, 0)), shares.index, shares.columns)
    return cells[[name for name in VINDR if name in cells]].astype(np.float32)
