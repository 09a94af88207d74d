"""DICOM files become gray as a viewer shows them, are errors that name the file, and give away nothing else."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import libjpeg
import numpy as np
import openjpeg
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, get_decoder, pixel_array

from mxa.data import dicom
from mxa.data.dicom import DicomHeader, is_dicom, read_dicom, read_header, unusual
from mxa.errors import InputError

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
    ds["PixelData"].VR = "OW"
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.PixelData = encapsulate([ds.PixelData])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


def save(path, ds) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def made(tmp_path):
    """Writes a file of pixels and tags."""
    return lambda pixels=DEEP, **tags: save(tmp_path / "made.dcm", dataset(pixels, **tags))


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


# pydicom's own files


@pytest.mark.parametrize(
    "kind", ["", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded"]
)
def test_every_lossless_encoding_of_one_image_is_the_same(kind):
    ds = pydicom.dcmread(FILES / "MR_small.dcm")
    low, high = ds.WindowCenter - 0.5 - (ds.WindowWidth - 1) / 2, ds.WindowCenter - 0.5 + (ds.WindowWidth - 1) / 2
    expected = ((np.frombuffer(ds.PixelData, "<i2").reshape(64, 64) - low) / (high - low)).clip(0, 1) * 255
    np.testing.assert_allclose(gray(FILES / f"MR_small{kind}.dcm"), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["JPGExtended", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "JPEG2000"])
def test_lossy_gray_equals_the_codec_alone(name):
    ds = pydicom.dcmread(FILES / f"{name}.dcm")
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    codec = openjpeg.decode if name == "JPEG2000" else libjpeg.decode
    values = codec(frame)
    assert values.shape == (ds.Rows, ds.Columns)
    np.testing.assert_allclose(gray(FILES / f"{name}.dcm"), stretched(values), atol=1e-4)


COLOUR_JPEG = [
    "SC_rgb_dcmtk_+eb+cy+n1",
    "SC_rgb_dcmtk_+eb+cy+np",
    "SC_rgb_jpeg_dcmtk",
    "SC_rgb_jpeg_lossy_gdcm",
    "SC_rgb_small_odd_jpeg",
]


@pytest.mark.parametrize("name", COLOUR_JPEG)
def test_ybr_jpeg_equals_pil(name):
    ds = pydicom.dcmread(FILES / f"{name}.dcm")
    with Image.open(io.BytesIO(get_frame(ds.PixelData, 0, number_of_frames=1))) as image:
        expected = np.asarray(image.convert("RGB").convert("L"), float)
    assert expected.shape == (ds.Rows, ds.Columns)
    np.testing.assert_allclose(gray(FILES / f"{name}.dcm"), expected, atol=3)


COLOUR = [
    "ExplVR_BigEnd",
    "SC_rgb_rle",
    "SC_rgb_jpeg_gdcm",
    "SC_rgb_jpeg_dcmd",
    "SC_rgb_gdcm_KY",
    "SC_rgb_jls_lossy_line",
    "SC_rgb_jls_lossy_sample",
    "SC_rgb_small_odd",
    "SC_rgb_small_odd_big_endian",
    "SC_rgb_dcmtk_+eb+cr",
    "SC_ybr_full_422_uncompressed",
    "examples_rgb_color",
    "examples_jpeg2k",
]


@pytest.mark.parametrize("name", COLOUR)
def test_8_bit_colour_is_reduced_as_pil_does(name):
    rgb = pixel_array(FILES / f"{name}.dcm")
    np.testing.assert_array_equal(gray(FILES / f"{name}.dcm"), np.asarray(Image.fromarray(rgb).convert("L")))


@pytest.mark.parametrize("bits", [16, 32])
def test_deep_colour_equals_the_8_bit_file(bits):
    expected = gray(FILES / "SC_rgb_rle.dcm")
    np.testing.assert_allclose(gray(FILES / f"SC_rgb_rle_{bits}bit.dcm"), expected, atol=1)


def test_deep_colour_is_rounded(made):
    pixels = np.full((2, 2, 3), 100 * 257 + 200, np.uint16)
    assert (gray(made(pixels, PhotometricInterpretation="RGB", PlanarConfiguration=0)) == 101).all()


def test_palette():
    ds = pydicom.dcmread(FILES / "examples_palette.dcm")
    index = np.frombuffer(ds.PixelData, np.uint8)[: ds.Rows * ds.Columns].reshape(ds.Rows, ds.Columns)
    data = [ds[f"{c}PaletteColorLookupTableData"].value for c in ("Red", "Green", "Blue")]
    rgb = np.stack([np.frombuffer(d, "<u2") >> 8 for d in data], axis=1)[index].astype(np.uint8)
    expected = np.asarray(Image.fromarray(rgb).convert("L"), float)
    np.testing.assert_allclose(gray(FILES / "examples_palette.dcm"), expected, atol=1)  # 16-bit entries round


def test_deflated():
    raw = (FILES / "image_dfl.dcm").read_bytes()
    start = 132 + 12 + pydicom.dcmread(FILES / "image_dfl.dcm").file_meta.FileMetaInformationGroupLength
    pixels = np.frombuffer(zlib.decompress(raw[start:], -15)[-512 * 512 :], np.uint8).reshape(512, 512)
    np.testing.assert_allclose(gray(FILES / "image_dfl.dcm"), stretched(pixels), atol=1e-4)


def test_golden_values():
    """(1 - (stored x 0.684 + 200 - 1599.5) / 2799 - 0.5) x 255: rescale, window 1600/2800, MONOCHROME1."""
    values = gray(FILES / "dicomdirtests" / "77654033" / "CR1" / "6154")
    picked = [values[at] for at in ((0, 0), (0, 15), (7, 8), (15, 0), (15, 15))]
    np.testing.assert_allclose(picked, [130.74367, 95.22405, 90.11421, 82.57408, 104.32206], rtol=1e-6)


REFUSED = {
    "MR_truncated.dcm": r"is cut short: 8130 of 8192 bytes",
    "SC_rgb_rle_2frame.dcm": "has 2 frames",
    "rtdose.dcm": "has 15 frames",
    "examples_ybr_color.dcm": "has 30 frames",
    "rtplan.dcm": r"has no pixel data \(modality RTPLAN\)",
    "test-SR.dcm": r"has no pixel data \(modality SR\)",
    "rtstruct.dcm": r"has no pixel data \(modality RTSTRUCT\)",  # no preamble
    "ExplVR_BigEndNoMeta.dcm": r"has no pixel data \(modality RTPLAN\)",
    "dicomdirtests/DICOMDIR": "has no pixel data",
    "no_meta.dcm": "is not a DICOM file",
    "README.txt": "is not a DICOM file",
    "badVR.dcm": "does not read as DICOM",  # NumberOfFrames is "1A"
    "JPEG-lossy.dcm": "does not read as DICOM",  # its 12-bit stream is damaged
    "JPEG2000-embedded-sequence-delimiter.dcm": "a header of 1024 x 3722445056",  # damaged by a delimiter in it
    "GDCMJ2K_TextGBR.dcm": "has no JPEG header",  # a JP2 file in place of a codestream
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_single_image_is_refused(name):
    with pytest.raises(InputError, match=rf"{name.split('/')[-1]} .*{REFUSED[name]}"):
        read_dicom(FILES / name)


# gray


@pytest.mark.parametrize("pixels", [DEEP, DEEP.astype(np.uint8), DEEP.astype(np.int16) - 2000, np.uint32(DEEP) << 16])
def test_no_window_stretches_minimum_to_maximum(made, pixels):
    np.testing.assert_allclose(gray(made(pixels)), stretched(pixels), atol=1e-4)


def test_bits_above_the_stored_ones_do_not_count(made):
    np.testing.assert_allclose(gray(made(DEEP | 0xA000, BitsStored=12, HighBit=11)), stretched(DEEP), atol=1e-4)


@pytest.mark.parametrize(
    "tags", [{}, {"WindowCenter": 2000, "WindowWidth": 900}, {"VOILUTSequence": [lut(4096, 0, 12, range(4096))]}]
)
def test_monochrome1_is_the_inverse(made, tags):
    light = gray(made(**tags))
    dark = gray(made(PhotometricInterpretation="MONOCHROME1", **tags))
    assert np.ptp(light) > 100
    np.testing.assert_allclose(dark, 255 - light, atol=1e-4)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": 700}])
def test_windows_equal_pydicom(made, function, rescale):
    path = made(BitsStored=12, WindowCenter=1500.5, WindowWidth=1000, VOILUTFunction=function, **rescale)
    ds = pydicom.dcmread(path)
    windowed = apply_windowing(apply_modality_lut(DEEP, ds), ds)
    low, high = (v * rescale.get("RescaleSlope", 1) + rescale.get("RescaleIntercept", 0) for v in (0, 4095))
    expected = (windowed - low) / (high - low) * 255
    assert len(np.unique(expected)) > 20
    np.testing.assert_allclose(gray(path), expected, atol=1e-3)


def test_window_functions_by_hand(made):
    pixels = np.array([[0, 2, 3, 4, 5, 9]], np.uint16)
    window = {"WindowCenter": 4, "WindowWidth": 4}
    linear = np.array([0, 0, 1 / 3, 2 / 3, 1, 1]) * 255  # 2 and below is 0, above 5 is 1
    np.testing.assert_allclose(gray(made(pixels, **window))[0], linear, atol=1e-4)
    exact = np.array([0, 0, 0.25, 0.5, 0.75, 1]) * 255
    np.testing.assert_allclose(gray(made(pixels, VOILUTFunction="LINEAR_EXACT", **window))[0], exact, atol=1e-4)
    sigmoid = 255 / (1 + np.exp(4.0 - pixels[0]))
    np.testing.assert_allclose(gray(made(pixels, VOILUTFunction="SIGMOID", **window))[0], sigmoid, atol=1e-4)
    step = gray(made(pixels, WindowCenter=4, WindowWidth=1))[0]
    np.testing.assert_array_equal(step, [0, 0, 0, 255, 255, 255])
    step = gray(
        made(np.array([[34, 36]], np.uint16), WindowCenter=4, WindowWidth=1, RescaleSlope=0.1, RescaleIntercept=0)
    )
    np.testing.assert_array_equal(step, [[0, 255]])
    narrow = gray(made(np.array([[34, 36]], np.uint16), WindowCenter=3.6, WindowWidth=0.8, RescaleSlope=0.1))
    np.testing.assert_allclose(narrow / 255, [[0.25, 0.5]], rtol=1e-5)


def test_the_first_of_several_windows(made):
    one = gray(made(WindowCenter=1000, WindowWidth=500))
    assert (one != gray(made(WindowCenter=3000, WindowWidth=100))).any()
    np.testing.assert_array_equal(gray(made(WindowCenter=[1000, 3000], WindowWidth=[500, 100])), one)


@pytest.mark.parametrize("window", [(100, 0), (100, -5), (None, 50), (50, None), ("", 50), (50, "")])
def test_a_window_that_cannot_be_applied_is_ignored(made, window):
    np.testing.assert_allclose(gray(made(WindowCenter=window[0], WindowWidth=window[1])), stretched(DEEP), atol=1e-4)


@pytest.mark.parametrize("first", [0, 500])
@pytest.mark.parametrize("bits", [12, 16])
def test_voi_lut_equals_pydicom_and_goes_before_a_window(made, first, bits):
    table = lut(3000, first, bits, (np.arange(3000) ** 2 % 2**bits))
    path = made(VOILUTSequence=[table, lut(2, 0, 8, [0, 255])], WindowCenter=100, WindowWidth=10)
    expected = apply_voi(DEEP, pydicom.dcmread(path)) / (2**bits - 1) * 255
    np.testing.assert_allclose(gray(path), expected, atol=1e-3)


def test_a_voi_lut_longer_than_its_bits(made):
    """pydicom's apply_voi wraps its index at 256 here."""
    path = made(VOILUTSequence=[lut(4096, 0, 8, np.arange(4096) // 16)])
    np.testing.assert_allclose(gray(path), DEEP // 16, atol=1e-4)


def test_a_voi_lut_from_a_negative_value(made):
    pixels, item = np.array([[-200, -100, -99, 0, 500]], np.int16), lut(300, -100, 12, range(0, 3000, 10))
    np.testing.assert_allclose(
        gray(made(pixels, VOILUTSequence=[item]))[0] / 255 * 4095, [0, 0, 10, 1000, 2990], rtol=1e-5
    )


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_a_voi_lut_stored_as_bytes(made, syntax):
    item, order = Dataset(), ">" if syntax == uid.ExplicitVRBigEndian else "<"
    item.LUTDescriptor = [4096, 0, 12]
    item.add_new("LUTData", "OW", np.arange(4096)[::-1].astype(f"{order}u2").tobytes())
    path = made(DEEP.astype(f"{order}u2"), syntax=syntax, VOILUTSequence=[item])
    np.testing.assert_allclose(gray(path), (4095.0 - DEEP) / 4095 * 255, atol=1e-4)


def test_a_voi_lut_of_packed_bytes(made):
    item = Dataset()
    item.LUTDescriptor = [256, 0, 8]
    item.add_new("LUTData", "OW", np.arange(256, dtype=np.uint8)[::-1].tobytes())
    np.testing.assert_allclose(gray(made(DEEP % 256, VOILUTSequence=[item])), 255 - DEEP % 256, atol=1e-4)


def test_a_modality_lut_goes_before_the_window(made):
    path = made(ModalityLUTSequence=[lut(4096, 0, 16, np.arange(4096)[::-1] * 3)], WindowCenter=5000, WindowWidth=4000)
    modality = apply_modality_lut(DEEP, pydicom.dcmread(path)).astype(float)
    expected = ((modality - 4999.5) / 3999 + 0.5).clip(0, 1) * 255
    np.testing.assert_allclose(gray(path), expected, atol=1e-3)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_range(made, photometric):
    pixels, polarity = DEEP.astype(np.int16), {"PhotometricInterpretation": photometric}
    whole = gray(made(pixels, **polarity))
    pixels = np.pad(pixels, ((0, 3), (0, 0)), constant_values=-2000)
    values = gray(made(pixels, PixelPaddingValue=-2000, **polarity))
    np.testing.assert_allclose(values[:-3], whole, atol=1e-4)
    np.testing.assert_array_equal(values[-3:], 0)
    pixels[-1] = -1900
    values = gray(made(pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900, **polarity))
    np.testing.assert_allclose(values[:-3], whole, atol=1e-4)
    np.testing.assert_array_equal(values[-3:], 0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [None, 7])
def test_a_constant_image_is_zero(made, photometric, padding):
    pixels = np.full((3, 4), 7, np.uint16)
    path = made(pixels, PhotometricInterpretation=photometric, PixelPaddingValue=padding)
    np.testing.assert_array_equal(gray(path), np.zeros((3, 4)))


# forms of file


@pytest.mark.parametrize("implicit, little", [(True, True), (False, True), (False, False)])
def test_no_preamble_needs_the_suffix(tmp_path, implicit, little):
    ds = dataset(DEEP.astype("<u2" if little else ">u2"))
    del ds.file_meta
    ds.save_as(tmp_path / "bare.DCM", implicit_vr=implicit, little_endian=little)
    assert (tmp_path / "bare.DCM").read_bytes()[128:132] != b"DICM"
    np.testing.assert_allclose(gray(tmp_path / "bare.DCM"), stretched(DEEP), atol=1e-4)
    (tmp_path / "bare.DCM").rename(tmp_path / "bare.img")
    with pytest.raises(InputError, match=r"bare\.img is not a DICOM file"):
        read_dicom(tmp_path / "bare.img")


def test_is_dicom(tmp_path, made):
    renamed = made().rename(tmp_path / "renamed")
    assert is_dicom(renamed) and is_dicom(str(renamed))
    np.testing.assert_allclose(gray(renamed), stretched(DEEP), atol=1e-4)
    (tmp_path / "short").write_bytes(b"DICM")
    assert is_dicom("gone.dcm") and is_dicom("x.DICOM")
    assert not is_dicom("gone.png") and not is_dicom(tmp_path) and not is_dicom(tmp_path / "short")


@pytest.mark.parametrize("text", ["", "abc", "not an image, but a note about one\n" * 40])
@pytest.mark.parametrize("read", [read_dicom, read_header])
def test_text_named_dcm_is_an_error(tmp_path, text, read):
    (tmp_path / "note.dcm").write_text(text)
    with pytest.raises(InputError, match=r"note\.dcm (is not a DICOM file|does not read as DICOM)"):
        read(tmp_path / "note.dcm")


@pytest.mark.parametrize("read", [read_dicom, read_header])
def test_missing_files_and_folders_are_errors(tmp_path, read):
    with pytest.raises(InputError, match=r"no image .*gone\.dcm"):
        read(tmp_path / "gone.dcm")
    with pytest.raises(InputError, match=rf"{tmp_path.name} does not read"):
        read(tmp_path)


@pytest.mark.parametrize("tag", [*REQUIRED, "PhotometricInterpretation"])
def test_a_missing_tag_is_named(made, tag):
    with pytest.raises(InputError, match=rf"made\.dcm lacks {tag}: export"):
        read_dicom(made(**{tag: None}))


def test_compressed_pixels_without_a_transfer_syntax(tmp_path):
    ds = dataset(DEEP, syntax=uid.JPEGBaseline8Bit)
    del ds.file_meta
    ds.save_as(tmp_path / "x.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(InputError, match=r"x\.dcm does not store its pixels as its transfer syntax says"):
        read_dicom(tmp_path / "x.dcm")


@pytest.mark.parametrize("tags", [{"PhotometricInterpretation": "CMYK"}, {"SamplesPerPixel": 2}, {"BitsAllocated": 12}])
def test_layouts_that_are_not_read(made, tags):
    with pytest.raises(InputError, match=r"made\.dcm (does not read|is cut short)"):
        read_dicom(made(**tags))


@pytest.mark.parametrize("slope", ["nan", "1e999"])
def test_values_that_are_not_finite_are_an_error(made, slope):
    path = made(RescaleSlope="7.25e0", RescaleIntercept=0)
    path.write_bytes(path.read_bytes().replace(b"7.25e0", slope.ljust(6).encode()))
    with pytest.raises(InputError, match=r"made\.dcm has pixel values that are not finite"):
        read_dicom(path)


def test_a_syntax_without_a_decoder(made, monkeypatch):
    with pytest.raises(InputError, match=r'made\.dcm is stored as MPEG2.*pip install "mxa\[dicom\]"'):
        read_dicom(made(syntax=uid.MPEG2MPML))
    jpegls = get_decoder(uid.JPEGLSLossless)
    monkeypatch.setattr(type(jpegls), "is_available", property(lambda self: False))
    with pytest.raises(InputError, match=r'lossless\.dcm is stored as JPEG-LS.*pip install "mxa\[dicom\]"'):
        read_dicom(FILES / "MR_small_jpeg_ls_lossless.dcm")


def test_without_pydicom(monkeypatch, made):
    path = made()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r'pydicom is not installed: run pip install "mxa\[dicom\]"'):
        read_dicom(path)


def test_importing_the_module_does_not_import_pydicom():
    code = "import sys, mxa.data.dicom; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# damage and bombs


@pytest.mark.parametrize(
    "name", ["JPGExtended", "SC_rgb_jpeg_gdcm", "MR_small_jpeg_ls_lossless", "JPEG2000", "MR_small_RLE"]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_compressed_stream_cut_short_is_an_error(tmp_path, name, share):
    ds = pydicom.dcmread(FILES / f"{name}.dcm")
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame[: int(len(frame) * share)]])
    with pytest.raises(InputError, match=r"cut\.dcm"):
        read_dicom(save(tmp_path / "cut.dcm", ds))


@pytest.mark.parametrize("name", ["MR_small", "MR_small_RLE", "JPEG2000", "SC_rgb_jpeg_dcmtk", "image_dfl"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_files_are_errors(tmp_path, name, share):
    data = (FILES / f"{name}.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"cut\.dcm"):
        read_dicom(tmp_path / "cut.dcm")


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
def test_a_file_with_one_damaged_byte_reads_or_is_an_error(made, tmp_path, syntax):
    path, data, refused = tmp_path / "damaged.dcm", made(DEEP[:2, :2], syntax=syntax).read_bytes(), 0
    damages = [(i, value) for i in range(128, len(data)) for value in (0, data[i] ^ 1, 255)]
    for i, value in damages:
        path.write_bytes(data[:i] + bytes([value]) + data[i + 1 :])
        try:
            read_dicom(path)
        except InputError as error:
            assert "damaged.dcm" in str(error)
            refused += 1
    assert refused > len(damages) / 8


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jpeg_ls_lossless", "JPEG2000", "SC_rgb_jpeg_dcmtk"])
def test_a_damaged_compressed_file_reads_or_is_an_error(tmp_path, name):
    path, data = tmp_path / "damaged.dcm", (FILES / f"{name}.dcm").read_bytes()
    draw = np.random.default_rng(1).integers
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[draw(len(data) // 5, len(data))] = draw(256)
        path.write_bytes(damaged)
        try:
            gray(path)
        except InputError as error:
            assert "damaged.dcm" in str(error)


def test_a_huge_declared_size_is_refused_before_decoding(made, monkeypatch):
    with pytest.raises(InputError, match=r"made\.dcm says 65535 x 65535 pixels; expected 1 to \d+"):
        read_dicom(made(Rows=65535, Columns=65535))
    with pytest.raises(InputError, match=r"says 0 x 10 pixels"):
        read_dicom(made(Rows=0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", DEEP.size - 1)
    with pytest.raises(InputError, match=r"says 12 x 10 pixels; expected 1 to 119"):
        read_dicom(made())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert gray(made()).shape == DEEP.shape


CODECS = {
    uid.JPEGBaseline8Bit: ("JPEG", {}),
    uid.JPEG2000Lossless: ("JPEG2000", {"no_jp2": True, "irreversible": False}),
}


@pytest.mark.parametrize("syntax", CODECS)
@pytest.mark.parametrize("shape", [(32, 24), (24, 32, 3), (640, 480)])
def test_a_compressed_image_of_another_size_is_refused(made, syntax, shape):
    kind, options = CODECS[syntax]
    tags = dict(Rows=24, Columns=32, BitsAllocated=8, BitsStored=8, SamplesPerPixel=1)
    image = np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)
    path = made(image, syntax=syntax, PixelData=coded(image, kind, **options))
    with Image.open(io.BytesIO(coded(image, kind, **options))) as decoded:
        np.testing.assert_allclose(gray(path), stretched(np.asarray(decoded)), atol=3)
    other = coded(np.zeros(shape, np.uint8), kind, **options)
    with pytest.raises(InputError, match=rf"made\.dcm says 24 x 32, 1 channels; .* header of {shape[0]} x {shape[1]}"):
        read_dicom(made(image, syntax=syntax, PixelData=other, **tags))


def test_fill_bytes_before_a_marker(made):
    frame = coded(np.zeros((8, 8), np.uint8), "JPEG").replace(b"\xff\xc0", b"\xff\xff\xff\xc0")
    assert gray(made(np.zeros((8, 8), np.uint8), syntax=uid.JPEGBaseline8Bit, PixelData=frame)).shape == (8, 8)


def test_a_second_frame_that_no_tag_declares_is_not_decoded(tmp_path):
    image = np.full((24, 32), 10, np.uint8)
    image[:8] = 90
    frames = [coded(image, "JPEG"), coded(np.zeros((9000, 900), np.uint8), "JPEG")]
    ds = dataset(image, syntax=uid.JPEGBaseline8Bit)
    ds.PixelData = encapsulate(frames, has_bot=True)
    np.testing.assert_allclose(gray(save(tmp_path / "two.dcm", ds)), stretched(image), atol=8)


def test_a_size_inside_another_segment_does_not_count(made):
    tiny = coded(np.zeros((8, 8), np.uint8), "JPEG")
    thumbnail = b"\xff\xe1" + (len(tiny) + 2).to_bytes(2, "big") + tiny
    bomb = coded(np.zeros((64, 64), np.uint8), "JPEG")
    frame = bomb[:2] + thumbnail + bomb[2:]
    with pytest.raises(InputError, match=r"header of 64 x 64"):
        read_dicom(made(np.zeros((8, 8), np.uint8), syntax=uid.JPEGBaseline8Bit, PixelData=frame))


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm", "JPGExtended"])
def test_the_size_in_other_jpeg_kinds_is_checked(tmp_path, name):
    ds = pydicom.dcmread(FILES / f"{name}.dcm")
    ds.Rows = ds.Rows - 1
    with pytest.raises(InputError, match=rf"bomb\.dcm says {ds.Rows} x {ds.Columns}.*header of {ds.Rows + 1} x"):
        read_dicom(save(tmp_path / "bomb.dcm", ds))


def test_a_deflate_bomb_is_not_inflated(made, monkeypatch):
    path = made(np.zeros((4000, 8000), np.uint16), syntax=uid.DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(dicom, "_INFLATED_LIMIT", 1 << 20)
    for read in (read_dicom, read_header):
        tracemalloc.start()
        with pytest.raises(InputError, match=r"made\.dcm is cut short, or inflates to more than 1 MB"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_a_deflate_bomb_in_a_deflated_file_is_not_inflated(made, tmp_path):
    inner = made(np.zeros((2000, 8000), np.uint16), syntax=uid.DeflatedExplicitVRLittleEndian).read_bytes()
    meta = pydicom.filereader.read_file_meta_info(FILES / "image_dfl.dcm")
    outer = (FILES / "image_dfl.dcm").read_bytes()[: 144 + meta.FileMetaInformationGroupLength]
    deflate = zlib.compressobj(wbits=-15)
    (tmp_path / "nested.dcm").write_bytes(outer + deflate.compress(inner) + deflate.flush())
    tracemalloc.start()
    with pytest.raises(InputError, match=r"nested\.dcm"):
        read_dicom(tmp_path / "nested.dcm")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_deflate_bomb_behind_an_odd_meta_group_is_not_inflated(tmp_path):
    """An implicit VR group whose first length spells an unknown VR: pydicom reads such a group a second time."""
    private = b"\x02\x00\x02\x01" + b"ZX\0\0" + bytes(0x585A)
    syntax = b"\x02\x00\x10\x00" + b"\x16\0\0\0" + uid.DeflatedExplicitVRLittleEndian.encode()
    deflate = zlib.compressobj(wbits=-15)
    bomb = deflate.compress(bytes(32 << 20)) + deflate.flush()
    (tmp_path / "second.dcm").write_bytes(bytes(128) + b"DICM" + private + syntax + bomb)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"second\.dcm"):
        read_dicom(tmp_path / "second.dcm")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


# privacy


SECRET = "SECRET"


@pytest.fixture(params=["reads", "frames", "window", "photometric", "syntax", "cut"])
def odd(request, made):
    """A file whose identity tags are odd, and in all but one case an image tag too, and what to expect of it."""
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
    return path, request.param == "reads"


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
    path, reads = odd
    caplog.set_level(logging.DEBUG)
    pydicom.config.debug(debugging, default_handler=False)
    before = warnings.filters[:], logging.getLogger("pydicom").filters[:], logging.getLogger("pydicom").disabled
    try:
        if reads:
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
    assert (out, err, caplog.records, list(recwarn)) == ("", "", [], [])
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
