import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mxa.data import CXRDataset, create_dataset, create_transform
from mxa.data.boxes import BoxedDataset, boxed_images, read_boxed
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
    records = create_dataset("nih", boxed_nih, "test").records
    with pytest.raises(InputError, match="shards do not hold the images' names"):
        boxed_images(records, "shards", boxed_nih, boxed_nih / "BBox_List_2017.csv")
    (boxed_nih / "BBox_List_2017.csv").unlink()
    with pytest.raises(InputError, match="BBox_List_2017"):
        read_boxed("nih", boxed_nih)


# As a dataset


BOXES = {"0.png": ("Mass,10,20,50,80",), "1.png": ("Nodule,0,0,20,20", "Mass,30,40,60,90", "Nodule,5,50,25,100")}
CFG = {"input_size": (1, 64, 48), "mean": (0.0,), "std": (1.0,), "interpolation": "bilinear"}


@pytest.fixture
def boxed(tmp_path):
    """Opens a table of three images of 80 x 100 pixels, two with boxes."""
    rows = [("path", "patient", "Mass", "Nodule", "Edema"), *((f"{i}.png", f"p{i}", 1, i % 2, 0) for i in range(3))]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (100, 80), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    lines = [f"{name},{row}" for name, found in BOXES.items() for row in found]
    (tmp_path / "b.csv").write_text("\n".join(["path,label,x1,y1,x2,y2", *lines]))
    records, images = read_boxed("table", tmp_path / "t.csv", "all", tmp_path / "b.csv")
    return lambda labels=("Edema", "Mass", "Nodule"), **fields: BoxedDataset(records, images, labels, **fields)


def test_samples_are_images_and_boxes_with_the_number_of_their_label(boxed):
    dataset = boxed(transform=create_transform(CFG))
    assert len(dataset) == 2 and dataset.findings == ("Mass", "Nodule")
    image, boxes = dataset[1]
    assert image.shape == (1, 64, 48) and boxes.dtype == torch.float32
    sides = torch.tensor([80, 100, 80, 100])
    expected = torch.tensor([[0, 0, 20, 20], [5, 50, 25, 100], [30, 40, 60, 90]]) / sides
    torch.testing.assert_close(boxes, torch.cat([expected, torch.tensor([[2.0], [2], [1]])], 1))
    _, boxes = dataset[0]
    torch.testing.assert_close(boxes, torch.tensor([[0.125, 0.2, 0.625, 0.8, 1], [-1] * 5, [-1] * 5]))
    assert boxed(("Nodule", "Mass"))[0][1][0, 4] == 1


def test_boxes_of_other_labels_are_left_out(boxed):
    dataset = boxed(("Nodule",))
    assert len(dataset) == 1 and dataset.findings == ("Nodule",) and dataset[0][1][:, 4].tolist() == [0, 0]
    assert dataset.records.paths.tolist() == ["1.png"]
    with pytest.raises(InputError, match="no box is of one of the labels Edema: there are Mass, Nodule"):
        boxed(("Edema",))


def test_images_are_reduced_and_never_enlarged(boxed):
    whole, boxes = boxed()[1]
    small, same = boxed(reduce=40)[1]
    large, _ = boxed(reduce=400)[1]
    assert (whole.size, small.size, large.size) == ((80, 100), (32, 40), (80, 100))
    torch.testing.assert_close(boxes, same)


def test_a_box_that_a_crop_leaves_out_is_marked(boxed):
    dataset = boxed(transform=create_transform(CFG, True, scale=(0.1, 0.5), rotation=20.0), seed=0)
    left = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        _, boxes = dataset[1]
        kept = boxes[boxes[:, 4] >= 0]
        assert (kept[:, :2] < kept[:, 2:4]).all() and (kept[:, :4] >= 0).all() and (kept[:, :4] <= 1).all()
        assert (boxes[len(kept) :] == -1).all()  # they are the last
        left.add(len(kept))
    assert left >= {0, 1, 2}


def test_seeded_samples_are_those_of_the_epoch_and_of_the_dataset_without_boxes(boxed):
    transform = create_transform(CFG, True, hflip=0.5)
    dataset = boxed(transform=transform, seed=3)
    first = [dataset[i] for i in (0, 1)]
    dataset.set_epoch(1)
    assert not torch.equal(dataset[1][0], first[1][0]) and not torch.equal(dataset[1][1], first[1][1])
    dataset.set_epoch(0)
    plain = CXRDataset(dataset.records, transform, seed=3)
    for i, (image, boxes) in enumerate(first):
        again = dataset[i]
        assert torch.equal(again[0], image) and torch.equal(again[1], boxes) and torch.equal(plain[i][0], image)


def test_an_image_that_does_not_read_has_no_box(boxed):
    dataset = boxed(transform=create_transform(CFG), on_bad="mask")
    Path(dataset.records.path(0)).write_bytes(b"no image")
    image, boxes = dataset[0]
    assert image.shape == (1, 64, 48) and (boxes == -1).all() and dataset.bad.tolist() == [True, False]
    with pytest.raises(InputError, match=r"0\.png"):
        boxed()[0]
