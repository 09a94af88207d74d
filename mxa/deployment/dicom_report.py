"""What a model says of a DICOM image, as a Structured Report and a Secondary Capture image of the same study."""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.dicom import is_dicom, load_tags, sealed
from ..utils.errors import InputError, require
from ..utils.files import atomic_write
from ..utils.json_files import to_json
from ..utils.text import printable
from .dicom_codes import CALLS, PRIVATE, concept, short

if TYPE_CHECKING:
    from highdicom.sr import MeasurementReport
    from pydicom import Dataset

    from ..evaluation.calibrate import Calibration

__all__ = [
    "Finding",
    "ModelIdentity",
    "calibration_name",
    "check_source",
    "findings_of",
    "secondary_capture_image",
    "structured_report",
    "write_dicom",
    "write_outputs",
]

# What the standard requires of every object about its patient and study (types 1 and 2), and no more.
_PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_SIZE = ("Rows", "Columns")
_REPORT_SERIES, _PICTURE_SERIES = 9001, 9002


@dataclass(frozen=True)
class Finding:
    """One label of one image.

    Attributes:
        label: Its name.
        probability: 0 to 1.
        positive: The call; None where it is undecided. It counts where the model has a calibration.
        box: Where it is: ``x1, y1, x2, y2`` in [0, 1] of the image.

    Raises:
        InputError: the probability or the box is out of range.
    """

    label: str
    probability: float
    positive: bool | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"the probability of {self.label} must be a number of 0 to 1")
        if self.box is not None:
            x1, y1, x2, y2 = self.box
            if not (-1e-3 <= x1 <= x2 <= 1.001 and -1e-3 <= y1 <= y2 <= 1.001):  # float32 may be a little outside
                raise InputError(f"the box of {self.label} must be x1, y1, x2, y2 in [0, 1], corners in order")


@dataclass(frozen=True)
class ModelIdentity:
    """What made the findings.

    Attributes:
        name: Of the model.
        version: Of mxa.
        weights_sha256: Hash of its weights.
        calibration: What the calls are made with, from ``calibration_name``; ``""`` where there are no calls.
    """

    name: str
    version: str
    weights_sha256: str
    calibration: str = ""

    def uid(self, kind: str, of: str = "") -> str:
        """Derives a UID from the weights' hash, the calibration, a kind and another UID: always the same for the same.

        It is the version 5 UUID of these texts under the root 2.25, as the standard lets UIDs be made (PS3.5 B.2).
        """
        text = "/".join((PRIVATE, of, self.weights_sha256, self.calibration, kind))
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


def calibration_name(calibration: Calibration, point: str) -> str:
    """Names an operating point and the calibration that it is of: the same text wherever the calibration is kept."""
    content = to_json([sorted(part.items()) for part in (calibration.temperatures, calibration.thresholds[point])])
    return f"{point}, sha256 {hashlib.sha256(content.encode()).hexdigest()}"


def check_source(path: str | Path) -> None:
    """Refuses a file of which no report can be made because it is no DICOM.

    Raises:
        InputError: it is not.
    """
    if not is_dicom(path):
        raise InputError(f"{path} is no DICOM file: a report needs the patient and study of one")


def structured_report(
    source: str | Path, findings: Sequence[Finding], model: ModelIdentity, warning: str = ""
) -> Dataset:
    """Makes the Structured Report of an image: a Comprehensive SR of template TID 1500, in the image's study.

    Each finding is a measurement group: its code, the label as the tracking identifier, the probability, the call where
    the model has a calibration, the model as algorithm identification, and its box as a rectangle (a closed POLYLINE)
    in the image's pixels, or else a reference to the image. The same image, weights and calibration give the same UIDs.

    Args:
        source: The DICOM image.
        findings: At least one.
        model: What made them.
        warning: Why the image may be no chest radiograph; ``""`` where nothing speaks against it.

    Raises:
        InputError: no DICOM file, one that lacks a UID or the patient's ID in a valid form or is damaged, or highdicom
            is not installed.
    """
    check_source(source)
    require("highdicom.sr", "dicom")

    def make() -> Dataset:
        from highdicom.sr import ComprehensiveSR

        image = _image(source)
        return ComprehensiveSR(
            evidence=[image],
            content=_content(image, findings, model, warning),
            series_instance_uid=model.uid("report series", image.SOPInstanceUID),
            series_number=_REPORT_SERIES,
            sop_instance_uid=model.uid("report", image.SOPInstanceUID),
            instance_number=1,
            is_complete=True,
            coding_schemes=[_private_scheme()],
            **_equipment(model, "report"),
        )

    return sealed(source, make, "gives no report, a tag does not fit one")


