"""Loaders leave their dataset and each other alone, and send gray planes to the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from mxa.commands.prepare import PrepareConfig, prepare
from mxa.data import CXRDataset, create_dataset, create_transform, make_loader

CFG = {"input_size": (3, 24, 24), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
LARGE = {**CFG, "input_size": (3, 48, 48)}


@pytest.fixture(params=["files", "shards"])
def dataset(request, made_nih, tmp_path) -> CXRDataset:
    """24 images; as shards, six of four images."""
    root, options = made_nih(), {"views": "all"}
    if request.param == "files":
        return create_dataset("nih", root, "all", **options)
    output = tmp_path / "shards"
    prepare(PrepareConfig(output, data="nih", root=str(root), **options, format="png", shard_size=4, workers=1))
    return create_dataset("shards", output, "all", **options)


@pytest.fixture
def right(dataset) -> Callable[[dict], torch.Tensor]:
    """The images of a dataset in order, without a loader."""

    def images(cfg: dict) -> torch.Tensor:
        transform = create_transform(cfg)
        return torch.stack([transform(dataset.records.image(i)) for i in range(len(dataset))])

    return images


def exact(images: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(images, expected, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_loaders_of_one_dataset(dataset, right, workers):
    transform = create_transform(CFG)
    one, other = (make_loader(dataset, transform, 4, workers) for _ in range(2))
    epoch = iter(one)
    first = next(epoch)[0]
    whole = torch.cat([images for images, _ in other])
    rest = torch.cat([images for images, _ in epoch])
    expected = right(CFG)
    exact(whole, expected)
    exact(torch.cat([first, rest]), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_loader_keeps_its_own_transform(dataset, right, workers):
    large = make_loader(dataset, create_transform(LARGE), 4, workers)
    small = make_loader(dataset, create_transform(CFG), 6, workers)
    raw = make_loader(dataset, pil_to_tensor, 1)
    exact(torch.cat([images for images, _ in large]), right(LARGE))
    exact(torch.cat([images for images, _ in small]), right(CFG))
    assert next(iter(raw))[0].dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 2])
def test_training_beside_evaluation(dataset, right, workers):
    dataset.records.targets[:, 0] = np.arange(24)
    train = make_loader(dataset, create_transform(CFG), 5, workers, is_training=True)
    val = make_loader(dataset, create_transform(LARGE), 7, workers)
    assert (len(train), len(val)) == (4, 4)
    for (images, targets), (others, rows) in zip(train, val, strict=True):
        exact(images, right(CFG)[targets[:, 0].long()])
        exact(others, right(LARGE)[rows[:, 0].long()])
    assert len(dataset) == 24
    assert [int(i) for _, targets in val for i in targets[:, 0]] == list(range(24))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_changes_nothing_of_its_dataset(dataset, workers):
    before = dict(vars(dataset))
    for is_training in (True, False):
        loader = make_loader(dataset, create_transform(CFG), 4, workers, is_training=is_training)
        next(iter(loader))
        assert vars(dataset) == before
        list(loader)
        assert vars(dataset) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_and_bad_images_are_shared(made_nih, workers):
    dataset = create_dataset("nih", made_nih())
    dataset.seed, dataset.on_bad = 0, "replace"
    with open(dataset.filename(3), "w") as file:
        file.write("no image")
    loader = make_loader(dataset, create_transform(CFG, is_training=True), 4, workers)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat([images for images, _ in loader]))
    exact(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert dataset.bad_paths() == [dataset.filename(3)]


# What goes to the device


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_training", [False, True])
def test_planes_go_to_the_device_and_are_normalised_there(made_nih, crossings, workers, is_training):
    dataset = create_dataset("nih", made_nih())
    loader = make_loader(dataset, create_transform(CFG), 4, workers, is_training, device="meta")
    images, targets = next(iter(loader))
    assert images.device.type == targets.device.type == "meta"
    assert images.shape == (4, 3, 24, 24) and images.dtype == targets.dtype == torch.float32
    assert crossings == [("meta", torch.uint8, (4, 1, 24, 24))]


def test_finished_images_go_to_the_device_as_they_are(made_nih, crossings):
    loader = make_loader(create_dataset("nih", made_nih()), pil_to_tensor, 4, device="meta")
    assert next(iter(loader))[0].device.type == "meta"
    assert crossings == [("meta", torch.uint8, (4, 1, 40, 44))]
