"""Every kind of file is read as one gray channel, or is an error that names it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mxa.data.image_io import IMAGE_SUFFIXES, read_image
from mxa.utils.errors import InputError

RAMP = np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_give_the_gray_plane(tmp_path, mode):
    path = tmp_path / "x.png"
    image = Image.fromarray(RAMP).convert("RGB").convert(mode)
    if mode == "P":
        image = Image.fromarray(RAMP).convert("P")
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    gray = read_image(path)
    assert gray.mode == "L"
    np.testing.assert_array_equal(np.asarray(gray), RAMP)


@pytest.mark.parametrize("suffix", [s for s in IMAGE_SUFFIXES if s not in (".dcm", ".dicom")])
def test_every_suffix_reads(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(RAMP).save(path)
    assert read_image(path).mode == "L"
    np.testing.assert_allclose(np.asarray(read_image(str(path))).astype(int), RAMP, atol=8)  # lossy kinds


def scene(width: int = 640, height: int = 512) -> Image.Image:
    """A smooth picture with edges, so that a wrong size or shift shows."""
    y, x = np.mgrid[:height, :width]
    values = 128 + 90 * np.sin(x / 37) * np.cos(y / 23) + 30 * ((x // 64 + y // 64) % 2)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        (None, (640, 512)),
        ((512, 640), (640, 512)),
        ((257, 300), (640, 512)),  # half would be too small
        ((256, 320), (320, 256)),
        ((224, 224), (320, 256)),
        ((129, 128), (320, 256)),
        ((128, 160), (160, 128)),
        ((128, 128), (160, 128)),
        ((64, 64), (80, 64)),
        ((8, 8), (80, 64)),
        ((2000, 2000), (640, 512)),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpegs_decode_at_the_nearest_size_that_is_no_smaller(tmp_path, size, decoded, mode):
    scene().convert(mode).save(tmp_path / "x.jpg", quality=95)
    image = read_image(tmp_path / "x.jpg", size)
    assert image.mode == "L" and image.size == decoded
    full = read_image(tmp_path / "x.jpg").resize(decoded, Image.Resampling.BOX)
    difference = np.abs(np.asarray(image, float) - np.asarray(full, float))
    assert difference.mean() < 1.5


def test_other_files_do_not_change_with_the_size_asked_for(tmp_path):
    scene().save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", (64, 64)).size == (640, 512)


def test_a_stream_reads_as_its_file_does(tmp_path):
    scene().save(tmp_path / "x.jpg")
    stream = io.BytesIO((tmp_path / "x.jpg").read_bytes())
    np.testing.assert_array_equal(np.asarray(read_image(stream)), np.asarray(read_image(tmp_path / "x.jpg")))


def test_one_bit_png(tmp_path):
    Image.fromarray(RAMP > 100).save(tmp_path / "x.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.png")), np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_scaled_not_cut(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(np.array([[0, 257, 30000], [32768, 65278, 65535]], dtype=np.uint16)).save(path)
    image = read_image(path)
    assert image.mode == "F"
    expected = [[0, 1, 30000 / 257], [32768 / 257, 254, 255]]
    np.testing.assert_allclose(np.asarray(image), expected, rtol=1e-6)


def test_float_tiff_is_taken_as_0_to_1(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.float32([[0, 0.5, 1], [0.1, 0.9, 0.25]])).save(path)
    np.testing.assert_allclose(np.asarray(read_image(path)), [[0, 127.5, 255], [25.5, 229.5, 63.75]], rtol=1e-5)
    Image.fromarray(np.float32([[0, 255]])).save(path)
    with pytest.raises(InputError, match=r"x\.tif has floating-point values outside 0 to 1"):
        read_image(path)


def test_twelve_bits_in_sixteen_are_said(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.uint16([[0, 4000]])).save(path)
    with pytest.warns(UserWarning, match="12 bits or fewer"):
        read_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error(tmp_path, value):
    path = tmp_path / "broken.tif"
    Image.fromarray(np.float32([[0, 0.5], [1, value]])).save(path)
    with pytest.raises(InputError, match=r"broken\.tif has pixel values that are not finite"):
        read_image(path)


def test_cmyk_is_an_error(tmp_path):
    path = tmp_path / "print.jpg"
    Image.fromarray(RAMP).convert("CMYK").save(path)
    with pytest.raises(InputError, match=r"print\.jpg has channels CMYK; expected gray or RGB"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_errors(tmp_path, suffix, share):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"cut\{suffix} does not decode as an image"):
        read_image(path)


def test_text_named_png_is_an_error(tmp_path):
    (tmp_path / "note.png").write_text("not an image")
    with pytest.raises(InputError, match=r"note\.png does not decode"):
        read_image(tmp_path / "note.png")


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"no image .*gone\.png"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match=rf"{tmp_path.name} does not decode"):
        read_image(tmp_path)


def test_a_decompression_bomb_is_an_error(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"bomb\.png does not decode"):
        read_image(tmp_path / "bomb.png")


def test_a_png_with_one_damaged_byte_reads_or_is_an_error(tmp_path):
    path = tmp_path / "damaged.png"
    Image.fromarray(RAMP).save(path)
    data = path.read_bytes()
    damages = [(i, value) for i in range(len(data)) for value in (0, data[i] ^ 1)]
    refused = 0
    for i, value in damages:
        path.write_bytes(data[:i] + bytes([value]) + data[i + 1 :])
        try:
            read_image(path)
        except InputError as error:
            assert "damaged.png" in str(error)
            refused += 1
    assert refused > len(damages) / 4


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (3000, 3000)).save(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size < 5000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(InputError, match=r"x\.png does not decode as an image: .*decompression bomb"):
        read_image(tmp_path / "x.png")


def test_orientation_of_exif_is_applied(tmp_path):
    pixels = np.zeros((10, 20), np.uint8)
    pixels[:, 15:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to show
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    image = read_image(tmp_path / "phone.png")
    assert image.size == (10, 20) and np.asarray(image)[15:].min() == 255 and np.asarray(image)[:15].max() == 0


def test_several_frames_are_refused(tmp_path):
    page = Image.fromarray(np.zeros((4, 4), np.uint8))
    page.save(tmp_path / "two.tif", save_all=True, append_images=[page])
    with pytest.raises(InputError, match=r"two\.tif has 2 frames; expected one image"):
        read_image(tmp_path / "two.tif")


def test_32_bit_values_beyond_16_are_refused(tmp_path):
    for value in (70_000, -1):
        Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "deep.tif")
        with pytest.raises(InputError, match=r"deep\.tif has values outside 0 to 65535"):
            read_image(tmp_path / "deep.tif")


def test_a_png_is_compared_with_its_checksums(tmp_path):
    """PIL alone gives another picture for some of these, without a word."""
    values = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(values).save(path)
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 4
    for at in range(start, start + 4000, 97):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        for source in (path, io.BytesIO(damaged)):
            with pytest.raises(InputError, match="does not decode as an image"):
                read_image(source)
    assert np.array_equal(np.asarray(read_image(io.BytesIO(whole))), values)