def secondary_capture_image(source: str | Path, picture: str | Path | np.ndarray, model: ModelIdentity) -> Dataset:
    """Makes a Secondary Capture image of a drawn picture, in the study of a DICOM image.

    Args:
        source: The DICOM image.
        picture: An image file, or uint8 values ``(H, W)`` or ``(H, W, 3)``.
        model: What made the findings that are drawn.

    Raises:
        InputError: as ``structured_report``.
    """
    check_source(source)
    require("highdicom.sc", "dicom")
    pixels = picture
    if not isinstance(picture, np.ndarray):
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))

    def make() -> Dataset:
        from highdicom.sc import SCImage

        image = _image(source)
        made = SCImage(
            pixels,
            photometric_interpretation="RGB" if pixels.ndim == 3 else "MONOCHROME2",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            series_instance_uid=model.uid("picture series", image.SOPInstanceUID),
            series_number=_PICTURE_SERIES,
            sop_instance_uid=model.uid("picture", image.SOPInstanceUID),
            instance_number=1,
            **{_argument(keyword): image.get(keyword) for keyword in _PATIENT_AND_STUDY},
            **_equipment(model, "picture"),
        )
        made.PatientOrientation = made.Laterality = None  # unknown, which the standard allows and highdicom does not
        return made

    return sealed(source, make, "gives no Secondary Capture image, a tag does not fit one")


def write_dicom(dataset: Dataset, folder: Path) -> Path:
    """Writes an object into a folder, whole or not at all; its SOP instance UID is the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    atomic_write(path, lambda temporary: dataset.save_as(temporary, enforce_file_format=True))
    return path


def findings_of(row: Mapping[str, Any], boxes: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Makes the findings of a predicted image; arguments as for ``write_outputs``."""
    undecided, positive = row.get("undecided", ()), row.get("positive", ())
    return [
        Finding(label, p, None if label in undecided else label in positive, boxes.get(label))
        for label, p in row["probabilities"].items()
    ]


def write_outputs(
    row: Mapping[str, Any],
    source: str | Path,
    model: ModelIdentity,
    boxes: Mapping[str, Sequence[float]] | None = None,
    picture: str | Path | np.ndarray | None = None,
    dicom_sr: Path | None = None,
    secondary_capture: Path | None = None,
) -> list[Path]:
    """Writes what is asked for of one predicted image.

    Args:
        row: ``probabilities`` by label; ``positive`` and ``undecided``, lists of labels, where the model has a
            calibration; ``warning`` where there is one.
        source: The DICOM image.
        model: What made the row.
        boxes: ``x1, y1, x2, y2`` in [0, 1] of the image, of labels that have one.
        picture: The drawn picture, as ``secondary_capture_image`` takes it.
        dicom_sr: Folder for the Structured Report.
        secondary_capture: Folder for the Secondary Capture image.

    Returns:
        The files written.

    Raises:
        InputError: as ``structured_report``; a Secondary Capture image without a picture; a folder that is a file.
    """
    if secondary_capture and picture is None:
        raise InputError("--secondary-capture needs a drawn picture, and there is none of this model")
    for name, folder in (("dicom-sr", dicom_sr), ("secondary-capture", secondary_capture)):
        if folder and folder.exists() and not folder.is_dir():
            raise InputError(f"--{name} {folder} is a file: give a folder")
    datasets = []
    if dicom_sr:
        report = structured_report(source, findings_of(row, boxes or {}), model, row.get("warning", ""))
        datasets.append((report, dicom_sr))
    if secondary_capture:
        datasets.append((secondary_capture_image(source, picture, model), secondary_capture))
    return [write_dicom(dataset, folder) for dataset, folder in datasets]


