"""Calibration beside the weights: what it holds, that predict applies it only when told, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mxa
from mxa.commands.predict.command import PredictConfig, predict
from mxa.data import create_dataset, create_transform
from mxa.evaluation.calibrate import CalibrateConfig, Calibration, calibrate, read_calibration
from mxa.evaluation.evaluate import EvaluateConfig, evaluate
from mxa.metrics import OPERATING_POINTS, sigmoid
from mxa.models.load import load_model
from mxa.utils.errors import InputError
from mxa.utils.files import digest


@pytest.fixture
@torch.no_grad()
def run(run, table, tmp_path):
    """The run, its row for Bright set so that the logits lie around 3 for bright images and around -3 for dark ones.

    How well a few epochs of training do depends on the processor; this does not.
    """
    folder = shutil.copytree(run, tmp_path / "known")
    model = load_model(folder)
    transform = create_transform(model)
    dataset = create_dataset("table", table, "all")
    bright = torch.from_numpy(dataset.records.targets[:, 2] == 1)
    images = torch.stack([transform(Image.open(table.parent / path)) for path in dataset.records.paths])
    features = model.head.bn(model.forward_head(model.forward_features(images), pre_logits=True))
    first, second = features[bright].mean(0), features[~bright].mean(0)
    weight = 6 * (first - second) / (first - second).square().sum()
    bias = -weight @ (first + second) / 2
    logits = features @ weight + bias
    assert logits[bright].min() > 1 and logits[~bright].max() < -1
    tensors = load_file(folder / "model.safetensors")
    tensors["head.linear.weight"][2], tensors["head.linear.bias"][2] = weight, bias
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def noisy(table, tmp_path):
    """A table with one validation image that is labelled wrongly, so that a temperature fits."""
    table = shutil.copytree(table.parent, tmp_path / "table") / "table.csv"
    lines = table.read_text().splitlines()
    bright = [line[-1] for line in lines if ",val," in line]
    common = max("01", key=bright.count)
    wrong = next(i for i, line in enumerate(lines) if ",val," in line and line.endswith(common))
    lines[wrong] = lines[wrong][:-1] + "10"[int(common)]
    table.write_text("\n".join(lines) + "\n")
    return table


@pytest.fixture
def calibrated(run, noisy, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    return folder, calibrate(CalibrateConfig(str(folder), data="table", root=str(noisy), workers=0))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A model of Edema, Mass and Bright with a calibration of Bright made by hand, and the text of that file."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    model = timm.create_model("efficientvit_ml_m0", num_classes=3, img_size=64)
    mxa.set_label_names(model, ("Edema", "Mass", "Bright"))
    mxa.models.save_pretrained(model, folder)
    provenance = {
        "weights_sha256": digest(folder / "model.safetensors"),
        "positives_and_negatives": {"Edema": [1, 2], "Mass": [0, 9], "Bright": [6, 6]},
        "not_calibrated": ["Edema", "Mass"],
        "temperature_at_its_end": [],
    }
    thresholds = {point: {"Bright": 0.5} for point in OPERATING_POINTS}
    content = {"temperatures": {"Bright": 1.5}, "thresholds": thresholds, "provenance": provenance}
    text = json.dumps(content)
    (folder / "calibration.json").write_text(text)
    read_calibration(folder)
    return folder, text


@pytest.fixture
def made(kept):
    yield kept
    (kept[0] / "calibration.json").write_text(kept[1])


def test_it_is_what_evaluation_fits_on_the_same_patients(calibrated, noisy, tmp_path):
    folder, found = calibrated
    result = evaluate(
        EvaluateConfig((str(folder),), tmp_path / "out", data="table", root=str(noisy), workers=0, replicates=5)
    )
    row = result["models"][0]["labels"]["Bright"]
    assert found.temperatures["Bright"] == pytest.approx(row["temperature"][0], abs=1e-5)
    raw = row["operating_points"]["youden"]["threshold"][0]
    logit = np.log(raw / (1 - raw))
    assert found.thresholds["youden"]["Bright"] == pytest.approx(
        sigmoid(np.array(logit / found.temperatures["Bright"])), abs=1e-4
    )
    assert read_calibration(folder) == found


def test_its_provenance_says_on_what(calibrated):
    folder, found = calibrated
    metadata = found.provenance
    assert (metadata["data"], metadata["split"], metadata["images"], metadata["patients"]) == ("table", "val", 12, 6)
    assert metadata["not_calibrated"] == ["Edema", "Mass"] and metadata["positives_and_negatives"]["Mass"][0] == 0
    assert set(found.temperatures) == {"Bright"}
    assert str(folder.parent) not in (folder / "calibration.json").read_text()


def test_a_probability_that_no_temperature_fits_is_left_as_it_is(run, table, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    found = calibrate(CalibrateConfig(str(folder), data="table", root=str(table), workers=0))
    assert found.provenance["temperature_at_its_end"] == ["Bright"] and found.temperatures == {}
    image = (table.parent / "0.png",)
    (plain,), (told,) = (predict(PredictConfig(image, str(folder), calibrated=point)) for point in (None, "f1"))
    assert told["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-6)
    bright = plain["probabilities"]["Bright"] >= found.thresholds["f1"]["Bright"]
    assert told["positive"] == (["Bright"] if bright else []) and told["undecided"] == ["Edema", "Mass"]


def test_predict_applies_it_only_when_told(calibrated, noisy):
    folder, found = calibrated
    dataset = create_dataset("table", noisy, "val")
    files = tuple(dataset.filename(i) for i in range(len(dataset)))
    plain = predict(PredictConfig(files, str(folder)))
    told = predict(PredictConfig(files, str(folder), calibrated="youden"))
    truth = dataset.records.targets[:, 2]
    calls = np.array(["Bright" in row["positive"] for row in told])
    best = max((calls[truth == 1].mean() - calls[truth == 0].mean()), 0)
    scores = np.array([row["probabilities"]["Bright"] for row in plain])
    assert best == pytest.approx(
        max((scores[truth == 1] >= t).mean() - (scores[truth == 0] >= t).mean() for t in scores)
    )
    for one, other in zip(plain, told, strict=True):
        assert "positive" not in one
        p = one["probabilities"]["Bright"]
        expected = sigmoid(np.log(p / (1 - p)) / found.temperatures["Bright"])
        assert other["probabilities"]["Bright"] == pytest.approx(float(expected), abs=1e-4)
        assert other["probabilities"]["Mass"] == pytest.approx(one["probabilities"]["Mass"], abs=1e-6)
        assert other["undecided"] == ["Edema", "Mass"]


def test_what_is_refused(calibrated, run, table, tmp_path):
    folder, _ = calibrated
    with pytest.raises(InputError, match=r"has no calibration\.json: write it with mxa calibrate"):
        read_calibration(run)
    with pytest.raises(InputError, match="is not a run folder"):
        calibrate(CalibrateConfig(str(tmp_path / "none"), data="table", root=str(table)))
    content = json.loads((folder / "calibration.json").read_text())
    content["provenance"]["weights_sha256"] = "0" * 64
    (folder / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="was made for other weights"):
        predict(PredictConfig((table.parent / "0.png",), str(folder), calibrated="f1"))
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match="is not a calibration"):
        read_calibration(folder)
    lines = [
        line for i, line in enumerate(table.read_text().splitlines()) if i < 3 or ",val," not in line or i % 12 == 5
    ]
    few = shutil.copytree(table.parent, tmp_path / "few") / "table.csv"
    few.write_text("\n".join(lines))
    with pytest.raises(InputError, match="no label has 5 positives and 5 negatives among the"):
        calibrate(CalibrateConfig(str(folder), data="table", root=str(few), workers=0))


def _edit(content, path, value):
    *parents, last = path.split("/")
    for parent in parents:
        content = content[parent]
    if value is ...:
        content.pop(last)
    else:
        content[last] = value


NO_TEMPERATURES = (float("nan"), float("inf"), 0, -0.2, None, "0.2", True, 1e-300, 1e6, [1.0], {"a": 1})
NO_THRESHOLDS = (float("nan"), -0.1, 1.5, None, "0.5", True, [0.5])
EDITS = [
    *(("temperatures/Bright", value, "the temperature of Bright must be a number") for value in NO_TEMPERATURES),
    *(("temperatures", value, "each temperature must be given by the name") for value in (None, [1.0, 1.0], 1.0, "x")),
    *(("thresholds/f1/Bright", value, r"the threshold \(f1\) of Bright must be a num") for value in NO_THRESHOLDS),
    *(("thresholds", value, "thresholds must be given for youden, specificity95, f1") for value in (None, {}, [], 0.5)),
    ("thresholds/f1", ..., "thresholds must be given for"),
    ("thresholds/f2", {}, "thresholds must be given for"),
    ("thresholds/f1", [0.5], r"each threshold \(f1\) must be given by the name of its label"),
    ("temperatures/Bright", ..., "Bright has no temperature"),
    ("thresholds/youden/Bright", ..., r"Bright has no threshold \(youden\)"),
    ("temperatures/Nodule", 1.0, "temperatures name Nodule, which the model does not have"),
    ("thresholds/f1/bright", 0.5, r"thresholds \(f1\) name bright, which the model does not have"),
    ("temperatures", ..., "no 'temperatures'"),
    ("provenance", [], "provenance must be an object"),
    ("provenance/weights_sha256", ..., "no 'weights_sha256'"),
    ("provenance/positives_and_negatives", ..., "no 'positives_and_negatives'"),
    ("provenance/not_calibrated", "Edema", "does not say what was calibrated"),
]


@pytest.mark.parametrize("edit", EDITS, ids=[f"{path} {value!r}" for path, value, _ in EDITS])
def test_values_that_no_calibration_has(edit, made, table):
    path, value, message = edit
    folder, original = made
    content = json.loads(original)
    _edit(content, path, value)
    (folder / "calibration.json").write_text(json.dumps(content))
    unreadable = isinstance(value, float) and not np.isfinite(value)  # JSON has no such number
    with pytest.raises(InputError, match="is not a number of JSON" if unreadable else message) as error:
        predict(PredictConfig((table.parent / "0.png",), str(folder), calibrated="f1"))
    assert str(folder / "calibration.json") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '{"a": ', "[" * 100_000, '{"temperatures": NaN}', "\xe9"])
def test_a_file_that_is_no_calibration(text, made):
    folder, _ = made
    (folder / "calibration.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"calibration\.json is not a calibration"):
        read_calibration(folder)


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), 0.0, -0.2])
def test_a_calibration_made_in_memory(temperature):
    thresholds = {point: {"Edema": 0.5} for point in OPERATING_POINTS}
    with pytest.raises(InputError, match="the temperature of Edema"):
        Calibration({"Edema": temperature}, thresholds)
    assert Calibration({"Edema": 2}, thresholds).probability("Edema", 0.0) == 0.5
