"""Preparing shards: counts, checksums, the same bytes after a kill, bad images, and training from them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mxa.training.loop as job
from mxa import cli
from mxa.commands.prepare import PrepareConfig, prepare
from mxa.data import create_dataset
from mxa.evaluation.evaluate import EvaluateConfig, evaluate
from mxa.training.loop import TrainConfig, train
from mxa.utils.errors import InputError
from mxa.utils.files import alone_in

from ..waiting import wait_until


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != ".prepare"
    }


def samples(folder: Path) -> list[tuple[dict, Image.Image]]:
    found = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
        for name in members:
            if name.endswith(".json"):
                image = next(members[n] for n in members if n[:9] == name[:9] and n != name)
                found.append((json.loads(members[name]), Image.open(io.BytesIO(image))))
    return found


def test_shards_rows_and_manifest(made_nih, tmp_path):
    root, output = made_nih(lists=True), tmp_path / "out"
    manifest = prepare(PrepareConfig(output, data="nih", root=str(root), size=32, shard_size=10, workers=2))
    assert {path.name for path in output.iterdir()} == {
        *(".prepare", "manifest.json", "_info.json", "rows.csv.gz"),
        *("train-000000.tar", "train-000001.tar", "val-000000.tar", "test-000000.tar"),
    }
    assert manifest == json.loads((output / "manifest.json").read_text())
    counts = {name: (split["images"], split["patients"]) for name, split in manifest["splits"].items()}
    assert counts == {"train": (15, 5), "val": (3, 1), "test": (6, 2)} and manifest["images"] == 24
    assert sum(split["positive"]["Effusion"] for split in manifest["splits"].values()) == 10
    for name, shard in manifest["shards"].items():
        data = (output / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    metadata, image = samples(output)[0]
    assert image.mode == "L" and image.size == (35, 32) and image.format == "JPEG"
    assert set(metadata) == {"file", "patient", "study", "view", "sex", "age", "split", "labels", "positive"}
    everything = {s["file"]: s for s, _ in samples(output)}
    assert everything["images/00000002_000.png"]["labels"]["Infiltration"] == 1
    assert everything["images/00000002_000.png"]["age"] == 60 and len(everything) == 24
    assert str(tmp_path) not in (output / "manifest.json").read_text() + json.dumps(everything)


def test_training_images_are_mixed_and_the_others_are_not(made_nih, tmp_path):
    prepare(PrepareConfig(tmp_path / "out", data="nih", root=str(made_nih(lists=True)), shard_size=100))
    files = {"train": [], "val": [], "test": []}
    for metadata, _ in samples(tmp_path / "out"):
        files[metadata["split"]].append(metadata["file"])
    assert files["test"] == sorted(files["test"]) and files["train"] != sorted(files["train"])


def test_cells_are_kept_as_they_stand(made_chexpert, tmp_path):
    root = made_chexpert()
    prepare(PrepareConfig(tmp_path / "out", data="chexpert", root=str(root), views="all"))
    found = {metadata["study"]: metadata["labels"] for metadata, _ in samples(tmp_path / "out")}
    assert list(found["patient00001/study1"].values())[:4] == [None, 0, -1, 1]


def test_sizes_and_formats(tmp_path):
    images = {"wide.png": (300, 100), "small.png": (20, 30), "deep.png": (128, 128), "photo.jpg": (400, 640)}
    y, x = np.mgrid[:640, :640]
    scene = 120 + 100 * np.sin(x / 40) * np.cos(y / 25)
    for name, (width, height) in images.items():
        pixels = scene[:height, :width]
        deep = name == "deep.png"
        Image.fromarray((pixels * 257).astype(np.uint16) if deep else pixels.astype(np.uint8)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("path,patient,Edema\n" + "".join(f"{name},{name},1\n" for name in images))
    prepare(PrepareConfig(tmp_path / "png", data="table", root=str(tmp_path / "t.csv"), size=64, format="png"))
    written = {metadata["file"]: image for metadata, image in samples(tmp_path / "png")}
    assert {name: image.size for name, image in written.items()} == {
        "wide.png": (192, 64),
        "small.png": (20, 30),
        "deep.png": (64, 64),
        "photo.jpg": (64, 102),
    }
    expected = Image.fromarray(scene[:128, :128].astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(np.asarray(written["deep.png"], float), np.asarray(expected), atol=1)
    assert {image.format for image in written.values()} == {"PNG"}
    prepare(PrepareConfig(tmp_path / "jpg", data="table", root=str(tmp_path / "t.csv"), size=64))
    lossy = {metadata["file"]: image for metadata, image in samples(tmp_path / "jpg")}
    for name, image in lossy.items():
        assert np.abs(np.asarray(image, float) - np.asarray(written[name], float)).mean() < 1.5


def test_the_same_bytes_whatever_the_workers(made_nih, tmp_path):
    root = str(made_nih())
    prepare(PrepareConfig(tmp_path / "one", data="nih", root=root, shard_size=5, workers=1))
    prepare(PrepareConfig(tmp_path / "three", data="nih", root=root, shard_size=5, workers=3))
    assert digest(tmp_path / "one") == digest(tmp_path / "three")


# Runs `mxa` with the arguments after the first two; its worker writes as many images as the first says, then waits
# for the file that the second names.
HELD = """
import signal, sys, time
from pathlib import Path
from mxa import cli
from mxa.commands import prepare as job
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
encode, images, go = job._encode, 0, Path(sys.argv[2])
def held(*args):
    global images
    while images >= int(sys.argv[1]) and not go.exists():
        time.sleep(0.01)
    images += 1
    return encode(*args)
