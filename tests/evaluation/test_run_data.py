"""A run is scored and calibrated on what it was trained on, unless an option says otherwise."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest

from mxa.cli import main
from mxa.commands import output
from mxa.commands.prepare import PrepareConfig, prepare
from mxa.data import create_dataset
from mxa.evaluation.calibrate import CalibrateConfig, calibrate
from mxa.evaluation.evaluate import EvaluateConfig, evaluate
from mxa.train import train
from mxa.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = {"workers": 0, "replicates": 5}


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run that a test may write to."""
    return shutil.copytree(run, tmp_path / "own")


def test_evaluate_scores_what_the_run_was_trained_on(own, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mxa")
    model = evaluate(EvaluateConfig((str(own),), tmp_path / "out", **SMALL))["models"][0]
    assert model["metadata"][0]["data"] == "table" and model["images"] == 12
    assert sum("was trained on" in line for line in caplog.messages) == 1


def test_calibrate_does_not_replace_a_calibration_made_on_other_images(own):
    config = CalibrateConfig(str(own), workers=0)
    calibrate(config)
    first = json.loads((own / "calibration.json").read_text())
    assert first["provenance"]["data"] == "table" and first["provenance"]["images"] == 12
    calibrate(config)  # the same images: it may be made again
    before = (own / "calibration.json").read_bytes()
    for other in ({"views": "AP"}, {"data": "phantom"}):
        with pytest.raises(InputError, match=r"calibration\.json was made on 12 images of table.*add --overwrite"):
            calibrate(CalibrateConfig(str(own), workers=0, **other))
        assert (own / "calibration.json").read_bytes() == before
    edema = {"views": "all", "blank": "negative"}
    calibrate(CalibrateConfig(str(own), workers=0, overwrite=True, **edema))


def test_a_table_of_test_rows_alone_is_scored(own, table, tmp_path, caplog):
    only = shutil.copytree(table.parent, tmp_path / "only") / "table.csv"
    frame = pd.read_csv(only, dtype=str).assign(split="test")
    frame.to_csv(only, index=False)
    result = evaluate(EvaluateConfig((str(own),), tmp_path / "out", data="table", root=str(only), **SMALL))
    assert result["models"][0]["images"] == 48 and "chosen_on" not in result["models"][0]
    assert "no threshold or temperature is chosen" in caplog.text


def test_merge_makes_the_labels_of_a_file_of_scores(made_nih, tmp_path):
    root = made_nih(lists=True)
    table = (root / "Data_Entry_2017.csv").read_text()
    (root / "Data_Entry_2017.csv").write_text(table.replace("Infiltration", "Nodule"))
    records = create_dataset("nih", root, "all").records
    score = np.linspace(-1, 1, len(records))
    file = tmp_path / "theirs.csv"
    pd.DataFrame({"image": records.paths, "logit:Lung Lesion": score}).to_csv(file, index=False)
    config = {"data": "nih", "root": str(root), "split": "all", **SMALL}
    with pytest.raises(InputError, match="Lung Lesion"):
        evaluate(EvaluateConfig((str(file),), tmp_path / "plain", **config))
    model = evaluate(EvaluateConfig((str(file),), tmp_path / "merged", merge=True, **config))["models"][0]
    assert model["metadata"][0]["merged"] is True
    assert model["labels"]["Lung Lesion"]["n_pos"] == (records.targets[:, records.labels.index("Nodule")] == 1).sum()


@pytest.fixture
def without_test(own, table, tmp_path):
    """A run, and its table, with neither a test split nor patients."""
    only = shutil.copytree(table.parent, tmp_path / "only") / "table.csv"
    frame = pd.read_csv(only, dtype=str).drop(columns=["split", "patient"])
    frame.to_csv(only, index=False)
    settings = (own / "local.yaml").read_text()
    (own / "local.yaml").write_text(settings.replace(str(table), str(only)))
    (own / "summary.json").unlink()  # how the splits of its own table were cut
    return own


def test_images_of_training_are_scored_only_when_asked_for(without_test, tmp_path, capsys):
    asked = {"output": tmp_path / "out", **SMALL}
    with pytest.raises(InputError, match=r"has no test split, and .* was trained on its images: train with --test-fra"):
        evaluate(EvaluateConfig((str(without_test),), **asked))
    with pytest.raises(SystemExit, match=r"mxa evaluate: table .*--split val"):
        main(["evaluate", str(without_test), "--output", str(tmp_path / "out"), "--workers", "0"])
    assert not (tmp_path / "out").exists()
    result = evaluate(EvaluateConfig((str(without_test),), split="all", **asked))
    said = "own was trained on images that are scored here: its numbers are too good."
    assert result["notes"][0] == said
    output.evaluate(EvaluateConfig((str(without_test),), split="all", **asked), result)
    assert capsys.readouterr().out.startswith(f"note: {said}")
    assert said in (tmp_path / "out" / "report.html").read_text()
    validated = evaluate(EvaluateConfig((str(without_test),), split="val", **asked))
    assert said not in validated["notes"]


def test_a_report_says_that_patients_are_unknown(without_test, own, tmp_path):
    result = evaluate(EvaluateConfig((str(without_test),), split="all", output=tmp_path / "out", **SMALL))
    said = "48 of 48 images have no patient, and each counts as a patient of its own."
    assert result["notes"][1].startswith(said)
    for name in ("report.html", "model_card.md", "metrics.json"):
        assert said in (tmp_path / "out" / name).read_text()


def test_a_report_of_known_patients_says_nothing_of_them(own, tmp_path):
    assert evaluate(EvaluateConfig((str(own),), tmp_path / "out", **SMALL))["notes"] == []


def test_patients_stay_unknown_in_shards(without_test, table, tmp_path):
    prepare(PrepareConfig(data="table", root=str(tmp_path / "only/table.csv"), output=tmp_path / "shards", size=16))
    with pytest.warns(UserWarning, match="48 of 48 images have no patient"):
        records = create_dataset("shards", tmp_path / "shards", "all").records
    assert records.without_patient() == 48
    prepare(PrepareConfig(data="table", root=str(table), output=tmp_path / "known", size=16))
    assert create_dataset("shards", tmp_path / "known", "all").records.without_patient() == 0


def test_a_table_that_has_changed_is_not_cut_anew(config, table, tmp_path):
    only = shutil.copytree(table.parent, tmp_path / "only") / "table.csv"
    frame = pd.read_csv(only, dtype=str).drop(columns="split")
    frame.to_csv(only, index=False)
    train(config(root=str(only), test_fraction=0.3, epochs=1, output=tmp_path / "fresh"))
    asked = {"output": tmp_path / "out", **SMALL}
    whole = evaluate(EvaluateConfig((str(tmp_path / "fresh"),), **asked))
    assert whole["models"][0]["metadata"][0]["split"] == "test"
    frame.sample(frac=1, random_state=0).to_csv(only, index=False)  # the order of the rows is nothing
    assert (
        evaluate(EvaluateConfig((str(tmp_path / "fresh"),), **asked))["models"][0]["images"]
        == (whole["models"][0]["images"])
    )
    frame.iloc[2:].to_csv(only, index=False)
    for split in ({}, {"split": "val"}):
        with pytest.raises(InputError, match=r"table .* has changed since .*fresh was trained"):
            evaluate(EvaluateConfig((str(tmp_path / "fresh"),), **split, **asked))
    with pytest.raises(InputError, match="has changed since"):
        calibrate(CalibrateConfig(str(tmp_path / "fresh"), workers=0))
    evaluate(EvaluateConfig((str(tmp_path / "fresh"),), split="all", **asked))
    frame.iloc[2:].to_csv(tmp_path / "only" / "theirs.csv", index=False)
    theirs = {"data": "table", "root": str(tmp_path / "only" / "theirs.csv"), "test_fraction": 0.3}
    evaluate(EvaluateConfig((str(tmp_path / "fresh"),), **theirs, **asked))  # another table


def test_a_test_split_is_cut_from_shards_too(table, tmp_path):
    only = shutil.copytree(table.parent, tmp_path / "only") / "table.csv"
    pd.read_csv(only, dtype=str).drop(columns="split").to_csv(only, index=False)
    prepare(PrepareConfig(data="table", root=str(only), output=tmp_path / "shards", size=16))
    splits = {s: create_dataset("shards", tmp_path / "shards", s, test_fraction=0.3) for s in ("train", "val", "test")}
    people = {s: set(dataset.records.patients.tolist()) for s, dataset in splits.items()}
    assert all(people.values()) and not people["train"] & people["test"] and not people["val"] & people["test"]


def test_a_second_evaluation_leaves_nothing_of_the_first(own, tmp_path):
    twin = shutil.copytree(own, tmp_path / "twin")
    evaluate(EvaluateConfig((str(own), str(twin)), tmp_path / "out", **SMALL))
    held = tmp_path / "out" / "predictions"
    assert {file.name for file in held.iterdir()} == {"own.parquet", "twin.parquet"}
    evaluate(EvaluateConfig((str(own),), tmp_path / "out", **SMALL))
    assert {file.name for file in held.iterdir()} == {"own.parquet"}
