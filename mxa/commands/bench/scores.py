"""Measures the intervals of a report beside scikit-learn and torchmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from ...evaluation.predictions import Arm, Predictions
from ...evaluation.report.numbers import numbers
from ...metrics import patient_weights
from ...utils.errors import InputError
from .config import BenchScoresConfig
from .timing import seconds, write_record

__all__ = ["bench_scores"]


def bench_scores(config: BenchScoresConfig) -> list[dict[str, Any]]:
    """Measures how long a report of one model takes against the number of its scores.

    The report has every metric of every label with its interval. The peers compute the AUROC and the average precision
    of each label alone: scikit-learn in a loop over labels with sample weights, torchmetrics on resampled rows, which
    takes no weights. They compute a few replicates, and their time is scaled to all.

    Returns:
        A row for each number of scores: ``rows``, ``report_s``, ``sklearn_s`` and ``torchmetrics_s``; ``"-"`` where a
        peer is not installed.

    Raises:
        InputError: a number is below 1, or there are fewer than 100 rows.
    """
    if min(config.labels, config.replicates, config.peer_replicates) < 1 or min(config.rows, default=0) < 100:
        raise InputError("give at least 100 rows, and at least one label and replicate")
    found = []
    for count in config.rows:
        scored = _made(count, config.labels)
        patients = scored.cases["patient"].to_numpy(object)
        weights = next(patient_weights(patients, config.peer_replicates))
        scale = config.replicates / config.peer_replicates
        row: dict[str, Any] = {"rows": count}
        row["report_s"] = seconds(lambda scored=scored: numbers([Arm("made", (scored,), ())], config.replicates))
        for name, peer in (("sklearn_s", _sklearn), ("torchmetrics_s", _torchmetrics)):
            try:
                row[name] = seconds(lambda peer=peer, scored=scored, w=weights: peer(scored, w)) * scale
            except ImportError:
                row[name] = "-"
        found.append(row)
    write_record(config, found, torch.device("cpu"))
    return found


def _made(count: int, labels: int) -> Predictions:
    rng = np.random.default_rng(0)
    targets = (rng.random((count, labels)) < 0.1).astype(np.float32)
    logits = (rng.normal(size=targets.shape) + targets).astype(np.float32)
    cases = pd.DataFrame({"image": [f"{i}.png" for i in range(count)], "patient": [f"{i // 3}" for i in range(count)]})
    cases = cases.assign(view="PA", frontal=True, sex="F", age=50.0)
    return Predictions(tuple(f"label {i}" for i in range(labels)), logits, targets, cases)


def _sklearn(scored: Predictions, weights: np.ndarray) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    for weight in weights:
        for score, target in zip(scored.logits.T, scored.targets.T, strict=True):
            roc_auc_score(target, score, sample_weight=weight)
            average_precision_score(target, score, sample_weight=weight)


def _torchmetrics(scored: Predictions, weights: np.ndarray) -> None:
    from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

    scores, targets = torch.from_numpy(scored.logits).sigmoid(), torch.from_numpy(scored.targets).long()
    for weight in weights:
        rows = torch.from_numpy(np.repeat(np.arange(len(weight)), weight.astype(int)))
        for metric in (multilabel_auroc, multilabel_average_precision):
            metric(scores[rows], targets[rows], len(scored.labels), average=None)
