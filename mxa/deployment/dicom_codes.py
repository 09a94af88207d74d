"""Codes of findings and calls in DICOM reports: of SNOMED CT and DICOM where there are some, else of our own."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from ..labels import canonical
from ..utils.text import printable

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

__all__ = ["CALLS", "PRIVATE", "concept", "short"]

#: The coding scheme of our own codes.
PRIVATE = "99MXA"
# Findings that have a code of SNOMED CT (SCT) or of DICOM's own (DCM), by canonical name. All others are in 99MXA.
_CODES = {
    "atelectasis": ("46621007", "SCT", "Atelectasis"),
    "cardiomegaly": ("8186001", "SCT", "Cardiomegaly"),
    "clavicle fracture": ("58150001", "SCT", "Fracture of clavicle"),
    "consolidation": ("95436008", "SCT", "Lung consolidation"),
    "copd": ("13645005", "SCT", "Chronic obstructive lung disease"),
    "edema": ("19242006", "SCT", "Pulmonary edema"),
    "emphysema": ("87433001", "SCT", "Pulmonary emphysema"),
    "fibrosis": ("51615001", "SCT", "Pulmonary fibrosis"),
    "fracture": ("125605004", "SCT", "Fracture of bone"),
    "infiltration": ("112121", "DCM", "Infiltrate"),
    "lung opacity": ("112001", "DCM", "Opacity"),
    "mass": ("4147007", "SCT", "Mass"),
    "nodule": ("27925004", "SCT", "Nodule"),
    "pleural effusion": ("60046008", "SCT", "Pleural effusion"),
    "pneumonia": ("233604007", "SCT", "Pneumonia"),
    "pneumothorax": ("36118008", "SCT", "Pneumothorax"),
    "rib fracture": ("33737001", "SCT", "Fracture of rib"),
    "tuberculosis": ("56717001", "SCT", "Tuberculosis"),
}
CALLS = {
    True: ("10828004", "SCT", "Positive"),
    False: ("260385009", "SCT", "Negative"),
    None: ("82334004", "SCT", "Indeterminate"),
}


def concept(label: str) -> Code:
    """Gives the code of a label: of SNOMED CT or DICOM, or else the canonical name, hashed if it is long, in 99MXA."""
    from pydicom.sr.coding import Code

    name = canonical(label)
    if name in _CODES:
        return Code(*_CODES[name])
    value = name if re.fullmatch(r"[a-z0-9 /-]{1,16}", name) else hashlib.sha256(name.encode()).hexdigest()[:16]
    return Code(value, PRIVATE, short(label))


def short(text: str) -> str:
    """Makes text that a DICOM name or meaning can hold: one line of at most 64 characters, without backslashes."""
    return " ".join(printable(text).replace("\\", "/").split())[:64]
