"""DICOM files become gray as a viewer shows them."""

from __future__ import annotations

import io
import zlib

import libjpeg
import numpy as np
import openjpeg
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, pixel_array

from mxa.data.dicom import read_dicom
from mxa.utils.errors import InputError

from .dicom_files import DEEP, FILES, gray, lut, stretched

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


def test_a_jp2_file_in_place_of_a_codestream():
    name = FILES / "GDCMJ2K_TextGBR.dcm"
    expected = Image.fromarray(pixel_array(name)).convert("L")
    np.testing.assert_array_equal(gray(name), np.asarray(expected))


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
    with pytest.warns(UserWarning, match="more than the 12 bits"):
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
