"""Images in a folder are found by suffix or by content; what is passed over is counted and named."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import UID_dictionary

from mxa.data.create import create_dataset
from mxa.data.image_io import find_images, list_images, read_checked, read_image
from mxa.utils.errors import InputError

from .dicom_files import DEEP, dataset, save


def write(path, sop=None, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = dataset(DEEP, **tags)
    if sop:
        ds.SOPClassUID = sop
    return save(path, ds)


def names(folder):
    return [p.relative_to(folder).as_posix() for p in list_images(folder)]


DICOM_NAMES = ["PAT1/1.2.392.200036.9125.9.0.1", "PAT1/IM000001", "PAT1/scan.ima", "PAT1/scan.img", "plain.dcm"]


def test_dicom_under_any_name(tmp_path, caplog):
    for name in DICOM_NAMES:
        write(tmp_path / name)
    write(tmp_path / "DICOMDIR", "1.2.840.10008.1.3.10")
    write(tmp_path / "SR0001", "1.2.840.10008.5.1.4.1.1.88.33")
    write(tmp_path / "PR0001", "1.2.840.10008.5.1.4.1.1.11.1")
    write(tmp_path / ".hidden")
    (tmp_path / "README").write_text("x")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long.txt").write_text("DICM " * 1000)
    with caplog.at_level(logging.INFO, logger="mxa"):
        assert names(tmp_path) == DICOM_NAMES
    [line] = caplog.messages
    assert line.startswith(f"{tmp_path}: 6 files are not images and are passed over: DICOMDIR, PR0001, README, SR0001")
    for path in find_images((tmp_path,)):
        assert read_image(path).size == (10, 12)


@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_dicom_objects_that_are_no_images_are_passed_over(tmp_path, caplog, suffix):
    """Exactly the classes that pydicom knows without "Image Storage" in their name."""
    write(tmp_path / f"IMAGE{suffix}")
    write(tmp_path / f"PRIVATE{suffix}", "1.2.826.0.1.3680043.9.7133.1")
    kept, passed = {f"IMAGE{suffix}", f"PRIVATE{suffix}"}, 0
    for number, (name, kind, *_) in UID_dictionary.items():
        if kind == "SOP Class" and "Storage" in name and not re.search("Commitment|DICOS", name):
            write(tmp_path / f"{number}-x{suffix}", number)
            kept |= {f"{number}-x{suffix}"} if "Image Storage" in name else set()
            passed += "Image Storage" not in name
    assert passed > 100
    with caplog.at_level(logging.INFO, logger="mxa"):
        assert set(names(tmp_path)) == kept
    assert f"{passed} files are not images" in caplog.text


def test_a_report_named_alone_is_an_error(tmp_path):
    path = write(tmp_path / "report.dcm", "1.2.840.10008.5.1.4.1.1.88.11", PixelData=None)
    assert find_images((path,)) == [path]
    with pytest.raises(InputError, match=r"report\.dcm has no pixel data"):
        read_image(path)


def test_pictures_without_a_suffix(tmp_path):
    for kind in ("PNG", "JPEG", "TIFF"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / kind, kind)
        (tmp_path / f"{kind}.bak").write_bytes((tmp_path / kind).read_bytes())
    assert names(tmp_path) == ["JPEG", "PNG", "TIFF"]


def test_nothing_is_said_where_every_file_is_an_image(tmp_path, caplog):
    write(tmp_path / "x.dcm")
    with caplog.at_level(logging.INFO, logger="mxa"):
        assert names(tmp_path) == ["x.dcm"]
    assert not caplog.messages


def test_a_file_that_only_has_the_suffix_stays_an_error(tmp_path):
    (tmp_path / "note.png").write_text("x")
    assert names(tmp_path) == ["note.png"]
    with pytest.raises(InputError, match=r"note\.png does not decode"):
        read_image(tmp_path / "note.png")


def test_a_folder_without_images(tmp_path):
    (tmp_path / "README").write_text("x")
    with pytest.raises(InputError, match=r"holds no image .*or DICOM under another name"):
        find_images((tmp_path,))


def test_a_colour_dicom_is_checked_with_its_colours(tmp_path):
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[..., 2], rgb[:16, :, 1] = 200, 90
    save(tmp_path / "x.dcm", dataset(rgb, PhotometricInterpretation="RGB", PlanarConfiguration=0, Modality="OT"))
    image, about = read_checked(tmp_path / "x.dcm")
    assert about == {"warning": "the picture is coloured, and a radiograph is gray"}
    assert image.mode == "F"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(read_image(tmp_path / "x.dcm")))


@pytest.mark.parametrize("size", [None, (100, 100), (300, 300)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_checked_image_is_the_one_that_is_read(tmp_path, mode, size):
    y, x = np.mgrid[:512, :640]
    rgb = np.stack([128 + 100 * np.sin(x / 30 + i) * np.cos(y / 40) for i in range(3)], -1)
    Image.fromarray(rgb.astype(np.uint8)).convert(mode).save(tmp_path / "x.jpg")
    image, about = read_checked(tmp_path / "x.jpg", size)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(read_image(tmp_path / "x.jpg", size)))
    assert ("is coloured" in about.get("warning", "")) == (mode == "RGB")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_collection_finds_dicom_too(tmp_path):
    for finding in ("Edema", "NORMAL"):
        for i in range(12):
            write(tmp_path / finding / f"IM{i:04d}")
        (tmp_path / finding / "README").write_text("x")
    assert len(create_dataset("folder", tmp_path, "all")) == 24
