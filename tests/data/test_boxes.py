import csv

import numpy as np
import pytest

from mxa.data.boxes import read_boxed
from mxa.data.collections.phantom import draw
from mxa.utils.errors import InputError


@pytest.fixture
def boxed_nih(made_nih):
    """The made collection, with lists; two of its test images and one of its training images have boxes."""
    root = made_nih(lists=True)
    header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
    rows = [
        ("00000006_001.png", "Infiltrate", 0, 256, 512, 256),
        ("00000006_001.png", "Infiltrate", 512, 512, 256, 512),
        ("00000007_002.png", "Mass", 0, 0, 1024, 1024),
        ("00000001_000.png", "Mass", 0, 0, 512, 512),
    ]
    with (root / "BBox_List_2017.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def test_nih_images_with_boxes(boxed_nih):
    records, images = read_boxed("nih", boxed_nih)
    assert [(i.name, i.patient) for i in images] == [("00000006_001.png", "6"), ("00000007_002.png", "7")]
    assert [records.paths[i.index] for i in images] == [f"images/{i.name}" for i in images]
    np.testing.assert_allclose(images[0].boxes["Infiltration"], [[0, 0.25, 0.5, 0.5], [0.5, 0.5, 0.75, 1]])
    assert list(images[1].boxes) == ["Mass"]
    _, every = read_boxed("nih", boxed_nih, "all")
    assert sorted(i.name for i in every) == ["00000001_000.png", "00000006_001.png", "00000007_002.png"]


def test_phantom_images_have_the_boxes_they_are_drawn_with(monkeypatch):
    monkeypatch.setattr("mxa.data.collections.phantom.COUNT", 60)
    records, images = read_boxed("phantom", None)
    assert 0 < len(images) <= len(records) < 60
    for image in images:
        sample = draw(int(image.name.partition("-")[2]), 64)
        assert image.patient == str(sample.patient) and image.boxes.keys() == sample.boxes.keys()
        for finding, boxes in image.boxes.items():
            np.testing.assert_array_equal(boxes, sample.boxes[finding])


def test_what_has_no_boxes_is_named(boxed_nih, made_chexpert):
    with pytest.raises(InputError, match="no image of split val has a box"):
        read_boxed("nih", boxed_nih, "val")
    with pytest.raises(InputError, match="'chexpert' has no boxes of its own: give --boxes FILE"):
        read_boxed("chexpert", made_chexpert())
    (boxed_nih / "BBox_List_2017.csv").unlink()
    with pytest.raises(InputError, match="BBox_List_2017"):
        read_boxed("nih", boxed_nih)
