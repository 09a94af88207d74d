"""Nothing about a patient leaves a DICOM file; what its header says about the image."""

from __future__ import annotations

import logging
import warnings

import pydicom
import pytest
from pydicom import uid

from mxa.data.dicom import DicomHeader, read_dicom, read_header, unusual
from mxa.utils.errors import InputError

from .dicom_files import DEEP, FILES, gray

# privacy


SECRET = "SECRET"


@pytest.fixture(params=["reads", "frames", "window", "photometric", "syntax", "cut"])
def odd(request, made):
    """A file whose identity tags are odd, in all but one case an image tag too; its warnings if it reads, or None."""
    tags = dict(PatientName=f"{SECRET}^A", PatientID=SECRET, PatientBirthDate="19700101", PatientAge="042Y")
    tags |= dict(StudyDate="20200101", InstitutionName=SECRET, StudyInstanceUID="1.2.30.456", PatientComments=SECRET)
    tags |= dict(NumberOfFrames="11111111" if request.param == "frames" else 1, SpecificCharacterSet="ISO_IR 100")
    tags |= dict(WindowCenter="55.5555", WindowWidth="77") if request.param == "window" else {}
    path = made(ReferringPhysicianName=SECRET, **tags)
    data = path.read_bytes()
    for old, new in (("19700101", "SECRETBD"), ("20200101", "SECRETSD"), ("042Y", "SECR"), ("1.2.30.456", "SECRET.UID"),
                     ("11111111", "SECRETNF"), ("55.5555", "SECRET "), ("ISO_IR 100", "SECRET 100")):  # fmt: skip
        data = data.replace(old.encode(), new.encode())
    if request.param == "photometric":
        data = data.replace(b"MONOCHROME2 ", b"SECRETPHOTO ")
    if request.param == "syntax":
        data = data.replace(b"1.2.840.10008.1.2.1\0", b"SECRET.SYNTAX.1.2.3\0")
    path.write_bytes(data[:-8] if request.param == "cut" else data)
    return path, {"reads": [], "window": [f"{path}: its window does not read and is ignored"]}.get(request.param)


def chain(error):
    while error is not None:
        yield str(error) + repr(error)
        error = error.__cause__ or error.__context__


def test_pydicom_alone_would_tell(odd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = pydicom.dcmread(odd[0])
        for tag in ("PatientBirthDate", "StudyDate", "StudyInstanceUID"):
            ds.get(tag)
    assert any(SECRET in str(w.message) for w in caught)


@pytest.mark.parametrize("debugging", [False, True])
def test_nothing_gets_out(odd, debugging, caplog, recwarn, capfd):
    path, warned = odd
    caplog.set_level(logging.DEBUG)
    pydicom.config.debug(debugging, default_handler=False)
    before = warnings.filters[:], logging.getLogger("pydicom").filters[:], logging.getLogger("pydicom").disabled
    try:
        if warned is not None:
            assert gray(path).shape == DEEP.shape
        else:
            with pytest.raises(InputError, match=r"made\.dcm") as caught:
                read_dicom(path)
            assert not [text for text in chain(caught.value) if SECRET in text]
        assert read_header(path).modality == "DX"
    finally:
        pydicom.config.debug(False, default_handler=False)
    assert (warnings.filters, logging.getLogger("pydicom").filters, logging.getLogger("pydicom").disabled) == before
    out, err = capfd.readouterr()
    assert (out, err, caplog.records) == ("", "", [])
    assert [str(w.message) for w in recwarn] == (warned or [])
    logging.getLogger("pydicom").warning("heard again")
    assert caplog.messages == ["heard again"]


@pytest.mark.parametrize("read", [read_dicom, read_header])
def test_no_identity_tag_is_loaded(made, monkeypatch, read):
    seen = []
    real = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    read(made(PatientName=SECRET, PatientID=SECRET, AccessionNumber=SECRET, StudyDate="20200101", SeriesNumber=1))
    keywords = {element.keyword for element in seen[0]}
    assert "Modality" in keywords
    forbidden = ("Patient", "Physician", "Institution", "Accession", "Date", "Time", "Number", "Station")
    assert not [k for k in keywords if any(word in k for word in forbidden)]


# header


def test_read_header(made):
    path = made(
        BodyPartExamined="CHEST",
        ViewPosition="PA",
        PresentationIntentType="FOR PRESENTATION",
        SeriesInstanceUID="1.2.4",
    )
    ids = {"SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"}
    path.write_bytes(path.read_bytes().replace(b"CHEST", b"Chest"))
    assert read_header(path) == DicomHeader("DX", "CHEST", "PA", "FOR PRESENTATION", ids)
    assert unusual(read_header(path)) is None


def test_read_header_without_pixels_or_words(made):
    assert read_header(FILES / "rtplan.dcm").modality == "RTPLAN"
    assert read_header(FILES / "image_dfl.dcm").modality == "OT"
    assert read_header(made(Modality=None, SOPInstanceUID="1.2")) == DicomHeader(identifiers={"SOPInstanceUID": "1.2"})
    assert read_header(made(ViewPosition=["AP", "LL"])).view == "AP"


def test_read_header_of_a_cut_image(made):
    for path in (made(), made(syntax=uid.JPEGBaseline8Bit)):
        path.write_bytes(path.read_bytes()[:-50])
        assert read_header(path).modality == "DX"


@pytest.mark.parametrize("modality", ["", "CR", "DX", "DR", "RG", "OT", "SC"])
@pytest.mark.parametrize("body_part", ["", "CHEST", "THORAX", "TORAX", "LUNG", "RIBS", "PORT CHEST"])
@pytest.mark.parametrize("view", ["", "PA", "AP", "AP AXIAL", "LORDOTIC", "ANTERO-POSTERIOR", "UNKNOWN"])
def test_frontal_chest_radiographs_are_usual(modality, body_part, view):
    assert unusual(DicomHeader(modality, body_part, view, "FOR PRESENTATION")) is None


@pytest.mark.parametrize("header, said", [
    (DicomHeader("CT", "CHEST", "PA"), "modality CT is not a radiograph"),
    *[(DicomHeader(m), f"modality {m} is") for m in ("MR", "US", "MG", "PT", "XA", "RF", "SR", "RTPLAN", "SEG")],
    *[(DicomHeader("DX", b), f"body part {b} is not the chest") for b in ("KNEE", "ABDOMEN", "SKULL", "CSPINE")],
    *[(DicomHeader("CR", "CHEST", v), f"view {v} is lateral")
      for v in ("LL", "RL", "LATERAL", "LAT", "LLAT", "L LAT", "XTABLE LATERAL", "LEFT_LATERAL", "SWIMMERS")],
    *[(DicomHeader("CR", "CHEST", v), f"view {v} is oblique") for v in ("RLO", "LLO", "LAO", "OBLIQUE", "PA_OBL")],
    *[(DicomHeader("CR", "CHEST", v), f"view {v} is decubitus") for v in ("LLD", "AP RLD", "LEFT LATERAL DECUBITUS")],
    (DicomHeader("DX", "CHEST", "PA", "FOR PROCESSING"), "the pixels are FOR PROCESSING"),
])  # fmt: skip
def test_what_is_unusual_is_said(header, said):
    sentence = unusual(header)
    assert sentence.startswith(said) and sentence.endswith("; the models expect frontal chest X-rays")
