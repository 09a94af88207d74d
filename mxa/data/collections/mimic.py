"""MIMIC-CXR-JPG (Johnson et al., 2019) and MIMIC-CXR (DICOM) in their published layout."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pandas as pd

from ...labels import CHEXPERT
from ...utils.errors import InputError
from ..records import Records
from ..tables import find_home, find_table, read_table_file
from ..views import normal_view
from .image_paths import with_suffixes
from .reader import CollectionReader

__all__ = ["Mimic", "MimicNegBio"]

_SPLITS = {"train": "train", "validate": "val", "test": "test"}


class Mimic(CollectionReader):
    """The folder with ``mimic-cxr-2.0.0-chexpert.csv.gz``, ``-metadata``, ``-split`` and ``files/``.

    Images lie in ``files/p10/p10000032/s50414267/<dicom_id>.jpg``, or ``.dcm``, ``.png`` and so on. The official split
    is kept; its ``validate`` is ``"val"``. Studies without a row in the label table (no report) are left out.
    """

    labeler: ClassVar[str] = "chexpert"

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        keys = ["subject_id", "study_id"]
        root = find_home(root, f"mimic-cxr-*-{self.labeler}.csv")
        label_path = find_table(root, f"mimic-cxr-*-{self.labeler}.csv")
        split_path = find_table(root, "mimic-cxr-*-split.csv")
        labels = read_table_file(label_path, keys, CHEXPERT)
        images = read_table_file(find_table(root, "mimic-cxr-*-metadata.csv"), ("dicom_id", *keys, "ViewPosition"))
        splits = read_table_file(split_path, ("dicom_id", "split"))
        if unknown := set(splits["split"]) - set(_SPLITS):
            raise InputError(f"{split_path}: unknown split {', '.join(unknown)}")
        if labels.duplicated(keys).any():
            raise InputError(f"{label_path} has more than one row of a study")
        images = images.merge(splits.drop_duplicates("dicom_id"), on="dicom_id", how="left").merge(labels, on=keys)
        if images.empty:
            raise InputError(f"{label_path} and the metadata beside it have no study in common")
        subjects, studies = images["subject_id"].tolist(), images["study_id"].tolist()
        rows = zip(subjects, studies, images["dicom_id"], strict=True)
        stems = [f"files/p{p[:2]}/p{p}/s{s}/{d}" for p, s, d in rows]
        return Records(
            CHEXPERT,
            with_suffixes(root, stems, ".jpg"),
            images[list(CHEXPERT)].to_numpy(),
            subjects,
            studies=studies,
            views=[normal_view(v) for v in images["ViewPosition"]],
            splits=["" if pd.isna(name) else _SPLITS.get(name, "") for name in images["split"]],
            root=str(root),
        )


class MimicNegBio(Mimic):
    """MIMIC-CXR-JPG with the labels of ``mimic-cxr-2.0.0-negbio.csv.gz``."""

    labeler = "negbio"
