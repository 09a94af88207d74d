"""Samples, loaders, seeded augmentation, and images that do not read."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageDataset, create_loader
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms.functional import pil_to_tensor

from mxa.data import CXRDataset, Records, create_dataset, create_transform, make_loader
from mxa.data.loader import TrainSampler
from mxa.utils.errors import InputError

CFG = {"input_size": (1, 24, 24), "mean": (0.5,), "std": (0.25,)}


def draws(image) -> torch.Tensor:
    """A transform that shows the state of every random generator."""
    return torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])


def collect(dataset: CXRDataset, transform, workers: int, batch_size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(make_loader(dataset, transform, batch_size, workers))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def spoil(dataset: CXRDataset, *indices: int) -> None:
    for i in indices:
        with open(dataset.filename(i), "w") as file:
            file.write("no image")


# Samples and loaders


def test_a_sample_is_an_image_and_its_targets(made_nih):
    dataset = create_dataset("nih", made_nih(), labels="chexpert")
    assert isinstance(dataset, ImageDataset)
    assert len(dataset) == 24
    image, target = dataset[3]
    assert image.mode == "L" and image.size == (44, 40)
    assert target.dtype == torch.float32 and target.shape == (14,)
    np.testing.assert_array_equal(target, dataset.records.targets[3])
    assert target.isnan().any() and target.nansum() == 1
    dataset.transform = create_transform(CFG)
    assert dataset[3][0].shape == (1, 24, 24)


def test_a_changed_target_does_not_change_the_records(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset[0][1].fill_(7)
    assert dataset.records.targets.max() == 1
    np.testing.assert_array_equal(dataset[0][1], dataset.records.targets[0])


def test_iteration_ends(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.on_bad = "replace"
    assert len(list(dataset)) == 24


def test_file_names(made_nih):
    root = made_nih()
    dataset = create_dataset("nih", root)
    assert dataset.filename(1) == str(root / "images" / "00000001_001.png")
    assert dataset.filename(1, basename=True) == "00000001_001.png"
    assert dataset.filenames() == [dataset.filename(i) for i in range(24)]
    assert dataset.filenames(basename=True)[-1] == "00000021_002.png"


def test_timms_loader_takes_it(made_nih):
    dataset = create_dataset("nih", made_nih())
    loader = create_loader(dataset, 24, batch_size=5, num_workers=2, use_prefetcher=False)
    dataset.transform = create_transform(CFG)
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [5, 5, 5, 5, 4]
    np.testing.assert_array_equal(torch.cat([y for _, y in batches]), dataset.records.targets)
    torch.testing.assert_close(batches[1][0][2], dataset[7][0])


def test_our_loader_shuffles_and_drops_in_training_only(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.records.targets[:, 0] = np.arange(24)
    transform = create_transform(CFG)
    order = collect(dataset, transform, 0)[1][:, 0].tolist()
    assert order == list(range(24))
    loader = make_loader(dataset, transform, 5, is_training=True)
    first, second = ([int(i) for _, y in loader for i in y[:, 0]] for _ in range(2))
    assert len(first) == len(set(first)) == 20
    assert first != second and first != sorted(first)
    assert dataset.transform is None


# Seeded augmentation


def test_seeded_randomness_is_a_function_of_seed_epoch_and_index(made_nih):
    dataset = create_dataset("nih", made_nih())

    def values(seed, epoch, workers=0) -> torch.Tensor:
        dataset.seed = seed
        dataset.set_epoch(epoch)
        return collect(dataset, draws, workers)[0]

    reference = values(1, 0)
    assert len(reference.flatten().unique()) == 72  # every generator differs by index
    torch.testing.assert_close(values(1, 0), reference, rtol=0, atol=0)
    torch.testing.assert_close(values(1, 0, workers=2), reference, rtol=0, atol=0)
    for other in (values(2, 0), values(1, 1)):
        assert (other != reference).all()
    dataset.set_epoch(0)
    dataset.transform = draws
    torch.manual_seed(99)
    shuffled = {i: dataset[i][0] for i in (20, 3, 3, 11)}  # neither the order nor the generators' state counts
    for i, value in shuffled.items():
        assert torch.equal(value, values(1, 0)[i])


def test_augmented_images_are_the_same_with_workers_and_differ_by_epoch(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.seed = 3
    transform = create_transform(CFG, is_training=True, hflip=0.5)
    here = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        here.append(collect(dataset, transform, 0)[0])
    assert (here[0] != here[1]).flatten(1).any(1).all()
    loader = make_loader(dataset, transform, 5, workers=2)  # its workers outlive an epoch
    for epoch in range(2):
        dataset.set_epoch(epoch)
        torch.testing.assert_close(torch.cat([x for x, _ in loader]), here[epoch], rtol=0, atol=0)


def test_seeding_leaves_every_global_generator_alone(made_nih, monkeypatch):
    dataset = create_dataset("nih", made_nih())
    dataset.seed, dataset.transform = 0, draws
    seeded_on_cuda = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_on_cuda.append)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert len(dataset[0][0]) == 3
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(), before[1])
    assert random.getstate() == before[2]
    assert seeded_on_cuda == []


def test_seeding_leaves_the_generators_alone_after_an_error(made_nih):
    def fail(image):
        raise RuntimeError("broken transform")

    dataset = create_dataset("nih", made_nih())
    dataset.seed, dataset.transform = 0, fail
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken transform"):
        dataset[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generators_decide(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.transform = draws
    torch.manual_seed(0)
    first, second = dataset[0][0][0], dataset[0][0][0]
    assert first != second
    torch.manual_seed(0)
    assert dataset[0][0][0] == first


# Images that do not read


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_in_training_is_replaced_remembered_and_counted(made_nih, workers):
    dataset = create_dataset("nih", made_nih())
    dataset.on_bad = "replace"
    spoil(dataset, 4, 5, 23)
    images, targets = collect(dataset, pil_to_tensor, workers)
    assert dataset.bad.nonzero().flatten().tolist() == [4, 5, 23]
    assert dataset.bad_paths() == [dataset.filename(i) for i in (4, 5, 23)]
    for bad, other in ((4, 6), (5, 6), (23, 0)):
        assert torch.equal(images[bad], images[other])
        np.testing.assert_array_equal(targets[bad], dataset.records.targets[other])
    for i in (0, 3, 6, 22):
        np.testing.assert_array_equal(targets[i], dataset.records.targets[i])
    assert not targets.isnan().any()


def test_a_stand_in_is_seeded_as_itself(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.seed, dataset.on_bad, dataset.transform = 0, "replace", draws
    spoil(dataset, 4)
    assert torch.equal(dataset[4][0], dataset[5][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_an_error_unless_it_is_to_be_masked(made_nih, workers):
    dataset = create_dataset("nih", made_nih())
    dataset.check()
    spoil(dataset, 7, 9)
    with pytest.raises(InputError, match=r"00000003_001\.png does not decode as an image"):
        collect(dataset, create_transform(CFG), workers)
    dataset.on_bad = "mask"
    images, targets = collect(dataset, create_transform(CFG), workers)
    assert targets[[7, 9]].isnan().all()
    assert targets.isnan().any(1).nonzero().flatten().tolist() == [7, 9]
    torch.testing.assert_close(images[7], torch.full((1, 24, 24), -2.0))  # black: (0 - 0.5) / 0.25
    assert len(images) == 24
    with pytest.raises(InputError, match=r"00000003_001\.png does not decode as an image"):
        dataset.check()


def test_check_names_a_bad_image_that_has_been_mended(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.bad[2] = True
    with pytest.raises(InputError, match=r"00000001_002\.png could not be read"):
        dataset.check()


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_nothing_but_bad_images_is_an_error(made_nih, workers):
    root = made_nih()
    dataset = create_dataset("nih", root)
    dataset.on_bad = "replace"
    shutil.rmtree(root / "images")
    loader = make_loader(dataset, pil_to_tensor, 5, workers, is_training=True)
    with pytest.raises(InputError, match=r"no image .*00000001_000\.png"):
        next(iter(loader))
    assert dataset.bad.all()


def test_many_bad_images_in_a_row_are_skipped(tmp_path, made_nih):
    readable = create_dataset("nih", made_nih()).filename(0)
    n = 1500  # more than Python's recursion limit
    paths = np.array([str(tmp_path / f"{i}.png") for i in range(n - 1)] + [readable])
    columns = np.zeros((n, 1), np.float32), np.full(n, "1"), np.full(n, "")
    dataset = CXRDataset(Records(("Edema",), paths, *columns), pil_to_tensor, on_bad="replace")
    assert dataset[0][0].shape == (1, 40, 44)
    assert dataset.bad.sum() == n - 1


# The phantom


def test_phantom_source():
    everything = create_dataset("phantom", split="all")
    splits = {split: create_dataset("phantom", split=split) for split in ("train", "val", "test")}
    assert len(everything) == sum(map(len, splits.values())) == 1600
    patients = [set(split.records.patients) for split in splits.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == len(set(everything.records.patients))
    shares = {split: len(records) / 1600 for split, records in splits.items()}
    assert shares == pytest.approx({"train": 0.72, "val": 0.1, "test": 0.18}, abs=0.03)
    assert create_dataset("phantom").filenames() == splits["test"].filenames()
    image, target = splits["val"][5]
    assert image.mode == "L" and image.size == (224, 224)
    assert np.ptp(np.asarray(image)) > 100
    np.testing.assert_array_equal(target, splits["val"].records.targets[5])
    assert target.shape == (14,)
    again = everything[everything.filenames().index(splits["val"].filename(5))]
    np.testing.assert_array_equal(np.asarray(again[0]), np.asarray(image))
    np.testing.assert_array_equal(again[1], target)
    few = create_dataset("phantom", split="val", labels=["Edema"], views="AP")
    assert few.labels == ("Edema",) and set(few.records.views) == {"AP"}
    assert few[0][0].size == (224, 224)


# Planes: what a loader of ours sends between processes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("deep", [(), (3,), range(24)])
def test_a_loader_gives_what_the_dataset_gives(made_nih, workers, deep):
    dataset = create_dataset("nih", made_nih())
    for i in deep:
        values = np.random.default_rng(i).integers(0, 65536, (40, 44)).astype(np.uint16)
        Image.fromarray(values).save(dataset.filename(i))
    cfg = {"input_size": (3, 24, 24), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    for transform in (create_transform(cfg), create_transform(cfg, is_training=True, hflip=0.5)):
        dataset.seed, dataset.transform = 0, transform
        images, _ = collect(dataset, transform, workers)
        assert images.shape == (24, 3, 24, 24) and images.dtype == torch.float32
        torch.testing.assert_close(images, torch.stack([dataset[i][0] for i in range(24)]), rtol=0, atol=0)


def test_a_loader_that_is_left_early_leaves_the_dataset_as_it_was(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.transform = create_transform(CFG)
    loader = make_loader(dataset, create_transform(CFG), 5)
    next(iter(loader))
    assert dataset[0][0].shape == (1, 24, 24) and dataset[0][0].dtype == torch.float32
    assert len(loader) == 5 and loader.dataset.bad is dataset.bad


def test_timms_own_transform_and_prefetcher(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.input_img_mode = "RGB"
    loader = create_loader(dataset, (3, 24, 24), 5, use_prefetcher=True, device=torch.device("cpu"), crop_pct=1.0)
    batches = list(loader)
    images, targets = (torch.cat([b[i] for b in batches]) for i in (0, 1))
    np.testing.assert_array_equal(targets, dataset.records.targets)
    gray = (
        images * torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None] + torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]
    )
    assert images.shape == (24, 3, 24, 24) and gray.std(1).max() < 1e-5
    assert dataset.filename(0)  # what timm's scripts ask for


def test_a_distributed_sampler_deals_the_images_out(made_nih):
    dataset = create_dataset("nih", made_nih())
    dataset.transform = create_transform(CFG)
    samplers = [DistributedSampler(dataset, 2, rank, shuffle=False) for rank in range(2)]
    halves = [torch.cat([y for _, y in DataLoader(dataset, 5, sampler=s)]) for s in samplers]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), torch.from_numpy(dataset.records.targets))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transform", [pil_to_tensor, create_transform(CFG)])
def test_bad_input_in_a_worker_is_one_line(made_nih, workers, transform):
    root = made_nih()
    dataset = create_dataset("nih", root)
    dataset.on_bad = "replace"
    shutil.rmtree(root / "images")
    with pytest.raises(InputError) as error:
        list(make_loader(dataset, transform, 5, workers))
    assert str(error.value).startswith("no image ") and "\n" not in str(error.value)


# The order of training


def test_processes_share_the_batches_of_one(made_nih, monkeypatch):
    dataset = create_dataset("nih", made_nih())
    dataset.seed = 3
    for epoch in range(2):
        dataset.set_epoch(epoch)
        whole = np.array(list(TrainSampler(dataset, 6))).reshape(-1, 6)
        shares = []
        for rank in range(3):
            monkeypatch.setattr("mxa.data.loader.rank", lambda rank=rank: rank)
            monkeypatch.setattr("mxa.data.loader.world_size", lambda: 3)
            sampler = TrainSampler(dataset, 2)
            shares.append(np.array(list(sampler)).reshape(-1, 2))
            np.testing.assert_array_equal(sampler.rows(1), shares[-1][1])
            sampler.start = 2
            np.testing.assert_array_equal(np.array(list(sampler)).reshape(-1, 2), shares[-1][2:])
        monkeypatch.undo()
        for batch, *splits in zip(whole, *shares, strict=True):
            assert sorted(batch) == sorted(np.concatenate(splits))
    dataset.seed = None
    monkeypatch.setattr("mxa.data.loader.world_size", lambda: 3)
    with pytest.raises(InputError, match="several processes need one order"):
        TrainSampler(dataset, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_early_does_not_disturb_the_next(made_nih, workers):
    dataset = create_dataset("nih", made_nih())
    dataset.seed = 0
    loader = make_loader(dataset, create_transform(CFG), 4, workers, is_training=True)
    whole = list(loader)
    left = iter(loader)
    next(left)
    again = list(loader)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, again, strict=True))
    loader.skip = 3
    rest = list(loader)
    assert len(rest) == len(whole) - 3 and all(torch.equal(a[0], b[0]) for a, b in zip(whole[3:], rest, strict=True))
    assert len(list(loader)) == len(whole)
