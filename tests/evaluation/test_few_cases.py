"""What too few validation cases choose: one rule for evaluate and calibrate, and the numbers beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mxa.commands import output
from mxa.evaluation.calibrate import CalibrateConfig, calibrate
from mxa.evaluation.predictions import Arm, Predictions
from mxa.evaluation.report import numbers
from mxa.evaluation.report.rows import point_rows
from mxa.metrics.operating import OPERATING_POINTS, count_cases
from mxa.utils.errors import InputError


def predictions(positives: int, count: int, split: str) -> Predictions:
    """Two labels of one patient an image: Rare with so many positives, Common with a half; the score knows both."""
    targets = np.zeros((count, 2))
    targets[:positives, 0] = targets[::2, 1] = 1
    cases = pd.DataFrame({"image": [f"{split}{i}" for i in range(count)], "split": split})
    cases = cases.assign(patient=cases["image"].str.upper(), study="", view="", age=np.nan)
    cases["sex"] = np.where(np.arange(count) % 4 < 2, "F", "M")
    logits = targets + np.random.default_rng(0).normal(size=targets.shape)
    return Predictions(("Rare", "Common"), logits, targets, cases)


def evaluated(positives: int) -> dict:
    arm = Arm("a", (predictions(60, 200, "test"),), (predictions(positives, 100, "val"),))
    return numbers([arm], 20)["models"][0]


@pytest.mark.parametrize(("positives", "chosen"), [(2, False), (4, False), (5, True), (95, True), (96, False)])
def test_nothing_is_chosen_on_fewer_than_five(positives, chosen):
    model = evaluated(positives)
    row = model["labels"]["Rare"]
    assert (row["val_pos"], row["val_neg"]) == (positives, 100 - positives)
    assert (row["temperature"][0] is not None) == chosen
    for point in OPERATING_POINTS:
        found = row["operating_points"][point]
        assert (found["threshold"][0] is not None) == (found["sensitivity"] is not None) == chosen
        head, (rare, _) = point_rows(model, point)
        assert dict(zip(head, rare, strict=True))["n+ chosen on"] == str(positives)
        assert dict(zip(head, rare, strict=True))["n- chosen on"] == str(100 - positives)
    assert row["auc"] is not None and model["labels"]["Common"]["temperature"][0] is not None


def test_groups_have_no_rates_of_a_label_without_a_threshold():
    assert evaluated(2)["groups"]["sex"]["labels"] == ["Common"]
    assert evaluated(20)["groups"]["sex"]["labels"] == ["Rare", "Common"]


def test_calibrate_has_the_same_rule_and_says_the_numbers(run, monkeypatch, caplog, capsys, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")

    def scored(few: int, common: int):
        found = predictions(few, 40, "val")
        found.targets[:, 1] = np.arange(40) < common
        metadata = {"weights_sha256": "0", "data": "table"}
        monkeypatch.setattr("mxa.evaluation.calibrate.score", lambda *given: replace(found, metadata=metadata))
        return CalibrateConfig(str(own), overwrite=True, workers=0)

    config = scored(4, 15)
    result = calibrate(config)
    assert set(result.temperatures) <= {"Common"} and result.provenance["not_calibrated"] == ["Rare"]
    assert "chosen on fewer than 20 positives or negatives, so uncertain: Common (15 and 25)" in caplog.text
    output.calibrate(config, result)
    shown = capsys.readouterr().out
    assert [cell.strip() for cell in next(line for line in shown.splitlines() if "Common" in line).split("│")[2:4]] == [
        "15",
        "25",
    ]
    caplog.clear()
    calibrate(scored(20, 20))
    assert "uncertain" not in caplog.text
    with pytest.raises(InputError, match="no label has 5 positives and 5 negatives among the 40 validation images"):
        calibrate(scored(4, 36))


def test_masked_cells_are_neither():
    targets = np.array([[1.0, np.nan], [0, np.nan], [np.nan, 1]])
    positives, negatives, enough = count_cases(np.tile(targets, (5, 1)))
    assert positives.tolist() == [5, 5] and negatives.tolist() == [5, 0] and enough.tolist() == [True, False]
