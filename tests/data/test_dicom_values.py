"""DICOM tags that are wrong: LUTs whose bits lie, windows that do not read, sizes that lie, constant images."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

from mxa.data.dicom import read_dicom
from mxa.utils.errors import InputError

from .dicom_files import DEEP, coded, dataset, gray, lut, save, stretched


@pytest.fixture
def quiet():
    """Makes every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# VOI LUTs


@pytest.mark.parametrize("held", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("declared", [0, 1, 8, 10, 12, 14, 16, 99, 65535])
def test_a_voi_luts_own_range_counts(made, quiet, declared, held):
    top = 2**held - 1
    values = gray(made(VOILUTSequence=[lut(4096, 0, declared, np.arange(4096) * top // 4095)]))
    np.testing.assert_allclose(values, DEEP.astype(int) * top // 4095 / top * 255, atol=1e-3)


@pytest.mark.parametrize("top", [3000, 4000, 4095])
def test_a_voi_lut_that_does_not_reach_its_top(made, quiet, top):
    values = gray(made(VOILUTSequence=[lut(4096, 0, 12, np.arange(4096) * top // 4095)]))
    np.testing.assert_allclose(values, DEEP.astype(int) * top // 4095 / 4095 * 255, atol=1e-3)


def test_a_range_that_cannot_be_known_is_said(made):
    with pytest.warns(UserWarning, match=r"made\.dcm: its VOI LUT declares 16 bits and goes up to 2500: taken as 12"):
        values = gray(made(VOILUTSequence=[lut(4096, 0, 16, np.arange(4096) * 2500 // 4095)]))
    assert 150 < values.max() < 157


@pytest.mark.parametrize("bits", [0, 8, 16])
def test_a_voi_lut_of_zeros_is_black_not_nan(made, bits):
    with pytest.warns(UserWarning, match="every pixel has the same gray"):
        assert (gray(made(VOILUTSequence=[lut(4096, 0, bits, np.zeros(4096))])) == 0).all()


def test_a_voi_lut_with_fewer_entries_than_it_declares(made):
    with pytest.warns(UserWarning, match="declares 65536 entries and has 4096"):
        values = gray(made(VOILUTSequence=[lut(0, 0, 12, range(4096))]))
    np.testing.assert_allclose(values, DEEP / 4095 * 255, atol=1e-3)


def words(first, kind, bits, data) -> Dataset:
    """A LUT of 16-bit words with the first value as ``kind``, US or SS."""
    item = Dataset()
    item.add_new("LUTDescriptor", kind, [len(data), first, bits])
    item.add_new("LUTData", "OW", np.asarray(data, "<u2").tobytes())
    return item


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize(("first", "kind"), [(-2048, "SS"), (63488, "US")])
def test_a_negative_first_value_of_a_lut_whatever_its_type(made, quiet, first, kind, syntax):
    signed, table = DEEP.astype(np.int16) - 2048, [words(first, kind, 12, np.arange(4096))]
    for values in (
        gray(made(signed, syntax=syntax, VOILUTSequence=table)),
        gray(made(syntax=syntax, RescaleIntercept=-2048, RescaleSlope=1, VOILUTSequence=table)),
        gray(made(signed, syntax=syntax, ModalityLUTSequence=table, WindowCenter=2048, WindowWidth=4096)),
    ):
        np.testing.assert_allclose(values, DEEP / 4095 * 255, atol=1e-3)


def test_a_high_first_value_of_a_lut(made, quiet):
    table = words(40000, "US", 12, np.arange(4096))
    values = gray(made(DEEP + np.uint16(40000), VOILUTSequence=[table]))
    np.testing.assert_allclose(values, DEEP / 4095 * 255, atol=1e-3)


@pytest.mark.parametrize("declared", [4097, 8192, 0])
def test_a_short_lut_of_words_is_not_read_as_bytes(made, declared):
    table = words(0, "US", 12, np.arange(4096))
    table.LUTDescriptor = [declared, 0, 12]
    with pytest.warns(UserWarning, match="entries and has 4096: the contrast may be wrong"):
        values = gray(made(VOILUTSequence=[table]))
    np.testing.assert_allclose(values, DEEP / 4095 * 255, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_lut_of_packed_bytes_has_as_many_as_it_declares(made, quiet, bits):
    table = words(0, "US", bits, [])
    table.LUTDescriptor, table.LUTData = [255, 0, bits], bytes(range(1, 256)) + b"\0"
    np.testing.assert_allclose(gray(made(DEEP % 255, VOILUTSequence=[table])), DEEP % 255 + 1, atol=1e-3)


# windows and rescale


@pytest.mark.parametrize("text", ["0,5", "one", "1\\2"])
@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescale_that_does_not_read_is_named(made, tag, text):
    path = made(**{"RescaleSlope": "2.25", "RescaleIntercept": "3.75"})
    old = {"RescaleSlope": b"2.25", "RescaleIntercept": b"3.75"}[tag]
    path.write_bytes(path.read_bytes().replace(old, text.encode().ljust(4)))
    with pytest.raises(InputError, match=rf"made\.dcm has a {tag} that does not read as one number") as caught:
        read_dicom(path)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("text", ["2048,5", "wide", "1e", "20 48"])
@pytest.mark.parametrize("tag", ["WindowCenter", "WindowWidth"])
def test_a_window_that_does_not_read_is_ignored(made, tag, text):
    path = made(WindowCenter="2000.25", WindowWidth="3000.75")
    old = {"WindowCenter": b"2000.25", "WindowWidth": b"3000.75"}[tag]
    path.write_bytes(path.read_bytes().replace(old, text.encode().ljust(7)))
    with pytest.warns(UserWarning, match=r"made\.dcm: its window does not read and is ignored$"):
        np.testing.assert_allclose(gray(path), stretched(DEEP), atol=1e-3)


@pytest.mark.parametrize("slope", ["1e308", "-1e308", "nan", "1e999"])
def test_a_rescale_that_is_not_finite_is_refused(made, slope):
    path = made(RescaleSlope="7.25e0", RescaleIntercept=0)
    path.write_bytes(path.read_bytes().replace(b"7.25e0", slope.ljust(6).encode()))
    with pytest.raises(InputError, match=r"made\.dcm has pixel values that are not finite"):
        read_dicom(path)


def test_values_whose_range_is_not_finite_are_refused(made):
    with pytest.raises(InputError, match=r"made\.dcm has .* not finite"):
        read_dicom(made(np.int16([[-1, 1], [0, 1]]), RescaleSlope="1.7e308", RescaleIntercept="0"))


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 2000, "WindowWidth": 900}])
def test_a_constant_image_is_said(made, tags):
    with pytest.warns(UserWarning, match=r"made\.dcm: every pixel has the same gray"):
        assert np.ptp(gray(made(RescaleSlope=0, RescaleIntercept=7, **tags))) == 0


def test_large_images_do_not_depend_on_the_blocks(made, monkeypatch):
    tags = dict(PixelPaddingValue=7, PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=900)
    for some in (tags, {k: v for k, v in tags.items() if "Window" not in k}):
        whole = gray(made(**some))
        monkeypatch.setattr("mxa.data.dicom_values._BLOCK", 25)
        np.testing.assert_array_equal(gray(made(**some)), whole)
        monkeypatch.undo()


def test_colour_of_no_bits_is_refused(made):
    path = made(
        np.zeros((2, 2), np.uint8), PhotometricInterpretation="PALETTE COLOR",
        **{f"{c}PaletteColorLookupTableDescriptor": [4, 0, 0] for c in ("Red", "Green", "Blue")},
        **{f"{c}PaletteColorLookupTableData": bytes(4) for c in ("Red", "Green", "Blue")},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"made\.dcm"):
        read_dicom(path)


# sizes that lie


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("tags", [{"Columns": 9}, {"Rows": 11}, {"Columns": 5}, {"BitsAllocated": 8, "BitsStored": 8}])
def test_more_pixels_than_the_tags_say_are_refused(made, tags, syntax):
    with pytest.raises(InputError, match=r"made\.dcm does not read: it has \d+ bytes of pixels more than its tags say"):
        read_dicom(made(syntax=syntax, **tags))


def test_a_black_border_is_not_taken_for_fill(made):
    pixels = np.zeros((200, 100), np.uint16)
    pixels[:150, :80] = 500
    with pytest.raises(InputError, match="400 bytes of pixels more"):
        read_dicom(made(pixels, Columns=99))


@pytest.mark.parametrize("fill", [0, 1, 2, 100, 128])
def test_zeros_that_fill_a_block_are_read(made, quiet, fill):
    pixels = DEEP.astype(np.uint8)[:11, :9]  # an odd number of bytes
    data = pixels.tobytes() + b"\0" + bytes(fill - fill % 2)
    np.testing.assert_allclose(gray(made(pixels, PixelData=data)), stretched(pixels), atol=1e-3)


def test_more_pixels_in_run_lengths_are_refused(made):
    frame = RLELosslessEncoder.encode(
        DEEP.tobytes(), rows=12, columns=10, samples_per_pixel=1, bits_allocated=16, bits_stored=16,
        pixel_representation=0, photometric_interpretation="MONOCHROME2", number_of_frames=1, encoding_plugin="pydicom",
    )  # fmt: skip
    path = made(DEEP, syntax=uid.RLELossless, PixelData=frame)
    np.testing.assert_allclose(gray(path), stretched(DEEP), atol=1e-3)
    for lie in ({"Columns": 9}, {"Rows": 11}):
        with pytest.raises(InputError, match=r"made\.dcm does not read: its data has more pixels"):
            read_dicom(made(DEEP, syntax=uid.RLELossless, PixelData=frame, **lie))


# bits


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_more_bits_than_the_tags_say_are_said(made, syntax):
    for pixels in (DEEP << 4, DEEP | 0xA000, DEEP.astype(np.int16) << 4):
        tags = dict(BitsStored=12, HighBit=15)
        if syntax == uid.RLELossless:
            tags["PixelData"] = run_lengths(pixels)
        with pytest.warns(UserWarning, match=r"made\.dcm: its pixels use more than the 12 bits that its tags say"):
            gray(made(pixels, syntax=syntax, **tags))


def test_unused_bits_of_signed_pixels_are_sign_or_zero(made, quiet):
    signed = DEEP.astype(np.int16) - 2048
    for pixels in (signed, signed & 0xFFF):
        values = gray(made(pixels, BitsStored=12, HighBit=11, PixelRepresentation=1))
        np.testing.assert_allclose(values, stretched(signed), atol=1e-3)


def run_lengths(pixels: np.ndarray) -> bytes:
    return RLELosslessEncoder.encode(
        pixels, rows=12, columns=10, samples_per_pixel=1, bits_allocated=16, bits_stored=16,
        pixel_representation=int(pixels.dtype.kind == "i"), photometric_interpretation="MONOCHROME2",
        number_of_frames=1, encoding_plugin="pydicom",
    )  # fmt: skip


# what follows a JPEG


def picture() -> np.ndarray:
    return np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8) * 2


@pytest.mark.parametrize("after", [b"", bytes(2), bytes(64), bytes(2048), b"\xff" * 60, b" " * 30])
def test_what_follows_a_whole_jpeg_does_not_matter(tmp_path, after):
    whole = coded(picture(), "JPEG")
    ds = dataset(picture(), syntax=uid.JPEGBaseline8Bit)
    ds.PixelData = encapsulate([whole + after])
    with Image.open(io.BytesIO(whole)) as image:
        expected = np.asarray(image)
    np.testing.assert_allclose(gray(save(tmp_path / "x.dcm", ds)), stretched(expected), atol=3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("after", [b"", bytes(40)])
def test_a_cut_jpeg_is_refused_whatever_follows(tmp_path, share, after, progressive):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    frame, thumbnail = coded(noise, "JPEG", progressive=progressive), coded(noise[:8, :8], "JPEG")
    frame = frame[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + frame[2:]
    ds = dataset(noise, syntax=uid.JPEGBaseline8Bit)
    ds.PixelData = encapsulate([frame[: int(len(frame) * share)] + after])
    with pytest.raises(InputError, match=r"cut\.dcm is cut short"):
        read_dicom(save(tmp_path / "cut.dcm", ds))
