"""Reports that dcmtk shows, that dicom3tools accepts, and that tell no more than they must."""

from __future__ import annotations

import errno
import logging
import re
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from mxa.deployment import dicom_codes
from mxa.deployment.dicom_report import (
    Finding,
    ModelIdentity,
    calibration_name,
    check_source,
    secondary_capture_image,
    structured_report,
    write_dicom,
    write_outputs,
)
from mxa.evaluation.calibrate import Calibration
from mxa.labels import CHEXPERT, LABEL_SPACES, canonical
from mxa.utils.errors import InputError
from mxa.utils.text import printable

from ..data.dicom_files import save
from .dicom_files import COLUMNS, COPIED, ROWS, write_chest

MODEL = ModelIdentity("small", "0.1.0", "ab" * 32, "youden, sha256 cd")
ODD = ("Verdichtung, groß", "a\\b\x1b[31m", "x" * 90, "=1+1")  # labels are of any language
ROW = {
    "probabilities": {label: (i + 1) / 30 for i, label in enumerate((*CHEXPERT, *ODD))},
    "positive": ["Edema", "Support Devices"],
    "undecided": ["Fracture"],
}
BOXES = {"Edema": (0.25, 0.5, 0.75, 1.0), "Pneumonia": (0.0, 0.0, 1.0000001, 0.1)}
PICTURE = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)


@pytest.fixture
def source(tmp_path):
    return write_chest(tmp_path / "chest.dcm")


def written(source, tmp_path, row=ROW, model=MODEL, boxes=BOXES):
    return write_outputs(row, source, model, boxes, PICTURE, tmp_path / "sr", tmp_path / "sc")


def groups(report):
    (measurements,) = [i for i in report.ContentSequence if name_of(i) == "Imaging Measurements"]
    return list(measurements.ContentSequence)