def _image(path: str | Path) -> Dataset:
    """Loads what a report takes from an image; a value that is not valid is left empty, as the standard allows.

    Raises:
        InputError: a UID or the patient's ID is not valid, or a UID or the size is missing.
    """
    from pydicom import Dataset, config
    from pydicom.datadict import dictionary_VR
    from pydicom.multival import MultiValue
    from pydicom.uid import UID
    from pydicom.valuerep import DA, TM, validate_value

    held, image = load_tags(path, ("SpecificCharacterSet", *_PATIENT_AND_STUDY, *_UIDS, *_SIZE)), Dataset()
    for keyword in (*_PATIENT_AND_STUDY, *_UIDS):
        value, kind = held.get(keyword), dictionary_VR(keyword)
        text, checked = "" if value is None else str(value), ""
        with contextlib.suppress(Exception):
            validate_value(kind, text, config.RAISE)
            {"DA": DA, "TM": TM}.get(kind, str)(text)
            checked = "" if isinstance(value, MultiValue) else text
        missing = keyword in _UIDS and not UID(checked).is_valid
        if missing or (keyword == "PatientID" and checked != text):
            raise InputError(f"{path} has no valid {keyword}, which a report needs: export it again")
        setattr(image, keyword, checked)
    image.PatientSex = image.PatientSex if image.PatientSex in ("M", "F", "O") else ""
    for keyword in _SIZE:
        setattr(image, keyword, int(held[keyword].value))
    return image


def _argument(keyword: str) -> str:
    """Gives highdicom's name of an attribute, such as ``study_instance_uid``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", keyword).lower()


def _equipment(model: ModelIdentity, what: str) -> dict[str, Any]:
    return {
        "manufacturer": "mxa",
        "manufacturer_model_name": short(model.name),
        "software_versions": f"mxa {model.version}"[:64],
        "series_description": f"mxa {what}, research use only",
        "specific_character_set": "ISO_IR 192",  # UTF-8: labels may be in any language
    }


def _private_scheme() -> Dataset:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(PRIVATE, name="mxa", responsible_organization="mxa")


def _content(image: Dataset, findings: Sequence[Finding], model: ModelIdentity, warning: str) -> MeasurementReport:
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    device = sr.DeviceObserverIdentifyingAttributes(
        model.uid("device"), manufacturer_name="mxa", model_name=short(model.name)
    )
    report = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=Code("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[_group(image, finding, model) for finding in findings],
        title=codes.DCM.ImagingMeasurementReport,
    )
    if warning:
        contains = sr.RelationshipTypeValues.CONTAINS
        container = sr.ContainerContentItem(
            Code("C0034375", "UMLS", "Qualitative Evaluations"), relationship_type=contains
        )
        text = sr.TextContentItem(codes.DCM.Comment, f"Warning: {printable(warning)}", contains)
        container.ContentSequence = sr.ContentSequence([text])
        report[0].ContentSequence.append(container)
    return report


def _group(image: Dataset, finding: Finding, model: ModelIdentity) -> Any:
    """Makes the measurement group of a finding."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    parameters = [f"weights_sha256={model.weights_sha256}"]
    parameters += [f"calibration={model.calibration}"] if model.calibration else []
    probability = sr.Measurement(
        Code("probability", PRIVATE, "Probability"), round(float(finding.probability), 6), codes.UCUM.NoUnits
    )
    call = sr.QualitativeEvaluation(Code("call", PRIVATE, "Call"), Code(*CALLS[finding.positive]))
    shared = dict(
        tracking_identifier=sr.TrackingIdentifier(
            model.uid(f"finding {finding.label}", image.SOPInstanceUID), printable(finding.label)
        ),
        finding_type=concept(finding.label),
        algorithm_id=sr.AlgorithmIdentification(model.name, f"mxa {model.version}", parameters, manufacturer="mxa"),
        measurements=[probability],
        qualitative_evaluations=[call] if model.calibration else None,
    )
    if finding.box is None:
        origin = sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
        return sr.MeasurementsAndQualitativeEvaluations(source_images=[origin], **shared)
    x1, y1, x2, y2 = np.clip(finding.box, 0, 1) * [image.Columns, image.Rows, image.Columns, image.Rows]
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
    region = sr.ImageRegion("POLYLINE", corners, sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID))
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **shared)
