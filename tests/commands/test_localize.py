"""``mxa localize`` on the phantom, whose boxes are known: with maps made from the boxes, and with a model's own."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mxa import explain
from mxa.commands.localize import LocalizeConfig, localize
from mxa.data import create_transform
from mxa.data.boxes import read_boxed
from mxa.layers import attach_finding_head
from mxa.metrics.localization_table import MACRO, METRICS, THIRDS
from mxa.models.load import create, load_model
from mxa.models.weights import save_pretrained, set_label_names
from mxa.utils.command_line import parse
from mxa.utils.errors import InputError

LABELS = ("Effusion", "Mass", "Edema", "Support Devices")  # the phantom calls the first Pleural Effusion, has no Mass
SHARED = ("Edema", "Pleural Effusion", "Support Devices")


def save(folder, labels, name="efficientvit_ml_m0_mxa", seed=0):
    torch.manual_seed(seed)
    model = create(name, img_size=64, num_classes=len(labels))
    set_label_names(model, labels)
    save_pretrained(model, folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a model that was not trained."""
    return save(tmp_path_factory.mktemp("runs") / "mxa", LABELS)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A dozen phantoms."""
    monkeypatch.setattr("mxa.data.collections.phantom.COUNT", 60)


@pytest.fixture
def config(run, tmp_path):
    def build(**fields) -> LocalizeConfig:
        small = {"models": (run,), "output": tmp_path / "out", "data": "phantom", "replicates": 50, "batch_size": 5}
        return LocalizeConfig(**{**small, "methods": ("grad-cam",), "shuffled": False, **fields})

    return build


@pytest.fixture
def perfect(run, monkeypatch):
    """Makes Grad-CAM a map that is 1 in the boxes; returns the calls: model and labels."""
    records, images = read_boxed("phantom", None)
    transform = create_transform(load_model(run))
    known = {transform(records.image(i.index)).numpy().tobytes(): i for i in images}
    of_output = {0: "Pleural Effusion", 2: "Edema", 3: "Support Devices"}
    centre = (np.arange(64) + 0.5) / 64
    calls = []

    def grad_cam(model, pixels, labels, layer=None):
        calls.append((model, labels))
        maps = torch.zeros(len(pixels), len(labels), 64, 64)
        for b, x in enumerate(pixels):
            for place, label in enumerate(labels):
                for x1, y1, x2, y2 in known[x.numpy().tobytes()].boxes[of_output[label]]:
                    inside = ((y1 <= centre) & (centre <= y2))[:, None] & (x1 <= centre) & (centre <= x2)
                    maps[b, place][torch.from_numpy(inside)] = 1
        return maps

    monkeypatch.setattr(explain, "grad_cam", grad_cam)
    return calls


def of(result, method, model="mxa"):
    return {r["finding"]: r for r in result["rows"] if (r["model"], r["method"]) == (model, method)}


def test_a_perfect_map_scores_one(config, perfect):
    result = localize(config())
    table = of(result, "grad-cam")
    assert sorted(table) == sorted((*SHARED, "all", "all cases", *THIRDS))
    for row in table.values():
        assert row["pointing"] == row["energy"] == 1 and row["pointing_interval"] == [1, 1]
    assert table["Edema"]["hit_0.5"] == 1 and table["Edema"]["iou"] > 0.45
    assert all(len(labels) == 1 for _, labels in perfect)


def test_only_findings_that_the_model_has_count_and_the_others_are_listed(config, perfect):
    result = localize(config())
    _, images = read_boxed("phantom", None)
    for finding in SHARED:
        assert of(result, "grad-cam")[finding]["n"] == sum(finding in i.boxes for i in images) > 0
    others = {f: sum(f in i.boxes for i in images) for i in images for f in i.boxes if f not in SHARED}
    assert result["skipped"] == {"mxa": others} and "Lung Opacity" in others
    for baseline in ("chance", "centre", "mean box", "commonest point"):
        rows = of(result, baseline, "no model")
        assert sorted(rows) == sorted((*SHARED, "all", "all cases", *THIRDS))
    assert of(result, "chance", "no model")["all"]["pointing"] == of(result, "chance", "no model")["all"]["energy"]


def test_what_is_written_is_what_is_returned(config, perfect, tmp_path):
    result = localize(config())
    out = tmp_path / "out"
    assert json.loads((out / "localization.json").read_text()) == json.loads(json.dumps(result))
    with (out / "localization.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["method"], r["finding"]) for r in rows] == [
        (r["model"], r["method"], r["finding"]) for r in result["rows"]
    ]
    assert f"| mxa | grad-cam | {'1.000 (1.000-1.000) | ' * 2}" in (out / "localization.md").read_text()


def test_shuffled_weights_are_one_more_row_and_leave_the_model_alone(config, perfect):
    result = localize(config(shuffled=True))
    assert {r["model"] for r in result["rows"]} == {"no model", "mxa", "mxa, shuffled weights"}
    model, shuffled = perfect[0][0], perfect[-1][0]
    fresh = load_model(config().models[0])
    for a, b, c in zip(fresh.parameters(), model.parameters(), shuffled.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.flatten().sort().values, c.flatten().sort().values)
    assert not torch.equal(model.head.linear.weight, shuffled.head.linear.weight)


def test_images_are_reduced_before_the_model_sees_them(config, monkeypatch, run):
    seen = []

    def predict_rois(model, pixels):
        seen.append(pixels)
        return {"head": torch.tensor([[0.25, 0.25, 0.75, 0.75]]).expand(len(pixels), 4)}

    monkeypatch.setattr(explain, "predict_rois", predict_rois)
    result = localize(config(methods=("roi",), reduce=16, batch_size=100))
    records, images = read_boxed("phantom", None)
    transform = create_transform(load_model(run))
    known = [i for i in images if any(f in i.boxes for f in SHARED)]
    small = [records.image(i.index).resize((16, 16), Image.Resampling.BICUBIC) for i in known]
    assert torch.equal(seen[0], torch.stack([transform(image) for image in small]))
    table = of(result, "roi: head")
    assert table["all"]["pointing"] == of(result, "centre", "no model")["all"]["pointing"]
    assert 0 < table["all"]["iou"] < 1
    assert localize(config(methods=("roi",), reduce=10_000))["reduce"] == 10_000
    assert torch.equal(seen[1][0], transform(records.image(known[0].index)))  # never enlarged


def test_a_method_that_the_model_lacks_is_left_out_and_said(config, tmp_path, perfect):
    plain = save(tmp_path / "plain", LABELS, "efficientvit_ml_m0")
    result = localize(config(models=(plain,), methods=("roi", "gate", "grad-cam")))
    assert result["left_out"]["plain"].keys() == {"roi", "gate"} and "MXA" in result["left_out"]["plain"]["roi"]
    assert of(result, "grad-cam", "plain")["all"]["pointing"] == 1


def test_a_method_that_fails_later_stops_the_job(config, monkeypatch):
    calls = []

    def gate_maps(model, pixels):
        calls.append(len(pixels))
        if len(calls) > 1:
            raise InputError("broken")
        return {"block": torch.ones(len(pixels), 8, 8)}

    monkeypatch.setattr(explain, "gate_maps", gate_maps)
    with pytest.raises(InputError, match="broken"):
        localize(config(methods=("gate",)))


def test_a_map_that_is_not_finite_stops_the_job(config, monkeypatch):
    monkeypatch.setattr(explain, "gate_maps", lambda model, x: {"block": torch.full((len(x), 8, 8), torch.nan)})
    with pytest.raises(InputError, match="not finite"):
        localize(config(methods=("gate",)))


def test_every_method_with_real_maps(config, tmp_path):
    methods = LocalizeConfig.methods
    model = create("efficientvit_ml_m0_mxa", img_size=64, num_classes=len(LABELS))
    set_label_names(model, LABELS)
    save_pretrained(attach_finding_head(model, dim=8), tmp_path / "mxa")
    result = localize(
        config(models=(str(tmp_path / "mxa"),), methods=methods, layers=("stages.0", "stages.1"), steps=2)
    )
    assert {row["finding"] for row in result["froc"]} == {*SHARED, "all"}
    assert result["left_out"] == {"mxa": {}}
    names = {r["method"] for r in result["rows"] if r["model"] == "mxa"}
    assert {n.partition(":")[0] for n in names} == set(methods)
    assert {"grad-cam: stages.0", "grad-cam: stages.1", "integrated-gradients"} <= names
    for row in result["rows"]:
        assert all(row[m] is None or 0 <= row[m] <= 1 for m in METRICS)
        if row["model"] == "mxa" and row["finding"] != MACRO:
            low, high = row["energy_interval"]
            assert low <= row["energy"] <= high and row["iou"] is not None


def test_seeds_of_one_model_are_one_row_with_their_mean(config, tmp_path):
    seeds = [save(tmp_path / f"net-seed{i}", LABELS, seed=i) for i in (0, 1)]
    fields = {"methods": ("roi", "attention"), "shuffled": True}
    alone = [localize(config(models=(one,), seed=i, **fields))["rows"] for i, one in enumerate(seeds)]
    result = localize(config(models=(",".join(seeds),), **fields))
    assert result["seeds"] == {"net (2 seeds)": ["net-seed0", "net-seed1"]}
    assert {r["model"] for r in result["rows"]} == {"no model", "net (2 seeds)", "net (2 seeds), shuffled weights"}
    for row, *ones in zip(result["rows"], *alone, strict=True):
        assert row["energy"] is None or row["energy"] == pytest.approx(np.mean([r["energy"] for r in ones]), abs=2e-6)
        assert row["n"] == ones[0]["n"]
    assert any(a["energy"] != b["energy"] for a, b in zip(*alone, strict=True))


def test_seeds_are_of_one_model(config, run, tmp_path):
    for labels, name in ((LABELS, "efficientvit_ml_m0"), (LABELS[::-1], "efficientvit_ml_m0_mxa")):
        other = save(tmp_path / name, labels, name)
        with pytest.raises(InputError, match=f"{other} is not a seed of the model that {run} is one of"):
            localize(config(models=(f"{run},{other}",)))
    assert not (tmp_path / "out").exists()


def test_wrong_configurations_are_named(config, run, tmp_path):
    for wrong in ({"models": ()}, {"batch_size": 0}, {"reduce": 0}, {"steps": 0}):
        with pytest.raises(InputError, match="at least"):
            localize(config(**wrong))
    with pytest.raises(InputError, match="named twice"):
        localize(config(models=(run, run)))
    with pytest.raises(InputError, match="no model has an output for any of"):
        localize(config(models=(save(tmp_path / "other", ("Hernia", "Mass")),)))
    with pytest.raises(InputError, match="needs --root"):
        localize(config(data="nih"))


def test_the_command_line_builds_the_configuration():
    line = ["a", "b", "--output", "out", "--reduce", "128", "--methods", "roi", "grad-cam", "--no-shuffled"]
    config = parse(LocalizeConfig, line, "mxa localize", positional="models")
    assert config.models == ("a", "b") and config.reduce == 128 and config.methods == ("roi", "grad-cam")
    assert config.layers == () and not config.shuffled
