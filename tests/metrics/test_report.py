"""What an evaluation reports, as a dict, as JSON and as CSV."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from mxa.errors import InputError
from mxa.metrics import (
    accuracy,
    auroc,
    auroc_intervals,
    f1,
    macro_auroc,
    micro_auroc,
    report,
    summary_line,
    write_report,
)

LABELS = ("Edema", "Mass", "Fracture", "Hernia")
NAN = float("nan")


@pytest.fixture
def case() -> dict:
    """Edema is well known, Mass has masked cells and few positives, Fracture no positive, Hernia no known cell."""
    rng = np.random.default_rng(0)
    n = 120
    targets = np.zeros((n, 4), dtype=np.float32)
    targets[:, 0] = rng.random(n) < 0.4
    targets[:, 1] = rng.random(n) < 0.15
    targets[::6, 1] = targets[:, 3] = NAN
    logits = (rng.normal(size=(n, 4)) + np.nan_to_num(targets) - 0.5).astype(np.float32)
    views = np.array(["AP", "PA", "", "AP"] * (n // 4))
    return {
        "logits": logits,
        "targets": targets,
        "labels": LABELS,
        "patients": np.arange(n) // 2,
        "views": views,
        "loss": 0.25,
        "replicates": 60,
    }


@pytest.mark.filterwarnings("error")
def test_numbers_are_those_of_the_metrics(case):
    metrics = report(**case)
    logits, targets = case["logits"], case["targets"]
    probabilities = 1 / (1 + np.exp(-logits))
    assert set(metrics["labels"]) == set(LABELS)
    for i, name in enumerate(LABELS[:2]):
        row, target = metrics["labels"][name], targets[:, i]
        assert row["auc"] == pytest.approx(float(auroc(logits[:, i], target)), abs=1e-6)
        assert row["accuracy"] == pytest.approx(accuracy(probabilities[:, i], target), abs=1e-6)
        assert row["f1"] == pytest.approx(f1(probabilities[:, i], target), abs=1e-6)
        assert row["n_pos"] == int((target == 1).sum()) and row["n_neg"] == int((target == 0).sum())
    assert metrics["labels"]["Mass"]["n_pos"] + metrics["labels"]["Mass"]["n_neg"] == 100
    assert metrics["macro_auc"] == pytest.approx(macro_auroc(logits, targets), abs=1e-6)
    assert metrics["micro_auc"] == pytest.approx(micro_auroc(logits, targets), abs=1e-6)
    assert metrics["loss"] == 0.25
    assert (metrics["images"], metrics["patients"], metrics["replicates"]) == (120, 60, 60)
    intervals = auroc_intervals(logits, targets, case["patients"], 60)
    np.testing.assert_allclose(metrics["macro_auc_interval"], intervals["macro"], atol=1e-6)
    np.testing.assert_allclose(metrics["micro_auc_interval"], intervals["micro"], atol=1e-6)
    np.testing.assert_allclose(metrics["labels"]["Edema"]["auc_interval"], intervals["labels"][0], atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_undefined_is_none_listed_and_out_of_the_means(case):
    metrics = report(**case)
    assert metrics["undefined"] == ["Fracture", "Hernia"]
    fracture, hernia = metrics["labels"]["Fracture"], metrics["labels"]["Hernia"]
    assert fracture["auc"] is None and fracture["auc_interval"] == [None, None] and fracture["f1"] is None
    assert fracture["accuracy"] is not None and (fracture["n_pos"], fracture["n_neg"]) == (0, 120)
    assert hernia["accuracy"] is None and (hernia["n_pos"], hernia["n_neg"]) == (0, 0)
    rows = metrics["labels"]
    assert metrics["macro_auc"] == pytest.approx((rows["Edema"]["auc"] + rows["Mass"]["auc"]) / 2, abs=1e-6)
    assert metrics["f1"] == pytest.approx((rows["Edema"]["f1"] + rows["Mass"]["f1"]) / 2, abs=1e-6)
    mean = sum(rows[name]["accuracy"] for name in LABELS[:3]) / 3
    assert metrics["accuracy"] == pytest.approx(mean, abs=1e-6)


def test_the_headline_counts_labels_with_twenty_of_each_kind(case):
    metrics = report(**case)
    assert metrics["labels"]["Edema"]["n_pos"] >= 20 > metrics["labels"]["Mass"]["n_pos"] > 0
    assert metrics["macro_auc_min20"] == metrics["labels"]["Edema"]["auc"]


def test_views_are_reported_apart(case):
    metrics = report(**case)
    assert {name: view["images"] for name, view in metrics["views"].items()} == {"AP": 60, "PA": 30}
    rows = case["views"] == "PA"
    assert metrics["views"]["PA"]["macro_auc"] == pytest.approx(
        macro_auroc(case["logits"][rows], case["targets"][rows]), abs=1e-6
    )


@pytest.mark.filterwarnings("error")
def test_nothing_defined(case):
    metrics = report(**{**case, "targets": np.zeros((120, 4))})
    for key in ("macro_auc", "micro_auc", "macro_auc_min20", "f1"):
        assert metrics[key] is None
    assert metrics["undefined"] == list(LABELS)
    assert summary_line(metrics) == "macro AUC undefined: no label has both positives and negatives"


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_logits_that_are_not_finite_are_an_error_not_a_score(case, value):
    case["logits"][5, 0] = value
    with pytest.raises(InputError, match="outputs are not finite"):
        report(**case)


def test_files_are_strict_json_and_csv(case, tmp_path):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    for loss in (0.25, float("inf")):
        metrics = report(**{**case, "loss": loss})
        write_report(metrics, tmp_path / "new" / "folder")
        text = (tmp_path / "new" / "folder" / "metrics.json").read_text()
        assert json.loads(text, parse_constant=refuse) == metrics
    assert metrics["loss"] is None
    with (tmp_path / "new" / "folder" / "metrics.csv").open(newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(LABELS)
    edema = metrics["labels"]["Edema"]
    for key in ("auc", "accuracy", "f1", "n_pos", "n_neg"):
        assert float(rows["Edema"][key]) == edema[key]
    assert [float(rows["Edema"][key]) for key in ("auc_low", "auc_high")] == edema["auc_interval"]
    assert rows["Fracture"]["auc"] == rows["Fracture"]["auc_low"] == ""


def test_summary_line(case):
    metrics = report(**case)
    low, high = metrics["macro_auc_interval"]
    start = f"macro AUC {metrics['macro_auc']:.3f} (95 % interval {low:.3f} to {high:.3f}"
    assert summary_line(metrics) == f"{start}, 120 images of 60 patients)"


def test_summary_line_where_every_replicate_lacks_a_label():
    n = 30
    targets = np.eye(n)  # each label has one positive: no replicate has them all
    logits = np.random.default_rng(0).normal(size=(n, n))
    metrics = report(logits, targets, [f"L{i}" for i in range(n)], np.arange(n), np.full(n, ""), 0.1, replicates=20)
    assert metrics["macro_auc_interval"] == [None, None] and metrics["replicates_skipped"] == 20
    assert "no interval, 30 images of 30 patients" in summary_line(metrics)
