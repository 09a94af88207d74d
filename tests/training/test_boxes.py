"""Training with boxes beside labels: what joins a step, going on after a stop, and bad input."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mxa.commands.localize import LocalizeConfig, localize
from mxa.data.boxes import BoxedDataset
from mxa.models.load import load_model
from mxa.training.config import TrainConfig
from mxa.training.engine import Engine
from mxa.training.loop import train
from mxa.training.start import build_model, open_boxes
from mxa.utils.config import read_yaml_file
from mxa.utils.errors import InputError

LABELS = ("Mass", "Nodule", "Edema")


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """A table of 64 dark images, two a patient, and boxes: a bright square is Mass, a gray one Nodule."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    rows, boxes = [], []
    for i in range(64):
        pixels, name = rng.integers(0, 30, (64, 64)), f"{i:02d}.png"
        found = rng.random(2) < 0.6
        for label, (there, value) in enumerate(zip(found, (230, 120), strict=True)):
            if there:
                x, y = rng.integers(0, 32), rng.integers(0, 32) + 16 * label
                pixels[y : y + 14, x : x + 20] = value
                boxes.append((name, LABELS[label], x / 64, y / 64, (x + 20) / 64, (y + 14) / 64))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        split = ("train", "train", "train", "val")[i // 2 % 4]
        rows.append((name, f"p{i // 2}", split, *found.astype(int), 0))
    for name, header, content in (
        ("table.csv", ("path", "patient", "split", *LABELS), rows),
        ("boxes.csv", ("path", "label", "x1", "y1", "x2", "y2"), boxes),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *content])
    return folder


@pytest.fixture
def boxed(squares, config):
    """Builds a training configuration on the squares."""

    def build(**fields) -> TrainConfig:
        own = {"root": squares / "table.csv", "boxes": str(squares / "boxes.csv"), "finding_head": True}
        return config(**{"model": "efficientvit_ml_m0", "epochs": 1, **own, **fields})

    return build


@pytest.fixture
def joined(monkeypatch) -> list[int]:
    """How many batches with boxes each step had."""
    counts, step = [], Engine.step

    def watched(engine, micro_batches, epoch, number, boxed=()):
        counts.append(len(boxed))
        assert all(target.shape[2] == 5 for _, target in boxed)
        return step(engine, micro_batches, epoch, number, boxed)

    monkeypatch.setattr(Engine, "step", watched)
    return counts


def test_a_batch_joins_every_so_many_steps(boxed, joined):
    train(boxed(epochs=2, box_every=4, lr=1e-4))
    assert joined == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


def test_the_last_epoch_is_kept(boxed, monkeypatch):
    scores = iter([0.9, 0.8])
    monkeypatch.setattr("mxa.training.loop._validate", lambda *args: {"loss": 0.1, "macro_auc": next(scores)})
    summary = train(boxed(epochs=2, box_every=4))
    assert (summary["epoch"], summary["macro_auc"]) == (1, 0.8)


