"""A folder of images without labels: a teacher of TorchXRayVision's kind names the outputs and gives the targets."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mxa
from mxa.cli import main
from mxa.commands.teach import TeachConfig, teach
from mxa.data import create_dataset
from mxa.data.collections.phantom import draw
from mxa.evaluation.predictions import read_predictions
from mxa.models.hub import SHIPPED
from mxa.models.load import load_model
from mxa.training.config import TrainConfig
from mxa.training.loop import train
from mxa.utils.errors import InputError

NAMES = ["Atelectasis", "", "Effusion", "Lung Opacity"]  # the second is not trained
CHOSEN = ("Atelectasis", "Effusion", "Lung Opacity")


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Images as an export leaves them: in folders of wards and patients, some files that are no images."""
    root = tmp_path_factory.mktemp("films")
    for i in range(120):
        folder = root / f"ward {i % 3}" / f"{i // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(i).image).resize((64, 64)).save(folder / f"{i}.png")
    (root / "notes.txt").write_text("none")
    return root


@pytest.fixture(scope="module")
def own(films, tmp_path_factory) -> Path:
    """A file of TorchXRayVision's DenseNet-121, whose operating points are medians of a quarter of the films."""
    with warnings.catch_warnings():
        import torchxrayvision as xrv
    torch.manual_seed(0)
    model = xrv.models.DenseNet(num_classes=len(NAMES), in_channels=1)
    files = sorted(films.rglob("*.png"))[::4]
    images = np.stack([np.asarray(Image.open(f).convert("L").resize((64, 64)), np.float32) for f in files])
    images = torch.from_numpy((images / 255 * 2 - 1) * 1024)[:, None]
    with torch.no_grad():
        model.train().features(images)
        model.classifier.weight *= 20
        points = model.eval()(torch.nn.functional.interpolate(images, 224)).sigmoid().median(0).values
    model.targets = model.pathologies = NAMES
    points[1] = torch.nan
    model.register_buffer("op_threshs", points)
    path = tmp_path_factory.mktemp("xrv") / "own.pt"
    torch.save(model, path)
    return path


@pytest.fixture(scope="module")
def taught(films, own, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("taught") / "t.parquet"
    teach(TeachConfig(teacher=(f"xrv:{own}",), data="images", root=str(films), output=path, workers=0))
    return path


@pytest.fixture(scope="module")
def run(films, taught, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    settings = {"img_size": 64, "epochs": 4, "batch_size": 12, "lr": 2e-3, "workers": 0, "alpha": 1.0}
    train(TrainConfig(output, data="images", root=str(films), teacher=str(taught), **settings))
    return output


def test_every_image_is_found_and_has_no_label(films, caplog):
    with caplog.at_level(logging.INFO, "mxa"):
        dataset = create_dataset("images", films, "all")
    assert len(dataset) == 120 and dataset.labels == () and dataset.records.targets.shape == (120, 0)
    assert "1 files are not images" in caplog.text
    parts = [create_dataset("images", films, split).records.paths.tolist() for split in ("train", "val")]
    assert len(parts[1]) == 12 and not set(parts[0]) & set(parts[1])


def test_the_teacher_names_the_labels_and_masks_what_it_was_not_trained_on(films, taught):
    scores = read_predictions(taught, create_dataset("images", films, "train", labels_from=taught).records)
    assert scores.labels == CHOSEN and set(scores.metadata["thresholds"]) == set(CHOSEN)


def test_training_takes_probabilities_and_other_splits_what_the_teacher_calls(films, taught):
    train_set = create_dataset("images", films, "train", labels_from=taught)
    whole = create_dataset("images", films, "all", labels_from=taught)
    scores = read_predictions(taught, train_set.records)
    wanted = 1 / (1 + np.exp(-scores.logits))
    np.testing.assert_allclose(train_set.records.targets, wanted, rtol=1e-5)
    scores = read_predictions(taught, whole.records)
    points = [scores.metadata["thresholds"][name] for name in CHOSEN]
    np.testing.assert_array_equal(whole.records.targets, 1 / (1 + np.exp(-scores.logits)) > points)
    assert ((whole.records.targets.mean(0) > 0.1) & (whole.records.targets.mean(0) < 0.9)).all()
    some = create_dataset("images", films, "val", labels=["Effusion"], labels_from=taught)
    assert some.labels == ("Effusion",)


def test_a_student_learns_what_the_teacher_says(run):
    model = load_model(run)
    assert mxa.label_names(model) == CHOSEN
    rows = (run / "log.csv").read_text().splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("train_loss")]) for row in rows[1:]]
    assert losses[-1] < losses[0] - 0.01


def test_later_commands_take_the_labels_from_the_run(run, films, tmp_path, capsys):
    main(["calibrate", str(run)])
    assert (run / "calibration.json").is_file()
    main(["evaluate", str(run), "--split", "val", "--output", str(tmp_path / "out"), "--workers", "0"])
    assert (tmp_path / "out" / "metrics.json").is_file()
    image = next(films.rglob("*.png"))
    main(["predict", str(image), "--model", str(run), "--calibrated", "youden"])
    assert "Lung Opacity" in capsys.readouterr().out


def test_a_model_is_not_scored_on_images_without_labels(films, tmp_path):
    with pytest.raises(SystemExit, match="the images have no labels: give a table, or --labels-from"):
        main(["evaluate", SHIPPED, "--data", "images", "--root", str(films), "--output", str(tmp_path)])


def test_several_teachers_bring_the_labels_of_all(films, own, run, tmp_path):
    path = tmp_path / "both.parquet"
    found = teach(TeachConfig(teacher=(f"xrv:{own}", str(run)), data="images", root=str(films), output=path, workers=0))
    assert found.labels == CHOSEN and len(found) == 120 and "thresholds" not in found.metadata


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "--data images has no labels: run mxa teach on it, and give its file with --teacher"),
        ({"teacher": "xrv:own.pt"}, "--data images has no labels: run mxa teach"),
        ({"teacher": "none.parquet"}, "no such file: none.parquet; mxa teach writes it"),
    ],
)
def test_without_a_file_of_logits_there_is_nothing_to_learn(films, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        train(TrainConfig(tmp_path / "run", data="images", root=str(films), **fields))


def test_wrong_roots_and_collections(films, taught, tmp_path):
    with pytest.raises(InputError, match="must name the folder of the images"):
        create_dataset("images", next(films.rglob("*.png")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        create_dataset("images", tmp_path / "empty")
    with pytest.raises(InputError, match="--labels-from is for --data images; folder has labels of its own"):
        create_dataset("folder", films, labels_from=taught)
    Image.new("L", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(InputError, match=r"t\.parquet has no logits of 1 of 1 images, such as other\.png"):
        create_dataset("images", tmp_path, "all", labels_from=taught)
