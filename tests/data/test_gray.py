"""An image in memory is read by the rules of files, and one limit on pixels holds for both."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mxa.data import create_transform, read_image, to_gray
from mxa.data.gray import max_pixels
from mxa.utils.errors import InputError

from .dicom_files import dataset, save

RNG = np.random.default_rng(0)
PICTURE = np.repeat(np.repeat(RNG.integers(0, 256, (6, 8), dtype=np.uint8), 8, 0), 8, 1)
PICTURE[0, :2] = 0, 255
CFG = {"input_size": (3, 32, 40), "mean": (0.5,) * 3, "std": (0.25,) * 3}

IMAGES = {mode: Image.fromarray(PICTURE).convert(mode) for mode in ("L", "LA", "P", "RGB", "RGBA")}
IMAGES |= {
    "I;16": Image.fromarray(PICTURE.astype(np.uint16) * 257),
    "I": Image.fromarray(PICTURE.astype(np.int32) * 257),
    "F": Image.fromarray(PICTURE.astype(np.float32) / 255),
}
DEEP = PICTURE.astype(np.uint16) * 257
UNIT = PICTURE.astype(np.float32) / 255
ARRAYS = {
    "uint8": PICTURE,
    "uint8, one channel": PICTURE[..., None],
    "uint8, channel first": PICTURE[None],
    "RGB": np.stack([PICTURE] * 3, -1),
    "RGBA": np.stack([PICTURE] * 3 + [255 - PICTURE], -1),
    "RGB, channels first": np.stack([PICTURE] * 3),
    "uint16": DEEP,
    "big-endian": DEEP.astype(">u2"),
    "int64": DEEP.astype(np.int64),
    "uint16 RGB": np.stack([DEEP] * 3, -1),
    "float": UNIT,
    "float64": UNIT.astype(np.float64),
    "float RGB": np.stack([UNIT] * 3, -1),
    "not contiguous": np.asfortranarray(PICTURE)[::-1][::-1],
    "tensor": torch.from_numpy(PICTURE),
    "tensor of floats": torch.from_numpy(UNIT)[None].requires_grad_(),
    "tensor RGB": torch.from_numpy(UNIT).expand(3, -1, -1),
    "tensor of doubles": torch.from_numpy(UNIT).double(),
}


@pytest.mark.parametrize("kind", [*IMAGES, *ARRAYS])
def test_one_picture_in_every_form_gives_one_tensor(kind):
    transform = create_transform(CFG)
    expected = transform(Image.fromarray(PICTURE))
    image = (IMAGES | ARRAYS)[kind]
    gray = to_gray(image)
    assert gray.mode in ("L", "F") and gray.size == (64, 48)
    np.testing.assert_allclose(np.asarray(gray, float), PICTURE, atol=1e-3)
    torch.testing.assert_close(transform(image), expected, atol=6 / 255, rtol=0)  # 1.5 gray levels
    assert to_gray(gray) is gray


@pytest.mark.parametrize("name", ["8.png", "16.png", "16.tif", "f.tif", "rgb.png", "x.bmp"])
def test_files_and_memory_agree(tmp_path, name):
    mode = {"8": "L", "16": "I;16", "f": "F", "rgb": "RGB", "x": "L"}[name.split(".")[0]]
    IMAGES[mode].save(tmp_path / name)
    transform = create_transform(CFG)
    assert torch.equal(transform(read_image(tmp_path / name)), transform(IMAGES[mode]))
    with Image.open(tmp_path / name) as image:
        assert torch.equal(transform(read_image(tmp_path / name)), transform(image))


def test_a_dark_deep_picture_stays_dark():
    """Values are not guessed from their range: what read_image returns is not scaled a second time."""
    dark = to_gray(np.full((8, 8), 0.5 / 255, np.float32))
    assert dark.getextrema()[1] == pytest.approx(0.5)
    assert create_transform(CFG)(dark.resize((8, 8))).max() == pytest.approx((0.5 / 255 - 0.5) / 0.25)


def test_one_bit_and_bool():
    line = PICTURE > 100
    for image in (Image.fromarray(line), line, torch.from_numpy(line)):
        np.testing.assert_array_equal(np.asarray(to_gray(image)), np.where(line, 255, 0))


def test_colours_have_pils_weights():
    rgb = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(rgb).convert("L"), float)
    np.testing.assert_array_equal(np.asarray(to_gray(rgb)), expected)
    for deep in (rgb / 255, rgb.astype(np.uint16) * 257, torch.from_numpy(rgb / 255).permute(2, 0, 1)):
        np.testing.assert_allclose(np.asarray(to_gray(deep)), expected, atol=0.51)


def test_the_orientation_of_exif_is_applied():
    image = Image.fromarray(PICTURE)
    image.getexif()[0x0112] = 6
    assert to_gray(image).size == (48, 64) and image.size == (64, 48)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (IMAGES["RGB"].convert("CMYK"), "has channels CMYK"),
        (IMAGES["RGB"].convert("HSV"), "has channels HSV"),
        (IMAGES["RGB"].convert("LAB"), "has channels LAB"),
        (np.zeros((8, 8, 2), np.uint8), r"has shape \(8, 8, 2\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"has shape \(2, 3, 8, 8\)"),
        (np.zeros(8, np.uint8), r"has shape \(8,\)"),
        (np.zeros((0, 8), np.uint8), r"has shape \(0, 8\)"),
        (torch.zeros(5, 8, 8), r"has shape \(5, 8, 8\)"),
        (UNIT * 255, "floating-point values outside 0 to 1"),
        (UNIT - 0.5, "floating-point values outside 0 to 1"),
        (np.where(UNIT > 0.5, np.nan, UNIT), "not finite"),
        (np.where(UNIT > 0.5, np.inf, UNIT), "not finite"),
        (DEEP.astype(np.int32) - 1, "values outside 0 to 65535"),
        (DEEP.astype(np.int32) + 1, "values outside 0 to 65535"),
        (UNIT.astype(complex), "an array of complex128"),
        (np.full((4, 4), "a"), "an array of <U1"),
        ("x.png", "is str"),
        (None, "is NoneType"),
    ],
)
def test_what_is_refused(image, said):
    with pytest.raises(InputError, match=f"^the image .*{said}"):
        to_gray(image)
    with pytest.raises(InputError, match=said):
        create_transform(CFG)(image)


def test_a_file_behind_an_image_that_is_cut_short(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
    with Image.open(tmp_path / "x.png") as image, pytest.raises(InputError, match="the image does not decode"):
        to_gray(image)


@pytest.mark.parametrize("error", [TypeError("a"), MemoryError(), struct.error("b"), KeyError(1), zlib.error("c")])
def test_whatever_a_decoder_raises_is_the_images_error(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", fail)
    with pytest.raises(InputError, match=rf"x\.png does not decode as an image: .*{type(error).__name__}"):
        read_image(tmp_path / "x.png")


# the limit on pixels


def test_one_limit_for_every_kind(tmp_path, monkeypatch):
    for name in ("x.png", "x.jpg", "x.tif", "x.bmp", "x.webp"):
        Image.fromarray(PICTURE).save(tmp_path / name)
    save(tmp_path / "x.dcm", dataset(PICTURE))
    sources = [*sorted(tmp_path.iterdir()), IMAGES["RGB"], PICTURE, torch.from_numpy(UNIT)]
    read = [read_image] * 6 + [to_gray] * 3
    for limit, refused in ((PICTURE.size, False), (PICTURE.size - 1, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for function, source in zip(read, sources, strict=True):
            if refused:
                with pytest.raises(InputError, match="MXA_MAX_PIXELS"):
                    function(source)
            else:
                function(source)


def test_the_variable_sets_the_limit(tmp_path, monkeypatch):
    Image.new("L", (40, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # restored afterwards
    monkeypatch.setenv("MXA_MAX_PIXELS", "1199")
    with pytest.raises(InputError, match=r"x\.png has 40 x 30 pixels; at most 1,199 are read: .* set MXA_MAX_PIXELS"):
        read_image(tmp_path / "x.png")
    monkeypatch.setenv("MXA_MAX_PIXELS", "1200")
    assert read_image(tmp_path / "x.png").size == (40, 30)
    for text in ("many", "0", "-5", "1.5"):
        monkeypatch.setenv("MXA_MAX_PIXELS", text)
        with pytest.raises(InputError, match="MXA_MAX_PIXELS must be a whole number above 0"):
            read_image(tmp_path / "x.png")


def test_a_mammograms_size_opens_in_reasonable_memory(tmp_path):
    assert max_pixels() > 43_000_000
    deep = np.zeros((2500, 2000), np.uint16)
    deep[0, 0] = 65535
    Image.fromarray(deep).save(tmp_path / "x.tif")
    save(tmp_path / "x.dcm", dataset(deep))
    for name in ("x.tif", "x.dcm"):
        tracemalloc.start()
        assert read_image(tmp_path / name).size == (2000, 2500)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 11 * deep.size, f"{name}: {peak / deep.size:.1f} bytes a pixel"
