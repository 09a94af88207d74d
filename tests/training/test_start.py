"""What a run starts from: the size of its input, and what is said where few images train random weights."""

from __future__ import annotations

import json
import logging

import pytest
from PIL import Image

import mxa
from mxa.cli import main
from mxa.data import data_config
from mxa.models.load import load_model
from mxa.training.config import TrainConfig
from mxa.training.loop import train
from mxa.utils.command_line import parse
from mxa.utils.errors import InputError


@pytest.mark.parametrize(
    ("options", "size"), [(["64"], 64), (["64", "96"], (64, 96)), ([], None)], ids=["side", "height and width", "none"]
)
def test_one_number_or_two(options, size, tmp_path):
    given = ["--output", str(tmp_path), *(["--img-size", *options] if options else [])]
    assert parse(TrainConfig, given, "mxa train").img_size == size


@pytest.mark.parametrize("options", [["64", "96", "32"], ["64", "x"], ["64.5"]])
def test_other_sizes_are_refused(options, tmp_path):
    with pytest.raises(InputError, match="--img-size must be a whole number or a list of 2"):
        parse(TrainConfig, ["--output", str(tmp_path), "--img-size", *options], "mxa train")


def test_films_that_are_not_square(config, tmp_path, capsys):
    with pytest.raises(InputError, match=r"--img-size must be between 32 and 10000, got \(64, 16\)"):
        train(config(img_size=(64, 16)))
    run = tmp_path / "wide"
    train(config(output=run, img_size=(64, 96), epochs=1))
    train(config(output=run, img_size=(64, 96), epochs=1, resume="auto"))
    model = load_model(run)
    assert data_config(model)["input_size"] == (3, 64, 96)
    assert json.loads((run / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 64, 96]
    image = tmp_path / "film.png"
    Image.linear_gradient("L").save(image)
    main(["predict", str(image), "--model", str(run)])
    shown = capsys.readouterr().out
    assert all(name in shown for name in mxa.label_names(model))
    other = tmp_path / "high"
    train(config(output=other, img_size=(96, 64), init=str(run), epochs=1))
    assert data_config(load_model(other))["input_size"] == (3, 96, 64)


def test_few_images_and_random_weights(config, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mxa"):
        train(config(output=tmp_path / "a", epochs=1))
    assert "images train random weights; --init efficientvit_ml_m0_mxa.r160_nih8k starts from trained" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "mxa"):
        train(config(output=tmp_path / "b", epochs=1, init=str(tmp_path / "a")))
    assert "random weights" not in caplog.text
