"""From logits to the numbers that are reported."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .bootstrap import auroc_intervals
from .functional import accuracy, auroc, f1, macro_auroc, micro_auroc

__all__ = ["report", "summary_line", "write_report"]

ENOUGH = 20  # positives under which a label does not count in the headline mean


def report(
    logits: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    patients: np.ndarray,
    views: np.ndarray,
    loss: float,
    replicates: int = 1000,
) -> dict:
    """Computes every number of an evaluation.

    Args:
        logits: ``(N, L)``.
        targets: ``(N, L)``: 1, 0, NaN where masked.
        labels: Names of the L labels.
        patients: ``(N,)``, resampled for the 95 % intervals.
        views: ``(N,)``; macro and micro AUC are given for each view too.
        loss: Mean loss, reported as it is.
        replicates: Bootstrap replicates.

    Returns:
        A dict for JSON: ``macro_auc``, ``micro_auc``, ``loss``, ``labels`` ``{name: {auc, accuracy, f1, n_pos, n_neg,
        ...}}`` and more; what is undefined is None, listed under ``undefined``, and left out of every mean. Accuracy
        and F1 are at probability 0.5.

    Raises:
        InputError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise InputError("the model's outputs are not finite: its training diverged, or its input is wrong")
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    intervals = auroc_intervals(logits, targets, patients, replicates)
    rows = {}
    for i, name in enumerate(labels):
        n_pos, n_neg = int((targets[:, i] == 1).sum()), int((targets[:, i] == 0).sum())
        rows[name] = {
            "auc": auroc(logits[:, i], targets[:, i]),
            "auc_interval": intervals["labels"][i],
            "accuracy": accuracy(probabilities[:, i], targets[:, i]),
            "f1": f1(probabilities[:, i], targets[:, i]),
            "n_pos": n_pos,
            "n_neg": n_neg,
        }
    enough = [i for i, name in enumerate(labels) if min(rows[name]["n_pos"], rows[name]["n_neg"]) >= ENOUGH]
    result = {
        "macro_auc": macro_auroc(logits, targets),
        "macro_auc_interval": intervals["macro"],
        "micro_auc": micro_auroc(logits, targets),
        "micro_auc_interval": intervals["micro"],
        f"macro_auc_min{ENOUGH}": macro_auroc(logits[:, enough], targets[:, enough]),
        "loss": loss,
        "accuracy": _mean([row["accuracy"] for row in rows.values()]),
        "f1": _mean([row["f1"] for row in rows.values()]),
        "images": len(targets),
        "patients": len(np.unique(patients)),
        "replicates": replicates,
        "replicates_skipped": intervals["skipped"],
        "undefined": [name for name, row in rows.items() if np.isnan(row["auc"])],
        "labels": rows,
        "views": {
            str(view): {
                "images": int((views == view).sum()),
                "macro_auc": macro_auroc(logits[views == view], targets[views == view]),
                "micro_auc": micro_auroc(logits[views == view], targets[views == view]),
            }
            for view in np.unique(views)
            if view
        },
    }
    return _plain(result)


def _mean(values: list[float]) -> float:
    """Mean of those that are defined."""
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def _plain(value):
    """Turns arrays into lists, NaN and infinity into None, for JSON."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating, np.ndarray)):
        return round(float(value), 6) if np.isfinite(value) else None
    return value


def summary_line(metrics: dict) -> str:
    """Says the macro AUC with its interval and n, in one line."""
    if metrics["macro_auc"] is None:
        return "macro AUC undefined: no label has both positives and negatives"
    low, high = metrics["macro_auc_interval"]
    interval = "no interval" if low is None else f"95 % interval {low:.3f} to {high:.3f}"
    who = f"{metrics['images']} images of {metrics['patients']} patients"
    return f"macro AUC {metrics['macro_auc']:.3f} ({interval}, {who})"


def write_report(metrics: dict, directory: Path) -> None:
    """Writes ``metrics.json`` and ``metrics.csv`` (a row a label) into a folder, made where missing."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    with (directory / "metrics.csv").open("w", newline="") as file:
        columns = ("label", "auc", "auc_low", "auc_high", "accuracy", "f1", "n_pos", "n_neg")
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for name, row in metrics["labels"].items():
            low, high = row["auc_interval"]
            writer.writerow({"label": name, "auc_low": low, "auc_high": high, **row})