def name_of(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning


def inside(group, name):
    return [item for item in group.ContentSequence if name_of(item) == name]


# other programs

#: What dciodvfy warns of: the private scheme, the picture's unknown laterality, and what the image itself lacks.
KNOWN = (
    "Warning - Unrecognized defined term <99MXA>",
    "Warning - is only permitted to be empty when actually unknown",
    "Warning - Missing attribute or value that would be needed to build DICOMDIR",
    "Warning - Value dubious for this VR - (0x0010,0x0010) PN Patient's Name",  # a name of one word
)


@pytest.mark.deploy
def test_dsrdump_shows_every_finding(source, tmp_path, program):
    path = written(source, tmp_path, {**ROW, "warning": "view LL is lateral"})[0]
    shown = subprocess.run([program("dsrdump"), "+Pl", "+U8", path], capture_output=True, text=True, check=True).stdout
    for label, probability in ROW["probabilities"].items():
        part = shown.partition(f'"Tracking Identifier")="{printable(label)}">')[2].partition("Measurement Group")[0]
        assert f'"Probability")="{round(probability, 6)}" (1,UCUM,' in part, label
        call = "Positive" if label in ROW["positive"] else "Indeterminate" if label == "Fracture" else "Negative"
        assert f'SCT,"{call}")' in part
        assert f'"Algorithm Parameters")="weights_sha256={"ab" * 32}"' in part
        assert '"Algorithm Name")="small"' in part and '"Algorithm Version")="mxa 0.1.0"' in part
        assert ("POLYLINE" in part) == (label in BOXES)
    assert '"Comment")="Warning: view LL is lateral"' in shown
    assert "PRELIMINARY" in shown and "UNVERIFIED" in shown


@pytest.mark.parametrize("tags", [
    {},
    {"ViewPosition": None, "BodyPartExamined": None, "ReferringPhysicianName": "", "PatientName": "Solo"},
    {keyword: None for keyword in COPIED},
    {"StudyDate": "2020.13.99", "StudyTime": "noon", "PatientBirthDate": "19701399", "PatientSex": "weiblich"},
    {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
    {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"},
    {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
])  # fmt: skip
@pytest.mark.deploy
@pytest.mark.filterwarnings("ignore:.*value.*:UserWarning")
def test_dciodvfy_finds_no_error(tmp_path, program, tags):
    source = write_chest(tmp_path / "chest.dcm", **tags)
    for row in (ROW, {"probabilities": {"Edema": 0.5}, "warning": "modality CT is not a radiograph"}):
        model = MODEL if "positive" in row else ModelIdentity("small", "0.1.0", "ab" * 32)
        for path in written(source, tmp_path, row, model):
            said = subprocess.run([program("dciodvfy"), path], capture_output=True, text=True)
            lines = (said.stdout + said.stderr).splitlines()
            assert said.returncode == 0 and not [line for line in lines if line.startswith("Error")], lines
            assert not [line for line in lines if line.startswith("Warning") and not line.startswith(KNOWN)]


# content


def test_what_a_report_says(source, tmp_path):
    report = pydicom.dcmread(written(source, tmp_path)[0])
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (evidence,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert (evidence.ReferencedSOPInstanceUID, study.StudyInstanceUID) == ("1.2.3.1", "1.2.5.1")
    found = dict(zip(ROW["probabilities"], groups(report), strict=True))
    for label, group in found.items():
        (number,) = inside(group, "Probability")
        assert number.MeasuredValueSequence[0].NumericValue == pytest.approx(ROW["probabilities"][label], abs=1e-6)
        assert number.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "1"
        assert bool(inside(group, "Source of Measurement")) == (label not in BOXES)
    (region,) = inside(found["Edema"], "Image Region")
    corners = np.array(region.GraphicData).reshape(-1, 2)
    assert region.GraphicType == "POLYLINE" and (corners[0] == corners[-1]).all()
    assert corners.min(0).tolist() == [COLUMNS / 4, ROWS / 2] and corners.max(0).tolist() == [COLUMNS * 0.75, ROWS]
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.1"
    (region,) = inside(found["Pneumonia"], "Image Region")
    assert max(region.GraphicData) == COLUMNS  # float32's last bit is cut off


def test_there_is_no_call_without_a_calibration_and_no_comment_without_a_warning(source):
    bare = ModelIdentity("small", "0.1.0", "ab" * 32)
    report = structured_report(source, [Finding("Edema", 0.5)], bare)
    assert not inside(groups(report)[0], "Call")
    assert "Qualitative Evaluations" not in [name_of(item) for item in report.ContentSequence]


def test_codes_are_those_of_the_standard_or_private(source):
    """Those that pydicom's copy of PS3.16 has are compared with it."""
    names = {canonical(label) for space in LABEL_SPACES.values() for label in space}
    assert set(dicom_codes._CODES) <= names
    for keyword, value in {
        "PulmonaryEdema": "edema", "PleuralEffusion": "pleural effusion", "Pneumothorax": "pneumothorax",
        "Nodule": "nodule", "Mass": "mass",
    }.items():  # fmt: skip
        assert getattr(codes.SCT, keyword).value == dicom_codes._CODES[value][0]
    assert codes.DCM.Infiltrate.value == dicom_codes._CODES["infiltration"][0]
    assert codes.DCM.Opacity.value == dicom_codes._CODES["lung opacity"][0]
    calls = [getattr(codes.SCT, name).value for name in ("Positive", "Negative", "Indeterminate")]
    assert calls == [code for code, _, _ in dicom_codes.CALLS.values()]
    private = {name: dicom_codes.concept(name) for name in names | set(ODD) if name not in dicom_codes._CODES}
    assert {code.scheme_designator for code in private.values()} == {"99MXA"}
    assert len({code.value for code in private.values()}) == len(private)
    assert all(len(code.value) <= 16 and 0 < len(code.meaning) <= 64 for code in private.values())
    assert dicom_codes.concept("Effusion") == dicom_codes.concept("Pleural Effusion")


def test_a_picture_of_an_array_or_a_file(source, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "drawn.png")
    for picture in (PICTURE, tmp_path / "drawn.png", PICTURE[..., 0]):
        path = write_dicom(secondary_capture_image(source, picture, MODEL), tmp_path)
        held = pydicom.dcmread(path)
        expected = PICTURE[..., 0] if getattr(picture, "ndim", 3) == 2 else PICTURE
        assert np.array_equal(held.pixel_array, expected)
        assert held.StudyInstanceUID == "1.2.5.1" and held.SeriesInstanceUID not in ("1.2.4.1", "1.2.5.1")


# what is copied


def test_only_what_a_report_must_have_is_copied(source, tmp_path):
    for path in written(source, tmp_path):
        assert b"SECRET" in source.read_bytes() and b"SECRET" not in path.read_bytes()
        held = pydicom.dcmread(path)
        assert {keyword: str(held.get(keyword)) for keyword in COPIED} == COPIED
        assert held.StudyInstanceUID == "1.2.5.1"
        assert not [element for element in held.iterall() if element.tag.is_private]
        about = {e.keyword for e in held if e.tag.group == 0x0010}
        assert about == {"PatientID", "PatientName", "PatientBirthDate", "PatientSex"}


@pytest.mark.filterwarnings("ignore:.*value.*:UserWarning")
def test_nothing_about_the_patient_gets_out(tmp_path, caplog, recwarn, capfd):
    caplog.set_level(logging.DEBUG)
    source = write_chest(tmp_path / "a.dcm", PatientName="SECRETNAME", StudyDate="SECRETSD", PatientBirthDate="SECRET")
    bad = write_chest(tmp_path / "b.dcm", PatientID="SECRET" * 20)
    assert "SECRET" in caplog.text  # what pydicom says of them
    caplog.clear()
    recwarn.clear()
    written(source, tmp_path)
    with pytest.raises(InputError, match=r"b\.dcm has no valid PatientID") as caught:
        structured_report(bad, [Finding("Edema", 0.5)], MODEL)
    assert "SECRET" not in f"{caught.value!r} {caught.value.__context__!r} {caplog.text} {capfd.readouterr()}"
    assert not [w for w in recwarn if "SECRET" in str(w.message)]


# UIDs


def test_the_same_image_and_weights_give_the_same_uids(source, tmp_path):
    first, again = written(source, tmp_path), written(source, tmp_path / "again")
    assert [path.name for path in first] == [path.name for path in again]
    seen = [pydicom.dcmread(path) for path in first]
    assert [f"{ds.SOPInstanceUID}.dcm" for ds in seen] == [path.name for path in first]
    every = {uid for ds in seen for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID)}
    assert len(every) == 4 and all(UID(uid).is_valid and uid.startswith("2.25.") for uid in every)
    other = write_chest(tmp_path / "other.dcm", 2)
    for image, model in (
        (other, MODEL),
        (source, ModelIdentity("small", "0.1.0", "ac" * 32, MODEL.calibration)),
        (source, ModelIdentity("small", "0.1.0", "ab" * 32, "f1, sha256 cd")),
    ):
        changed = written(image, tmp_path, model=model)
        assert not {path.name for path in changed} & {path.name for path in first}
    assert UID(MODEL.uid("report", "1.2.3.1")).is_valid
    assert MODEL.uid("report", "1.2.3.1") == "2.25.58442472587545410484105503000888302828"


def test_a_calibration_has_one_name_and_another_has_another():
    thresholds = {point: {"Edema": 0.5, "Mass": 0.25} for point in ("youden", "specificity95", "f1")}
    made = Calibration({"Edema": 1.5}, thresholds, {"date": "2020-01-01"})
    again = {point: dict(reversed(chosen.items())) for point, chosen in thresholds.items()}
    assert calibration_name(made, "f1") == calibration_name(Calibration({"Edema": 1.5}, again), "f1")
    changed = {**thresholds, "f1": {"Edema": 0.5, "Mass": 0.26}}
    others = [Calibration({"Edema": 1.6}, thresholds), Calibration({"Edema": 1.5}, changed)]
    names = [calibration_name(c, "f1") for c in (made, *others)] + [calibration_name(made, "youden")]
    assert len(set(names)) == 4


# bad input


def test_a_png_gives_no_report(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    for make in (
        lambda: check_source(tmp_path / "a.png"),
        lambda: structured_report(tmp_path / "a.png", [Finding("Edema", 0.5)], MODEL),
        lambda: secondary_capture_image(tmp_path / "a.png", PICTURE, MODEL),
        lambda: written(tmp_path / "a.png", tmp_path),
    ):
        with pytest.raises(InputError, match=r"a\.png is no DICOM file: a report needs the patient and study of one"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_uid_must_be_there(tmp_path, keyword):
    source = save(tmp_path / "a.dcm", write_tags(tmp_path, **{keyword: None}))
    with pytest.raises(InputError, match=f"has no valid {keyword}, which a report needs"):
        written(source, tmp_path)
    assert not (tmp_path / "sr").exists()


def write_tags(tmp_path, **tags):
    """A data set without some tags, in a file whose header still has them."""
    made = pydicom.dcmread(write_chest(tmp_path / "whole.dcm"))
    for keyword, value in tags.items():
        if value is None:
            delattr(made, keyword)
    return made


def test_bad_values(source, tmp_path):
    for bad in (float("nan"), -0.1, 1.1):
        with pytest.raises(InputError, match="probability of Edema must be a number of 0 to 1"):
            Finding("Edema", bad)
    for box in ((0, 0, 2, 1), (0.5, 0, 0.4, 1), (0, float("nan"), 1, 1), (10, 10, 90, 90)):
        with pytest.raises(InputError, match=r"box of Edema must be x1, y1, x2, y2 in \[0, 1\]"):
            Finding("Edema", 0.5, box=box)
    with pytest.raises(InputError, match="--secondary-capture needs a drawn picture"):
        write_outputs(ROW, source, MODEL, secondary_capture=tmp_path / "sc")
    with pytest.raises(InputError, match=r"--dicom-sr .*chest\.dcm is a file: give a folder"):
        write_outputs(ROW, source, MODEL, dicom_sr=source)
    (tmp_path / "cut.dcm").write_bytes(source.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cut\.dcm "):
        write_outputs(ROW, tmp_path / "cut.dcm", MODEL, dicom_sr=tmp_path / "sr")
    unknown = write_chest(tmp_path / "unknown.dcm", SOPClassUID="1.2.3.4")
    with pytest.raises(InputError, match=r"unknown\.dcm gives no report, a tag does not fit one \(KeyError\)"):
        write_outputs(ROW, unknown, MODEL, dicom_sr=tmp_path / "sr")


def test_written_whole_or_not_at_all(source, tmp_path, monkeypatch):
    real = pydicom.Dataset.save_as

    def full(self, path, **options):
        real(self, path, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    (before,) = write_outputs(ROW, source, MODEL, dicom_sr=tmp_path / "sr")
    content = before.read_bytes()
    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    for model in (MODEL, ModelIdentity("other", "0.1.0", "ff" * 32)):
        with pytest.raises(InputError, match=r"could not be written \(No space left on device\)"):
            write_outputs(ROW, source, model, dicom_sr=tmp_path / "sr")
    assert list((tmp_path / "sr").iterdir()) == [before] and before.read_bytes() == content


def test_without_highdicom_one_line_says_what_to_install(source, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "highdicom"]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "highdicom":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(InputError, match=re.escape('run pip install "mxa[dicom]"')):
        write_outputs(ROW, source, MODEL, dicom_sr=tmp_path / "sr")


def test_a_deflated_image_gives_a_report(tmp_path):
    deflated = write_chest(tmp_path / "deflated.dcm", syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert structured_report(deflated, [Finding("Edema", 0.5)], MODEL).PatientID == COPIED["PatientID"]
