"""What no radiograph can be is told, and no radiograph is taken for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mxa.data import check_radiograph, to_gray
from mxa.data.collections.phantom import draw
from mxa.data.image_io import list_images
from mxa.utils.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples" / "images"


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def gaussian(side: int, deviation: float) -> Image.Image:
    values = 128 + deviation * np.random.default_rng(0).standard_normal((side, side))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def photograph(kind: str = "RGB") -> Image.Image:
    """A landscape: blue above, green below, a yellow sun."""
    image = Image.new("RGB", (320, 240), (90, 150, 220))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 130, 320, 240), (60, 120, 40))
    pen.ellipse((220, 20, 270, 70), (250, 220, 60))
    return image.convert(kind)


def text(background: int) -> Image.Image:
    image = Image.new("L", (400, 300), background)
    ImageDraw.Draw(image).text((20, 20), "PORTABLE 12:30\nL\n" * 5, fill=255 - background)
    return image


@pytest.mark.parametrize("size", [(512, 512), (128, 128), (224, 300), (40, 44), (1500, 1400)])
def test_noise(size):
    for image in (noise(*size), Image.fromarray(np.asarray(noise(*size)).astype(np.uint16) * 257)):
        assert "is noise" in check_radiograph(image)


@pytest.mark.parametrize("deviation", [8, 40, 90])
def test_gaussian_noise(deviation):
    assert "is noise" in check_radiograph(gaussian(400, deviation))


@pytest.mark.parametrize("quality", [5, 30, 75, 95])
@pytest.mark.parametrize("side", [128, 512])
def test_compressed_noise(side, quality):
    assert "is noise" in check_radiograph(jpeg(noise(side, side), quality))


@pytest.mark.parametrize("side", [16, 32, 64, 100, 200])
@pytest.mark.parametrize("how", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_enlarged_noise(side, how):
    assert "is noise" in check_radiograph(noise(side, side).resize((600, 500), how))


@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_pictures(value):
    for image in (Image.new("L", (64, 64), value), np.full((64, 64, 3), value, np.uint8), torch.full((1, 8, 8), 0.3)):
        assert check_radiograph(image) == "every pixel has the same gray"


def test_almost_constant_pictures():
    ramp = np.linspace(100, 103, 64 * 64).reshape(64, 64).astype(np.uint8)
    assert "almost no contrast" in check_radiograph(ramp)


@pytest.mark.parametrize(("background", "said"), [(0, "is black in 9"), (255, "is white in 9")])
def test_text_on_an_empty_picture(background, said):
    assert said in check_radiograph(text(background))


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "YCbCr"])
def test_a_colour_photograph(kind):
    assert "is coloured" in check_radiograph(photograph(kind))


def test_colours_in_arrays_and_jpegs():
    rgb = np.asarray(photograph())
    tensor = torch.from_numpy(rgb / 255).permute(2, 0, 1)
    for image in (rgb, rgb / 255, rgb.astype(np.uint16) * 257, tensor, jpeg(photograph(), 60)):
        assert "is coloured" in check_radiograph(image)
    assert check_radiograph(to_gray(photograph())) is None  # its colours are gone


@pytest.mark.parametrize("colour", [0, 255])
def test_wide_margins_are_no_empty_picture(colour):
    picture = to_gray(draw(0, 200).image).convert("L")
    for side, passes in ((500, True), (1000, False)):
        page = Image.new("L", (side, side), colour)
        page.paste(picture, (side // 4, side // 3))
        said = check_radiograph(page)
        assert said is None if passes else "in 9" in said


@pytest.mark.filterwarnings("ignore:.*12 bits or fewer")
def test_twelve_bits_in_sixteen_are_not_black():
    values = np.asarray(to_gray(draw(0, 224).image), float)
    assert check_radiograph(np.uint16(values / 255 * 4095)) is None
    assert "black in 100%" in check_radiograph(np.uint16(values / 255 * 40))


TINTS = [(1, 0.93, 0.85), (0.85, 0.93, 1), (0.75, 0.85, 1), (0.55, 0.75, 1)]


@pytest.mark.parametrize("tint", TINTS)
def test_tinted_films_pass(tint):
    for path in list_images(EXAMPLES):
        with Image.open(path) as image:
            values = np.asarray(image.convert("L"))[..., None] / 255
        tinted = Image.fromarray(np.uint8(values * tint * 255))
        assert (np.ptp(np.asarray(tinted), axis=2) > 20).mean() > 0.1
        for picture in (tinted, jpeg(tinted, 60), np.uint8((0.1 + 0.9 * values) * tint * 255), values * tint):
            assert check_radiograph(picture) is None
        curved = np.uint8(255 * values ** (1 / np.array(tint)))  # each colour by a curve of its own
        assert check_radiograph(curved) is None


def test_colour_is_more_than_a_tint():
    gray = np.asarray(to_gray(draw(0, 224).image))[..., None] / 255
    beam = (np.arange(224) < 60)[None, :, None]
    for colours in (
        gray * (0.2, 0.3, 1),  # one hue, but strong
        np.where(beam, gray * (1, 0.8, 0.6), gray * (0.6, 0.8, 1)),  # two tints
        np.where(beam, (0.4, 0.6, 0.8), (0.8, 0.6, 0.4)),  # two pale colours of one brightness
    ):
        assert "is coloured" in check_radiograph(np.uint8(colours * np.ones((224, 224, 1)) * 255))


def test_tinted_nih_sample(nih_sample):
    for path in list_images(nih_sample / "images")[::25]:
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L").resize((128, 128)))
        for tint in TINTS:
            assert check_radiograph(np.uint8(gray[..., None] * np.array(tint))) is None, path


def test_drawn_and_real_radiographs_pass():
    for i in range(20):
        assert check_radiograph(draw(i, 224).image) is None
    for path in list_images(EXAMPLES):
        with Image.open(path) as image:
            assert check_radiograph(image) is None
            assert check_radiograph(image.convert("RGB")) is None
            assert check_radiograph(Image.eval(image.convert("L"), lambda v: 255 - v)) is None
            assert check_radiograph(jpeg(image.convert("RGB"), 30)) is None


def test_false_alarms_on_nih_sample(nih_sample):
    """The docstring's count is of all collections: examples/input_check_alarms.py."""
    files = list_images(nih_sample / "images")[::5]
    assert len(files) > 100
    for path in files:
        with Image.open(path) as image:
            assert check_radiograph(image) is None, path


def test_other_objects_are_refused():
    with pytest.raises(InputError, match="expected"):
        check_radiograph("x.png")