def test_a_stopped_run_goes_on_as_if_it_had_not(boxed, tmp_path, monkeypatch):
    settings = {"epochs": 2, "box_every": 2, "checkpoint_steps": 1}
    whole = load_model(train(boxed(output=tmp_path / "whole", **settings))["output"])
    step, steps = Engine.step, []

    def stops(engine, *args):
        steps.append(args[1:3])
        if len(steps) == 9:  # in the second epoch
            raise KeyboardInterrupt
        return step(engine, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", stops)
        with pytest.raises(KeyboardInterrupt):
            train(boxed(output=tmp_path / "cut", **settings))
    again = load_model(train(boxed(output=tmp_path / "cut", resume="auto", **settings))["output"])
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(InputError, match="box_every was 2"):
        train(boxed(output=tmp_path / "cut", resume="auto", **{**settings, "box_every": 1}))


def test_other_boxes_do_not_go_on(boxed, squares, tmp_path):
    copy = tmp_path / "boxes.csv"
    copy.write_text((squares / "boxes.csv").read_text())
    train(boxed(boxes=str(copy)))
    lines = copy.read_text().splitlines(keepends=True)
    copy.write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(InputError, match="other images with boxes, or boxes than the run had"):
        train(boxed(boxes=str(copy), resume="auto"))


def test_boxes_teach_where(boxed, squares, tmp_path):
    run = train(boxed(epochs=12, lr=3e-3, img_size=64, rotation=0.0))["output"]
    said = read_yaml_file(run / "config.yaml")
    assert said["boxes"] == "boxes.csv" and said["finding_head"] is True  # the folder is in local.yaml alone
    result = localize(
        LocalizeConfig((str(run),), tmp_path / "where", split="val", methods=("finding", "finding-map"), replicates=20)
    )
    every = {(row["model"], row["method"]): row for row in result["rows"] if row["finding"] == "all"}
    floor = max(row["pointing"] for (model, _), row in every.items() if model == "no model")
    assert every["run", "finding-map"]["pointing"] > max(0.8, floor)
    assert every["run", "finding"]["hit_0.25"] > 0.7
    assert {row["finding"] for row in result["froc"]} == {"Mass", "Nodule", "all"}
    with pytest.raises(InputError, match="has learnt boxes of the training split"):
        localize(LocalizeConfig((str(run),), tmp_path / "train", split="train"))


def test_boxes_of_another_collection(boxed, squares, joined, tmp_path):
    run = train(boxed(boxes_data="table", boxes_root=str(squares / "table.csv"), boxes_reduce=48))["output"]
    assert joined and all(joined)
    with pytest.raises(InputError, match="has learnt boxes of the training split"):
        localize(LocalizeConfig((str(run),), tmp_path / "out", data="table", root=str(squares / "table.csv"),
                                boxes=str(squares / "boxes.csv"), split="all"))  # fmt: skip


def test_boxes_of_patients_who_validate_are_left_out(boxed, squares, tmp_path, caplog):
    content = (squares / "table.csv").read_text().replace(",val,", ",train,")  # another part of the same collection
    (squares / "other.csv").write_text(content)
    caplog.set_level("INFO")
    config = boxed(boxes_data="table", boxes_root=str(squares / "other.csv"))
    train_set = config.resolved().open("train")
    dataset = open_boxes(config.resolved(), build_model(config, train_set.labels), train_set)
    assert "images of patients who validate or test are left out" in caplog.text
    assert set(dataset.records.patients.tolist()) <= set(train_set.records.patients.tolist())
    assert len(dataset) > 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"finding_head": False}, "--boxes need a model with a finding head or with MXA: add --finding-head"),
        ({"boxes": None, "box_weight": 2.0}, "--box-weight goes with --boxes FILE"),
        ({"boxes": "own"}, "'table' has no boxes of its own: give --boxes FILE"),
        ({"boxes": "none.csv"}, "no file of boxes none.csv"),
        ({"boxes_root": "elsewhere"}, "--boxes-root needs --boxes-data"),
        ({"patience": 3}, "--patience waits for the score of labels, and --boxes keep the last epoch"),
        ({"augment": "paper"}, "--boxes do not move with --augment paper"),
        ({"box_every": 0}, "--box-every must be between 1 and"),
        ({"labels": "Edema"}, "none of its boxes|no box is of one of"),
    ],
)
def test_bad_input(boxed, fields, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(boxed(**fields))
    assert not (tmp_path / "run").exists()


def test_rows_of_a_batch(squares):
    from mxa.data.boxes import read_boxed

    records, images = read_boxed("table", squares / "table.csv", "train", squares / "boxes.csv")
    dataset = BoxedDataset(records, images, LABELS)
    _, rows = dataset[0]
    assert rows.shape == (2, 5) and set(rows[:, 4].tolist()) <= {-1.0, 0.0, 1.0}
