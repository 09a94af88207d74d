"""DICOM files for tests, and what is expected of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from mxa.data.dicom import read_dicom

FILES = Path(pydicom.__file__).parent / "data" / "test_files"  # inside the package: nothing is downloaded
REQUIRED = ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel"]
DEEP = np.random.default_rng(0).integers(0, 4096, (12, 10), dtype=np.uint16)


def dataset(pixels, **tags) -> Dataset:
    """A DX image of ``pixels``, (rows, columns) or (rows, columns, 3); a tag of None is left out."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = tags.pop("syntax", uid.ExplicitVRLittleEndian)
    pixels = np.asarray(pixels)
    bits = 8 * pixels.dtype.itemsize
    default = dict(
        SOPClassUID=uid.DigitalXRayImageStorageForPresentation, SOPInstanceUID="1.2.3", Modality="DX",
        Rows=pixels.shape[0], Columns=pixels.shape[1], BitsAllocated=bits, BitsStored=bits,
        SamplesPerPixel=pixels.shape[2] if pixels.ndim == 3 else 1, PixelRepresentation=int(pixels.dtype.kind == "i"),
        PhotometricInterpretation="MONOCHROME2", PixelData=pixels.tobytes(),
    )  # fmt: skip
    for keyword, value in {**default, **tags}.items():
        if value is not None:
            setattr(ds, keyword, value)
    if "PixelData" not in ds:
        return ds
    ds["PixelData"].VR = "OW"
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.PixelData = encapsulate([ds.PixelData])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


def save(path, ds) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def gray(path):
    image = read_dicom(path)
    assert image.mode == "F"
    values = np.asarray(image)
    assert values.min() >= 0 and values.max() <= 255
    return values


def stretched(values):
    values = values.astype(float)
    return (values - values.min()) / np.ptp(values) * 255


def lut(entries, first, bits, data) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [entries, first, bits]
    item.add_new("LUTData", "US", [int(value) for value in data])
    return item


def coded(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()
