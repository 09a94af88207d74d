"""Shards: the same samples as the files, in any number of workers, over HTTP, by nodes, and through timm's reader."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from mxa.commands.prepare import PrepareConfig, prepare
from mxa.data import create_dataset, create_transform, make_loader
from mxa.data.names import is_url
from mxa.data.shards import ShardDataset
from mxa.labels import CHEXPERT
from mxa.utils.errors import InputError

CFG = {"input_size": (1, 24, 24), "mean": (0.5,), "std": (0.25,)}


@pytest.fixture
def shards(made_chexpert, tmp_path) -> Path:
    """24 training and 6 official validation images in shards of 4, without loss."""
    output = tmp_path / "shards"
    prepare(
        PrepareConfig(
            output, data="chexpert", root=str(made_chexpert()), views="all", format="png", shard_size=4, workers=1
        )
    )
    return output


def collect(dataset, transform, workers: int, batch_size: int = 3, is_training: bool = False):
    batches = list(make_loader(dataset, transform, batch_size, workers, is_training))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_what_is_a_url():
    assert all(map(is_url, ("https://x/y", "gs://bucket/x", "hf://datasets/x", "pipe:cat /x", "file:///x")))
    assert not any(map(is_url, ("/data/x", "x", Path("/data"), "C:/data", "./a:b")))


def test_the_same_samples_as_the_files(shards, made_chexpert):
    root = made_chexpert()
    options = {"labels": "chexpert", "uncertain": "U-Ones: Edema; U-Ignore", "views": "frontal"}
    for split in ("train", "val", "valid", None, "all"):
        files, streamed = (
            create_dataset(*where, split, **options) for where in (("chexpert", root), ("shards", shards))
        )
        assert isinstance(streamed, ShardDataset) and streamed.labels == CHEXPERT
        if split == "all":  # of the shards: the official validation set too
            assert len(streamed) == len(files) + 4
            continue
        assert len(files) == len(streamed)
        assert files.records.split == streamed.records.split
        studies = {study: i for i, study in enumerate(files.records.studies.tolist())}
        order = [studies[study] for study in streamed.records.studies.tolist()]
        for column in ("patients", "views", "sexes", "splits"):
            assert getattr(streamed.records, column).tolist() == getattr(files.records, column)[order].tolist()
        np.testing.assert_array_equal(streamed.records.ages, files.records.ages[order])
        np.testing.assert_array_equal(streamed.records.targets, files.records.targets[order])
        images, targets = collect(streamed, pil_to_tensor, 0)
        for row, i in enumerate(order):
            np.testing.assert_array_equal(images[row], pil_to_tensor(files[i][0]))  # smaller than --size: as they are
            np.testing.assert_array_equal(targets[row], files.records.targets[i])
        assert not streamed.bad.any()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 30])
def test_evaluation_is_in_order_whatever_the_workers(shards, workers, batch_size):
    dataset = create_dataset("shards", shards, "all", views="all")
    reference = collect(dataset, pil_to_tensor, 0)
    images, targets = collect(dataset, pil_to_tensor, workers, batch_size)
    np.testing.assert_array_equal(targets, dataset.records.targets)
    assert torch.equal(images, reference[0])


def test_one_sample_can_be_had_too(shards):
    dataset = create_dataset("shards", shards, "train", views="all")
    images, targets = collect(dataset, pil_to_tensor, 0)
    dataset.transform = pil_to_tensor
    image, target = dataset[9]
    assert torch.equal(image, images[9])
    np.testing.assert_array_equal(target, targets[9])


def test_training_sees_every_image_once_and_mixes_them_anew(shards):
    dataset = create_dataset("shards", shards, "train", views="all")
    dataset.records.targets[:, 0] = np.arange(len(dataset))
    dataset.seed = 3
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append(
            collect(dataset, create_transform(CFG, is_training=True), 0, 7, is_training=True)[1][:, 0].tolist()
        )
    assert len(dataset) == 21 and sorted(orders[0]) == list(range(21))
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_shards_and_give_whole_batches(shards, workers):
    dataset = create_dataset("shards", shards, "train", views="all")
    dataset.records.targets[:, 0] = np.arange(len(dataset))
    dataset.seed = 0
    loader = make_loader(dataset, create_transform(CFG, is_training=True), 4, workers, is_training=True)
    for epoch in range(2):  # the workers outlive an epoch
        dataset.set_epoch(epoch)
        batches = [y[:, 0].int().tolist() for _, y in loader]
        assert [len(b) for b in batches] == [4] * (21 // 4) == [4] * len(loader)
        homes = [{dataset.records.paths[i].partition("/")[0] for i in b} for b in batches]
        by_worker = [set().union(*homes[w::workers]) for w in range(workers)]
        for a in range(workers):
            for b in range(a):
                assert by_worker[a].isdisjoint(by_worker[b])


def test_augmentation_is_seeded_by_epoch_and_image(shards):
    dataset = create_dataset("shards", shards, "train", views="all")
    dataset.records.targets[:, 0] = np.arange(len(dataset))
    dataset.seed = 1
    transform = create_transform(CFG, is_training=True, hflip=0.5)

    def epoch(number: int, workers: int) -> dict[int, torch.Tensor]:
        dataset.set_epoch(number)
        images, targets = collect(dataset, transform, workers, 3, is_training=True)
        return dict(zip(targets[:, 0].int().tolist(), images, strict=True))

    first, again, two, later = epoch(0, 0), epoch(0, 0), epoch(0, 2), epoch(1, 0)
    for i in first:
        assert torch.equal(first[i], again[i])
        assert i not in two or torch.equal(first[i], two[i])
        assert not torch.equal(first[i], later[i])


def test_no_more_workers_than_shards(shards):
    dataset = create_dataset("shards", shards, "train")
    assert dataset.plan(4, 50, is_training=True) == 6
    assert make_loader(dataset, create_transform(CFG), 4, 50, is_training=True).num_workers == 6


# Images that do not read


def spoil(shards: Path, change) -> str:
    """Damages one shard and makes the manifest agree."""
    import hashlib

    manifest = json.loads((shards / "manifest.json").read_text())
    name = next(n for n in manifest["shards"] if n.startswith("train"))
    data = change((shards / name).read_bytes())
    (shards / name).write_bytes(data)
    manifest["shards"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))
    return name


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_does_not_decode(shards, workers):
    name = spoil(shards, lambda data: data.replace(b"\x89PNG", b"\x89PIG", 1))
    dataset = create_dataset("shards", shards, "train", views="all")
    dataset.records.targets[:, 0] = np.arange(len(dataset))
    with pytest.raises(InputError, match=rf"{name}/\d+ does not decode as an image"):
        collect(dataset, create_transform(CFG), workers)
    dataset.on_bad = "mask"
    _images, targets = collect(dataset, create_transform(CFG), workers)
    assert dataset.bad.nonzero().flatten().tolist() == [0] and targets[0].isnan().all()
    assert dataset.bad_paths()[0].startswith(f"{shards}/{name}/0")
    with pytest.raises(InputError, match=rf"{name}/\d+ does not decode as an image"):
        dataset.check()
    dataset = create_dataset("shards", shards, "train", views="all")
    dataset.records.targets[:, 0] = np.arange(len(dataset))
    dataset.on_bad, dataset.seed = "replace", 0
    _, targets = collect(dataset, create_transform(CFG), workers, 5, is_training=True)
    assert len(targets) == 20 and 0 not in targets[:, 0] and dataset.bad.sum() == 1


def test_a_damaged_shard_is_an_error_that_names_it(shards):
    name = sorted(path.name for path in shards.glob("train-*.tar"))[1]
    data = bytearray((shards / name).read_bytes())
    data[len(data) // 2] ^= 1
    (shards / name).write_bytes(data)
    dataset = create_dataset("shards", shards, "train", views="all")
    with pytest.raises(InputError, match=rf"{name} is not what the manifest says"):
        collect(dataset, create_transform(CFG), 0)
    with pytest.raises(InputError, match=rf"{name} is not what the manifest says"):
        collect(dataset, create_transform(CFG), 2)
    (shards / name).unlink()
    with pytest.raises(InputError, match=rf"{name} does not open"):
        collect(dataset, create_transform(CFG), 0)


def test_errors_of_the_folder(shards, tmp_path):
    with pytest.raises(InputError, match="no such folder or file"):
        create_dataset("shards", tmp_path / "none")
    with pytest.raises(
        InputError, match=r"manifest\.json does not open: .*`mxa prepare` writes it when all shards are done"
    ):
        create_dataset("shards", tmp_path)
    (shards / "rows.csv.gz").write_bytes(b"other")
    with pytest.raises(InputError, match=r"rows\.csv\.gz is not what the manifest says"):
        create_dataset("shards", shards)
    (shards / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json is not a manifest"):
        create_dataset("shards", shards)
    (shards / "manifest.json").write_text("nonsense")
    with pytest.raises(InputError, match=r"manifest\.json is not a manifest"):
        create_dataset("shards", shards)


# URLs


@pytest.fixture
def server(shards):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(shards))
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_over_http_and_through_a_pipe(shards, server, workers):
    here = create_dataset("shards", shards, "train", views="all")
    expected = collect(here, pil_to_tensor, workers)
    for root in (server, server + "/", f"pipe:cat {shards}", f"file://{shards}"):
        there = create_dataset("shards", root, "train", views="all", allow_pipe=root.startswith("pipe:"))
        assert there.records.paths.tolist() == here.records.paths.tolist()
        images, targets = collect(there, pil_to_tensor, workers)
        assert torch.equal(images, expected[0])
        np.testing.assert_array_equal(targets, expected[1])


def test_a_url_that_does_not_answer(server):
    with pytest.raises(InputError, match=r"nothing/manifest\.json does not open"):
        create_dataset("shards", f"{server}/nothing")
    with pytest.raises(InputError, match=r"foo://x/manifest\.json does not open"):
        create_dataset("shards", "foo://x")


# Nodes


NODE = """
import sys, torch, numpy as np
from torch import distributed
from mxa.data import create_dataset, create_transform, make_loader
distributed.init_process_group("gloo")
dataset = create_dataset("shards", sys.argv[1], "train", views="all")
dataset.records.targets[:, 0] = np.arange(len(dataset))
dataset.seed = 0
transform = create_transform(dict(input_size=(1, 24, 24), mean=(0.5,), std=(0.5,)))
loader = make_loader(dataset, transform, 2, 2, is_training=True)
for epoch in range(2):
    dataset.set_epoch(epoch)
    rows = [int(i) for _, y in loader for i in y[:, 0]]
    print(epoch, len(loader), *rows)