job._encode = held
cli.main(sys.argv[3:])
"""


def start_held(images: int, go: Path, out: Path, root: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", HELD, str(images), str(go), "prepare", "--data", "nih", "--root", str(root)]
    command += ["--output", str(out), "--shard-size", "5", "--workers", "1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_killed_and_started_again_it_ends_with_the_same_bytes(made_nih, tmp_path):
    root, out = str(made_nih()), tmp_path / "out"
    config = PrepareConfig(out, data="nih", root=root, shard_size=5, workers=1)
    process = start_held(12, tmp_path / "never", out, root)
    wait_until(lambda: len(list(out.glob(".prepare/*.tar.json"))) == 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(before) == 2 and not (out / "manifest.json").exists()
    with pytest.raises(InputError, match=r"does not open: .*`mxa prepare` writes it when all shards are done"):
        create_dataset("shards", out)
    (out / ".train-000004.tar.tmp").write_bytes(b"what a kill left")
    first = sorted(before)[0]
    first.write_bytes(first.read_bytes()[:-100])  # damaged since: written again
    prepare(config)
    kept = [path for path, at in before.items() if path.stat().st_mtime_ns == at]
    assert len(kept) == len(before) - 1 and first not in kept
    prepare(PrepareConfig(tmp_path / "whole", data="nih", root=root, shard_size=5, workers=1))
    for path in out.glob(".*.tmp"):
        path.unlink()
    assert digest(out) == digest(tmp_path / "whole")
    again = digest(out)
    assert prepare(config)["images"] == 24 and digest(out) == again  # nothing left to do


@pytest.mark.parametrize("lost", ["train-000001.tar", "rows.csv.gz", "manifest.json"])
def test_a_finished_folder_is_checked_and_mended(made_nih, tmp_path, lost):
    config = PrepareConfig(tmp_path / "out", data="nih", root=str(made_nih()), shard_size=5, workers=1)
    manifest = prepare(config)
    whole = digest(tmp_path / "out")
    (tmp_path / "out" / lost).write_bytes(b"damaged")
    assert prepare(config) == manifest and digest(tmp_path / "out") == whole
    (tmp_path / "out" / lost).unlink()
    assert prepare(config) == manifest and digest(tmp_path / "out") == whole


def test_two_at_once_are_an_error(made_nih, tmp_path):
    with alone_in(tmp_path / "out", "mxa prepare"), pytest.raises(InputError, match="mxa prepare is at work in "):
        prepare(PrepareConfig(tmp_path / "out", data="nih", root=str(made_nih()), workers=1))


def test_an_interrupt_says_so_in_one_line(made_nih, tmp_path):
    process = start_held(0, tmp_path / "go", tmp_path / "out", made_nih())
    wait_until(lambda: any((tmp_path / "out").glob(".*.tmp")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the worker gets it too
    (tmp_path / "go").touch()
    assert process.communicate(timeout=60)[1].strip().splitlines()[-1] == "mxa prepare: stopped"


def test_labels_are_chosen_by_name(made_chexpert, tmp_path):
    config = PrepareConfig(
        tmp_path / "out", data="chexpert", root=str(made_chexpert()), labels="Pleural Effusion,Edema", workers=1
    )
    assert prepare(config)["labels"] == ["Pleural Effusion", "Edema"]


def test_bad_images_are_listed(made_nih, tmp_path, capsys):
    root = made_nih()
    (root / "images" / "00000001_001.png").write_bytes(b"no image")
    (root / "images" / "00000002_001.png").unlink()
    cli.main(["prepare", "--data", "nih", "--root", str(root), "--output", str(tmp_path / "out"), "--workers", "1"])
    shown = capsys.readouterr()
    assert "2 image(s) did not read and were left out: " in shown.err and "00000001_001.png" in shown.err
    assert "22 images" in shown.out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["images"] == 22 and len(manifest["bad"]) == 2 and len(samples(tmp_path / "out")) == 22


def test_errors(made_nih, tmp_path):
    root = made_nih()
    config = PrepareConfig(tmp_path / "out", data="nih", root=str(root), shard_size=5)
    prepare(config)
    with pytest.raises(InputError, match=r"holds shards of something else \(size was 256\): give another --output"):
        prepare(PrepareConfig(tmp_path / "out", data="nih", root=str(root), shard_size=5, size=128))
    table = root / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("Edema", "Mass"))
    with pytest.raises(InputError, match="the table has changed"):
        prepare(config)
    with pytest.raises(InputError, match="--size must be between"):
        prepare(PrepareConfig(tmp_path / "x", size=4))
    with pytest.raises(InputError, match=r"has no image .views: lateral"):
        prepare(PrepareConfig(tmp_path / "x", data="nih", root=str(root), views="lateral"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file: give a folder"):
        prepare(PrepareConfig(tmp_path / "file", data="nih", root=str(root)))
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 24 images reads, such as .*does not decode"):
        prepare(PrepareConfig(tmp_path / "y", data="nih", root=str(root)))


def test_training_and_evaluation_from_shards(undrawn, table, tmp_path):
    shards = tmp_path / "shards"
    prepare(PrepareConfig(shards, data="table", root=str(table), format="png", shard_size=6, size=64))
    small = {"img_size": 64, "epochs": 6, "batch_size": 8, "model": "efficientvit_ml_m0_mxa"}
    summary = train(TrainConfig(tmp_path / "run", data="shards", root=str(shards), workers=2, **small))
    assert not summary["bad_images"]
    scores = [
        evaluate(
            EvaluateConfig(
                (str(tmp_path / "run"),), tmp_path / name, data=name, root=root, replicates=20, batch_size=5, workers=1
            )
        )["models"][0]
        for name, root in (("table", str(table)), ("shards", str(shards)))
    ]
    assert scores[1]["labels"]["Bright"]["auc"] > 0.8
    for label in ("Edema", "Bright"):
        assert scores[0]["labels"][label]["auc"] == pytest.approx(scores[1]["labels"][label]["auc"])
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-4)


def test_a_resumed_run_from_shards_ends_with_the_same_weights(table, tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    prepare(PrepareConfig(shards, data="table", root=str(table), shard_size=6))
    small = {"img_size": 64, "batch_size": 4, "model": "test_resnet", "workers": 2, "root": str(shards)}
    small["data"] = "shards"
    train(TrainConfig(tmp_path / "whole", epochs=3, **small))
    save, saved = job.save_checkpoint, []

    def stop_after_two(state, run):
        save(state, run)
        saved.append(state)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(job, "save_checkpoint", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(tmp_path / "cut", epochs=3, **small))
    monkeypatch.setattr(job, "save_checkpoint", save)
    train(TrainConfig(tmp_path / "cut", epochs=3, resume=True, **small))
    one, other = (torch.load(tmp_path / r / "checkpoint.pt", weights_only=True)["model"] for r in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)
