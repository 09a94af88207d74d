"""Calibration beside the weights: what it holds, that predict applies it only when told, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mxa.commands.predict import PredictConfig, predict
from mxa.data import create_dataset, create_transform
from mxa.evaluation.calibrate import CalibrateConfig, calibrate, read_calibration
from mxa.evaluation.evaluate import EvaluateConfig, evaluate
from mxa.metrics import sigmoid
from mxa.models.load import load_model
from mxa.utils.errors import InputError


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
