"""Every DICOM file reads or is an error that names it; decompression bombs are refused before they are decoded."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder

from mxa.data import dicom
from mxa.data.dicom import is_dicom, read_dicom, read_header
from mxa.utils.errors import InputError

from .dicom_files import DEEP, FILES, REQUIRED, coded, dataset, gray, save, stretched

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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg_2000_in_boxes(made, dtype):
    image = (np.random.default_rng(0).integers(0, 256, (24, 32)) * (257 if dtype == np.uint16 else 1)).astype(dtype)
    frame = coded(image, "JPEG2000", irreversible=False)
    assert frame[4:8] == b"jP  "
    path = made(image, syntax=uid.JPEG2000Lossless, PixelData=frame)
    np.testing.assert_allclose(gray(path), stretched(image), atol=1e-3)
    decoy = b"\0\0\0\x40free" + coded(image[:8, :8], "JPEG2000", no_jp2=True)[:56]
    bomb = coded(np.zeros((64, 64), dtype), "JPEG2000")
    with pytest.raises(InputError, match="header of 64 x 64"):
        read_dicom(made(image[:8, :8], syntax=uid.JPEG2000Lossless, PixelData=bomb[:12] + decoy + bomb[12:]))
    with pytest.raises(InputError, match="no JPEG header"):
        read_dicom(made(image, syntax=uid.JPEG2000Lossless, PixelData=frame[:12] + bytes(40)))


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
