"""A run is scored and calibrated on what it was trained on, unless an option says otherwise."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest

from mxa.data import create_dataset
from mxa.evaluation.calibrate import CalibrateConfig, calibrate
from mxa.evaluation.evaluate import EvaluateConfig, evaluate
from mxa.utils.errors import InputError

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
