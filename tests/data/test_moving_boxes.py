"""Boxes move with the picture: a drawn rectangle is found again by its pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from mxa.data import create_transform
from mxa.data.transforms import RandomPart
from mxa.utils.errors import InputError

HIGH, WIDE = 96, 128  # of the input; the image is 200 wide and 150 high, so it is squashed
CFG = {"input_size": (1, HIGH, WIDE), "mean": (0.0,), "std": (1.0,), "interpolation": "bilinear"}
RECTANGLE = (60, 45, 110, 100)
OFF = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "rotation": 0.0, "hflip": 0.0}
KINDS = {
    "squash": {},
    "crop": {"scale": (0.3, 0.9), "ratio": (0.7, 1.4)},
    "flip": {"hflip": 0.5},
    "rotation": {"rotation": 30.0},
    "all": {"scale": (0.5, 1.0), "ratio": (0.8, 1.2), "rotation": 15.0, "hflip": 0.5},
}


def picture(mode: str = "L") -> Image.Image:
    pixels = np.zeros((150, 200), np.uint8)
    x1, y1, x2, y2 = RECTANGLE
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels).convert(mode)


def boxes_in(image: Image.Image, *corners: tuple[float, ...]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        torch.tensor(corners).float(), format="XYXY", canvas_size=(image.height, image.width)
    )


@pytest.mark.parametrize("mode", ["L", "F"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_box_of_a_drawn_rectangle(kind, mode):
    image = picture(mode)
    transform = create_transform(CFG, is_training=True, **{**OFF, **KINDS[kind]})
    whole = 0
    for seed in range(150):
        torch.manual_seed(seed)
        plane, boxes = transform(image, boxes_in(image, RECTANGLE))
        assert boxes.canvas_size == (HIGH, WIDE) and boxes.format == tv_tensors.BoundingBoxFormat.XYXY
        (box,) = boxes.as_subclass(torch.Tensor).numpy()
        bright = plane[0].numpy() > 0.5
        if not box.any():
            continue  # cut to less than a quarter
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (box[:2] < found[:2] + 1.5).all() and (box[2:] > found[2:] - 1.5).all()  # it encloses it
        if (box > 0).all() and (box < [WIDE, HIGH] * 2).all():
            whole += 1
            assert np.abs(box - found).max() < 2
    assert whole > (20 if kind == "crop" else 60)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_is_the_same_with_and_without_boxes(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200), dtype=np.uint8))
    transform = create_transform(CFG, is_training=True, **{**OFF, **KINDS[kind]})
    for seed in range(10):
        torch.manual_seed(seed)
        alone, after = transform(noise), torch.rand(1)
        torch.manual_seed(seed)
        image, _ = transform(noise, boxes_in(noise, RECTANGLE))
        assert torch.equal(image, alone) and torch.equal(torch.rand(1), after)


def test_evaluation_squashes_boxes_too():
    image = picture()
    _, boxes = create_transform(CFG)(image, boxes_in(image, RECTANGLE, (0.0, 0.0, 200.0, 150.0)))
    expected = torch.tensor([[60 * 0.64, 45 * 0.64, 110 * 0.64, 100 * 0.64], [0, 0, WIDE, HIGH]])
    torch.testing.assert_close(boxes.as_subclass(torch.Tensor), expected)


def test_a_box_of_which_a_crop_keeps_less_than_a_quarter_is_empty():
    image = picture()
    part = RandomPart((HIGH, WIDE), (0.25, 0.25), (1.0, 1.0))
    kept = []
    for seed in range(200):
        torch.manual_seed(seed)
        top, left, high, wide = RandomPart.get_params(image, part.scale, part.ratio)
        x1, y1, x2, y2 = RECTANGLE
        across, down = min(x2, left + wide) - max(x1, left), min(y2, top + high) - max(y1, top)
        share = max(across, 0) * max(down, 0) / ((x2 - x1) * (y2 - y1))
        torch.manual_seed(seed)
        _, boxes = part(image, boxes_in(image, RECTANGLE))
        kept.append(share >= 0.25)
        assert bool(boxes.any()) == kept[-1], share
    assert 50 < sum(kept) < 190


def test_an_empty_box_stays_empty_when_it_is_rotated_and_flipped():
    image = picture()
    transform = create_transform(CFG, is_training=True, scale=(0.1, 0.1), rotation=30.0, hflip=0.5)
    empty = 0
    for seed in range(100):
        torch.manual_seed(seed)
        _, boxes = transform(image, boxes_in(image, (0.0, 0.0, 15.0, 15.0)))
        seen = (boxes[:, :2] < boxes[:, 2:]).all(1)
        x1, y1, x2, y2 = boxes[0].tolist()
        assert bool(seen) == ((x2 - x1) * (y2 - y1) > 20), boxes  # a real box is never a few pixels at this enlargement
        empty += not seen
    assert empty > 50


def test_no_box_at_all():
    image = picture()
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(150, 200))
    _, moved = create_transform(CFG, is_training=True, hflip=0.5)(image, boxes)
    assert moved.shape == (0, 4) and moved.canvas_size == (HIGH, WIDE)


@pytest.mark.parametrize("name", ["paper", "better"])
def test_boxes_do_not_move_with_the_papers_sets(name):
    image = picture()
    transform = create_transform(CFG, is_training=True, augment=name)
    with pytest.raises(
        InputError, match="boxes do not move with the augmentations paper and better: give --augment crop"
    ):
        transform(image, boxes_in(image, RECTANGLE))
