"""PadChest (Bustos et al., 2020) in its published layout."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ...labels import PADCHEST, canonical
from ..records import Records, normal_sex
from ..tables import find_home, find_table, read_table_file
from ..views import normal_view
from .reader import CollectionReader

__all__ = ["FINDINGS", "PadChest"]

_TABLES = ("PADCHEST*.csv", "padchest*.csv")
_VENOUS = ("jugular vein", "subclavian vein", "umbilical vein")

#: What each finding is made of: the label of that name and those below it in PadChest's tree. Names are compared whole:
#: a pseudonodule is not a nodule, subcutaneous emphysema is not emphysema, a mediastinal mass is not a lung mass.
FINDINGS = {
    "No Finding": ("normal",),
    "Atelectasis": (
        "atelectasis",
        "atelectasis basal",
        *(f"{kind} atelectasis" for kind in ("laminar", "lobar", "round", "segmental", "total")),
    ),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation", "air bronchogram"),
    "Edema": ("pulmonary edema",),
    "Emphysema": ("emphysema",),
    "Fibrosis": ("pulmonary fibrosis",),
    "Fracture": (
        "fracture",
        "callus rib fracture",
        *(f"{bone} fracture" for bone in ("clavicle", "humeral", "rib", "vertebral")),
    ),
    "Hernia": ("hiatal hernia",),
    "Infiltration": (
        "infiltrates",
        "interstitial pattern",
        "ground glass pattern",
        "reticular interstitial pattern",
        "reticulonodular interstitial pattern",
        "miliary opacities",
        "alveolar pattern",
        "consolidation",
        "air bronchogram",
    ),
    "Mass": ("mass", "pulmonary mass"),
    "Nodule": ("nodule", "multiple nodules"),
    "Pleural Effusion": (
        "pleural effusion",
        "loculated pleural effusion",
        "loculated fissural effusion",
        "hydropneumothorax",
        "empyema",
    ),
    "Pleural Thickening": ("pleural thickening", "apical pleural thickening", "calcified pleural thickening"),
    "Pneumonia": ("pneumonia", "atypical pneumonia"),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Support Devices": (
        *(
            "NSG tube",
            "chest drain tube",
            "endotracheal tube",
            "gastrostomy tube",
            "nephrostomy tube",
            "tracheostomy tube",
        ),
        *("ventriculoperitoneal drain tube", "double J stent", "catheter", "central venous catheter"),
        *(f"central venous catheter via {vein}" for vein in _VENOUS),
        *("reservoir central venous catheter", "electrical device", "pacemaker", "dai"),
        *("dual chamber device", "single chamber device"),
        *("artificial heart valve", "artificial aortic heart valve", "artificial mitral heart valve"),
    ),
}

_SAYS_NOTHING = frozenset(("", "nan", "exclude", "suboptimal study", "unchanged"))


class PadChest(CollectionReader):
    """The folder with ``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv`` and the images.

    Images lie in the folders ``0`` to ``54``; they may also lie flat, in the folder or in ``images/``. Beside
    ``FINDINGS`` any of PadChest's own labels can be asked for by name. If the report says only that nothing changed, or
    that the image is excluded, its cells are blank, and blank cells are masked by default. There is no official split:
    10 % of the patients test, 10 % validate.
    """

    test_percent = 10
    cut_by = PADCHEST

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        root = find_home(root, *_TABLES)
        path = find_table(root, *_TABLES)
        columns = ("ImageID", "PatientID", "Projection", "Labels")
        optional = ("ImageDir", "StudyID", "StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM")
        table = read_table_file(path, columns, (), optional)
        kinds, distinct = pd.factorize(table["Labels"])  # 160,000 rows, 24,000 texts
        said = [frozenset(name.strip() for name in re.findall(r"'([^']*)'", text)) for text in distinct]
        every = frozenset().union(*said)
        made_of = {finding: frozenset(names) for finding, names in FINDINGS.items()}
        curated = {canonical(name) for name in PADCHEST}
        own = {canonical(name): name for name in every}
        for name in self.labels or ():
            if canonical(name) not in curated and canonical(name) in own:
                made_of[name] = frozenset((own[canonical(name)],))
        cells = np.array([[not wanted.isdisjoint(names) for wanted in made_of.values()] for names in said], np.float32)
        cells[[names <= _SAYS_NOTHING for names in said]] = np.nan
        years = pd.to_numeric(table["StudyDate_DICOM"].str[:4], errors="coerce")
        return Records(
            tuple(made_of),
            _paths(root, table),
            cells[kinds],
            table["PatientID"],
            studies=table["StudyID"],
            views=map(normal_view, table["Projection"]),
            sexes=map(normal_sex, table["PatientSex_DICOM"]),
            ages=years - pd.to_numeric(table["PatientBirth"], errors="coerce"),
            blank="ignore",
            root=str(root),
        )


def _paths(root: Path, table: pd.DataFrame) -> list[str]:
    names, folders = table["ImageID"].tolist(), table["ImageDir"].tolist()
    if any(os.path.isdir(root / folder) for folder in set(folders) - {""}):
        return [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    return [f"images/{name}" for name in names] if (root / "images").is_dir() else names
