"""TIFF files whose 0 is white, of either byte order and any compression; pages without end."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from mxa.data import to_gray
from mxa.data.image_io import read_image
from mxa.utils.errors import InputError

PICTURE = np.add.outer(np.arange(48), np.arange(40)) / 86  # 0 to 1
COMPRESSIONS = [None, "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"]
SCALES = {"<u1": 255, "<u2": 65535, ">u2": 65535, "<i4": 65535, ">i4": 65535, "<f4": 1, ">f4": 1}


def tiff(
    values: np.ndarray, photometric: int, bits: int, kind: int, order: str = "<", deflate: bool = False, width: int = 0
) -> bytes:
    """A TIFF of one strip, written by hand."""
    data = np.ascontiguousarray(values).tobytes()
    data = zlib.compress(data) if deflate else data
    height, width = values.shape[0], width or values.shape[1] * (8 // bits if bits < 8 else 1)
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 8 if deflate else 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, kind),
    ]  # fmt: skip
    at = 8 + len(data) + len(data) % 2
    table = struct.pack(order + "H", len(entries))
    for tag, form, value in entries:
        packed = struct.pack(order + "HH", value, 0) if form == 3 else struct.pack(order + "I", value)
        table += struct.pack(order + "HHI", tag, form, 1) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)
    return head + data + b"\0" * (len(data) % 2) + table + struct.pack(order + "I", 0)


def read(data: bytes) -> np.ndarray:
    return np.asarray(read_image(io.BytesIO(data)), float)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("white", [False, True])
def test_depths_and_byte_orders(dtype, white, deflate):
    scale, kind = SCALES[dtype], {"u": 1, "i": 2, "f": 3}[dtype[1]]
    values = (1 - PICTURE if white else PICTURE) * scale
    values = (values if kind == 3 else values.round()).astype(dtype)
    data = tiff(values, 0 if white else 1, 8 * values.dtype.itemsize, kind, dtype[0], deflate)
    np.testing.assert_allclose(read(data), PICTURE * 255, atol=0.51 if scale == 255 else 0.01)
    if not (white and dtype in (">u2", "<i4", ">i4")):  # these do not open with Pillow alone
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(to_gray(image), float), read(data))


@pytest.mark.parametrize("white", [False, True])
def test_signed_16_bits(white):
    """0 to 32767 is half of 0 to 65535; which of them would be black is not known."""
    data = tiff((PICTURE * 32767).astype(">i2"), 0 if white else 1, 16, 2, ">", deflate=True)
    if white:
        with pytest.raises(InputError, match="a kind of TIFF that is not read: save it with 8 or 16 bits, or as PNG"):
            read(data)
    else:
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(to_gray(image), float), read(data))
        np.testing.assert_allclose(read(data), PICTURE * 127.5, atol=0.01)


@pytest.mark.parametrize("kind", ["tiff_lzw", "packbits", "raw"])
@pytest.mark.parametrize("as_path", [False, True])
def test_what_pillow_writes_and_does_not_read(tmp_path, kind, as_path):
    values = ((1 - PICTURE) * 65535).astype(">u2")
    image = Image.frombytes("I;16B", values.shape[::-1], values.tobytes())
    image.save(tmp_path / "x.tif", compression=kind, tiffinfo={262: 0})
    buffer = io.BytesIO(b"before" + (tmp_path / "x.tif").read_bytes())
    buffer.seek(6)
    got = read_image(tmp_path / "x.tif" if as_path else buffer)
    np.testing.assert_allclose(np.asarray(got), PICTURE * 255, atol=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("white", [False, True])
def test_twelve_bits_packed(white, deflate):
    values = np.rint((1 - PICTURE if white else PICTURE) * 4095).astype(int)
    one, two = values[:, ::2], values[:, 1::2]
    packed = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], -1).reshape(len(values), -1)
    data = tiff(packed.astype(np.uint8), 0 if white else 1, 12, 1, deflate=deflate, width=values.shape[1])
    np.testing.assert_allclose(read(data), PICTURE * 255, atol=0.05)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
def test_colours_in_separate_planes(dtype, deflate):
    top, order = np.iinfo(dtype).max, "<>"[dtype[0] == ">"]
    rgb = (np.stack([PICTURE, PICTURE**2, PICTURE**3]) * top).astype(dtype)
    data = planes(rgb, order, deflate)
    expected = np.asarray(Image.fromarray(np.uint8(np.moveaxis(rgb / (top // 255), 0, -1))).convert("L"), float)
    np.testing.assert_allclose(read(data), expected, atol=1.01)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(to_gray(image), float), read(data))


def planes(rgb: np.ndarray, order: str, deflate: bool) -> bytes:
    """A TIFF of three planes, written by hand."""
    strips = [zlib.compress(p.tobytes()) if deflate else p.tobytes() for p in rgb]
    bits = struct.pack(order + "3H", *[8 * rgb.itemsize] * 3)
    starts = np.cumsum([8 + 30, *map(len, strips)])
    body = bits + struct.pack(order + "3I", *starts[:3]) + struct.pack(order + "3I", *map(len, strips))
    data = body + b"".join(strips)
    data += b"\0" * (len(data) % 2)
    entries = [
        (256, 4, 1, rgb.shape[2]), (257, 4, 1, rgb.shape[1]), (258, 3, 3, 8), (259, 3, 1, 8 if deflate else 1),
        (262, 3, 1, 2), (273, 4, 3, 14), (277, 3, 1, 3), (278, 4, 1, rgb.shape[1]), (279, 4, 3, 26), (284, 3, 1, 2),
    ]  # fmt: skip
    table = struct.pack(order + "H", len(entries))
    for tag, form, count, value in entries:
        short = form == 3 and count == 1
        packed = struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
        table += struct.pack(order + "HHI", tag, form, count) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + table + struct.pack(order + "I", 0)


@pytest.mark.parametrize("bits", [1, 4])
def test_fewer_bits_whose_0_is_white(bits):
    values = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(read(tiff(~values, 0, bits, 1)), read(tiff(values, 1, bits, 1)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mode", ["L", "I;16", "F"])
def test_compressions_whose_0_is_white(mode, compression):
    scale = {"L": 255, "I;16": 65535, "F": 1}[mode]
    values = ((1 - PICTURE) * scale).astype({"L": np.uint8, "I;16": np.uint16, "F": np.float32}[mode])
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", compression=compression)
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert buffer.getvalue().count(entry) == 1
    data = buffer.getvalue().replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    np.testing.assert_allclose(read(data), PICTURE * 255, atol=1)
    with Image.open(io.BytesIO(data)) as image:  # in memory it is read by the same rule
        np.testing.assert_array_equal(np.asarray(to_gray(image), float), read(data))


@pytest.mark.skipif(not features.check("libtiff"), reason="Pillow has no libtiff")
def test_group_4_and_jpeg():
    line = PICTURE > 0.5
    for kind, image, atol in (
        ("group4", Image.fromarray(line), 0),
        ("jpeg", Image.fromarray(np.uint8(line * 255)), 60),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF", compression=kind)
        np.testing.assert_allclose(read(buffer.getvalue()), line * 255.0, atol=atol)


def test_twelve_bits_in_a_tiff_whose_0_is_white_are_said():
    data = tiff(np.uint16([[65535, 65000], [63000, 62000]]), 0, 16, 1)
    with pytest.warns(UserWarning, match="12 bits or fewer"):
        np.testing.assert_allclose(read(data)[0], [0, 535 / 257], rtol=1e-5)


# pages


def chained(pages: int) -> bytes:
    """A TIFF whose directories follow each other, two bytes apart, each of no entry."""
    data = bytearray(tiff(np.zeros((4, 4), np.uint8), 1, 8, 1))
    data[-4:] = struct.pack("<I", len(data))
    for _ in range(pages):
        data += struct.pack("<HI", 0, len(data) + 6)
    return bytes(data[:-4]) + bytes(4)


def test_an_empty_second_page_is_an_error():
    with pytest.raises(InputError, match=r"does not decode as an image: its decoder failed \(TypeError\)"):
        read(chained(1))


def test_many_pages_are_not_counted_to_the_end(monkeypatch):
    page = Image.new("L", (2, 2))
    buffer = io.BytesIO()
    page.save(buffer, "TIFF", save_all=True, append_images=[page] * 30)
    loads = []
    real = TiffImagePlugin.ImageFileDirectory_v2.load
    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", lambda *a: loads.append(1) or real(*a))
    with pytest.raises(InputError, match="has 10 or more frames"):
        read(buffer.getvalue())
    assert len(loads) < 40


def test_a_loop_of_pages_ends():
    data = bytearray(tiff(np.zeros((4, 4), np.uint8), 1, 8, 1))
    data[-4:] = data[4:8]  # the next directory is the first
    assert read(bytes(data)).shape == (4, 4)
