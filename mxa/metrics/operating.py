"""Thresholds and temperatures: chosen on validation patients, only applied elsewhere."""

from __future__ import annotations

import numpy as np

__all__ = ["OPERATING_POINTS", "TEMPERATURES", "choose_threshold", "choose_thresholds", "fit_temperatures", "sigmoid"]

#: How a threshold is chosen: the largest sensitivity + specificity (Youden), the largest sensitivity at a specificity
#: of at least 95 %, the largest F1.
OPERATING_POINTS = ("youden", "specificity95", "f1")

#: The lowest and the highest temperature that is fitted.
TEMPERATURES = (0.05, 20.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, in float64."""
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))


def choose_threshold(scores: np.ndarray, target: np.ndarray, point: str) -> float:
    """Chooses the threshold of one label: a case is called positive where its score is at least that.

    Of thresholds that are as good the highest is taken (the fewest calls). Only scores that occur are considered.

    Args:
        scores: ``(N,)``.
        target: ``(N,)``: 1, 0, or NaN where masked.
        point: One of ``OPERATING_POINTS``.

    Returns:
        The threshold, in the unit of the scores; NaN where there is no positive or no negative. Where no score has a
        specificity of 95 %, infinity (nothing is called).
    """
    known = ~np.isnan(target)
    order = np.argsort(-scores[known], kind="stable")
    values, positive = scores[known][order], target[known][order] == 1
    if not positive.any() or positive.all():
        return float("nan")
    last = np.flatnonzero(np.r_[np.diff(values) != 0, True])  # the last of each group of ties
    tp, fp = np.cumsum(positive)[last], np.cumsum(~positive)[last]
    positives, negatives = positive.sum(), (~positive).sum()
    if point == "youden":
        worth = tp * negatives - fp * positives  # whole numbers, so that ties are ties
    elif point == "specificity95":
        worth = np.where(20 * fp <= negatives, tp, -1)
    elif point == "f1":
        worth = 2 * tp / (tp + fp + positives)
    else:
        raise ValueError(f"unknown operating point {point!r}: give one of {', '.join(OPERATING_POINTS)}")
    best = int(worth.argmax())
    return float(values[last[best]]) if worth[best] >= 0 else float("inf")


def choose_thresholds(scores: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Chooses the thresholds of every label, ``(N, L)`` to ``(L,)``, for each of ``OPERATING_POINTS``."""
    columns = range(targets.shape[1])
    return {
        point: np.array([choose_threshold(scores[:, i], targets[:, i], point) for i in columns])
        for point in OPERATING_POINTS
    }


def fit_temperatures(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Fits the temperature of each label: the T for which ``sigmoid(logit / T)`` has the least cross-entropy.

    Guo et al., 2017, one label at a time. The entropy is convex in 1/T, so that its derivative is bisected.

    Args:
        logits: ``(N, L)``.
        targets: ``(N, L)``, NaN where masked.

    Returns:
        ``(L,)`` in [0.05, 20]; NaN where there is no positive or no negative. A value at an end says that no
        temperature fits: at 20 the logits tell nothing, or the wrong way round.
    """
    known = ~np.isnan(targets)
    positive = np.nan_to_num(targets)
    logits = np.where(known, np.clip(logits.astype(np.float64), -700, 700), 0)
    low, high = (np.full(targets.shape[1], 1 / t) for t in reversed(TEMPERATURES))
    for _ in range(50):
        middle = np.sqrt(low * high)
        rising = ((sigmoid(logits * middle) - positive) * logits).sum(0, where=known) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    defined = ((targets == 1).any(0)) & ((targets == 0).any(0))
    return np.where(defined, 1 / np.sqrt(low * high), np.nan)