distributed.destroy_process_group()
"""


def test_two_nodes_read_disjoint_shards(shards):
    port = str(20000 + os.getpid() % 20000)
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, str(shards)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [node.communicate(timeout=120)[0].splitlines() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    dataset = create_dataset("shards", shards, "train", views="all")
    homes = []
    for epoch in range(2):
        rows = [[int(i) for i in lines[epoch].split()] for lines in printed]
        assert [r[:2] for r in rows] == [[epoch, 5], [epoch, 5]]  # 21 images, two nodes, batches of 2
        read = [{dataset.records.paths[i].partition("/")[0] for i in r[2:]} for r in rows]
        assert read[0].isdisjoint(read[1]) and len(read[0] | read[1]) == 6
        homes.append(read)
    assert homes[0] != homes[1]  # dealt anew


def test_more_nodes_than_shards_is_an_error(shards, monkeypatch):
    monkeypatch.setattr("mxa.data.shards.world_size", lambda: 7)
    with pytest.raises(InputError, match=r"7 processes need 7 shards of the training split at least; .* has 6"):
        make_loader(create_dataset("shards", shards, "train"), create_transform(CFG), 2, is_training=True)


# timm's own reader


def test_timms_wds_reader_reads_them(shards):
    import timm.data

    ours = create_dataset("shards", shards, "train", views="all")
    theirs = timm.data.create_dataset(
        "wds/", str(shards), split="train", is_training=False, target_key="positive", target_format="indices"
    )
    read = list(theirs)
    assert len(read) == len(ours) == 21
    images, _ = collect(ours, pil_to_tensor, 0)
    cells = create_dataset("shards", shards, "train", views="all", uncertain="U-Zeros").records.targets
    for row, (image, target) in enumerate(read):
        assert torch.equal(pil_to_tensor(image)[:1], images[row])
        assert list(target) == np.flatnonzero(cells[row]).tolist()


@pytest.mark.parametrize("name", ["x; touch PWNED #.tar", "../train-000000.tar", "a/b.tar", "-rf.tar", "$(id).tar"])
def test_a_shards_name_is_a_name(shards, name, tmp_path):
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][name] = manifest["shards"].pop("train-000000.tar")
    (shards / "manifest.json").write_text(json.dumps(manifest))
    for root in (shards, f"pipe:cd {tmp_path}; cat {shards}"):
        with pytest.raises(InputError, match="is not a manifest of `mxa prepare`: it lacks fields, or a shard's name"):
            create_dataset("shards", root, allow_pipe=True)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "change", [{"labels": None}, {"labels": [1]}, {"shards": []}, {"shards": {"a.tar": {}}}, {"blank": 3}]
)
def test_a_manifest_that_lies_is_one_error(shards, change):
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match="is not a manifest of `mxa prepare`"):
        create_dataset("shards", shards)


def test_rows_of_a_shard_that_is_not_there(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest["shards"]["train-000000.tar"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=r"rows\.csv\.gz names shards that manifest\.json does not, such as train-000000"
    ):
        create_dataset("shards", shards)


def test_a_shard_that_is_no_tar_file(shards):
    name = spoil(shards, lambda data: b"x" * 2000)
    with pytest.raises(InputError, match=rf"{name} is not a tar file"):
        collect(create_dataset("shards", shards, "train", views="all"), create_transform(CFG), 0)
