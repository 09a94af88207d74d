"""Thresholds and temperatures, which are chosen on validation patients and applied to other patients.

Scores and targets are those of ``mxa.metrics.functional``: a target is 0, 1 or NaN (masked), and the score of a known
case is not NaN.
"""

from __future__ import annotations

import numpy as np

from ..utils.errors import InputError
from .functional import checked

__all__ = [
    "ENOUGH",
    "LEAST",
    "OPERATING_POINTS",
    "TEMPERATURES",
    "choose_threshold",
    "choose_thresholds",
    "count_calls",
    "count_cases",
    "fit_temperatures",
    "logit",
    "sigmoid",
]

#: How a threshold is chosen: the largest sensitivity + specificity (Youden), the largest sensitivity at a specificity
#: of at least 95 %, the largest F1.
OPERATING_POINTS = ("youden", "specificity95", "f1")

#: Validation positives, and negatives, under which nothing is chosen for a label.
LEAST = 5

#: Positives, and negatives, under which what is chosen is called uncertain.
ENOUGH = 20

#: The lowest and the highest temperature that is fitted.
TEMPERATURES = (0.05, 20.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, in float64."""
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Logits of probabilities in [0, 1], in float64.

    A probability of 0 gives -1000 and one of 1 gives 1000; every other logit lies between.
    """
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probabilities) - np.log1p(-probabilities), -1000, 1000)


def count_cases(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts what there is to choose on.

    Args:
        targets: ``(N, L)``: 1, 0, or NaN where masked.

    Returns:
        Positives and negatives of each label, and whether there are ``LEAST`` of both: three arrays ``(L,)``.
    """
    positives, negatives = (targets == 1).sum(0), (targets == 0).sum(0)
    return positives, negatives, np.minimum(positives, negatives) >= LEAST


def count_calls(scores: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts true and false positives at every threshold, where a threshold is a score that occurs.

    Args:
        scores: ``(N,)``.
        target: ``(N,)``: 1, 0, or NaN where masked.

    Returns:
        Thresholds, true positives and false positives, three arrays ``(T,)`` from the highest threshold to the lowest.
        The last counts are all positives and all negatives.

    Raises:
        InputError: as ``mxa.metrics.auroc``.
    """
    scores, target, known = checked(scores, target)
    order = np.argsort(scores[known], kind="stable")[::-1]
    values, positive = scores[known][order], target[known][order] == 1
    last = np.flatnonzero(np.r_[values[1:] != values[:-1], len(values) > 0])  # of each group of ties
    return values[last], np.cumsum(positive)[last], np.cumsum(~positive)[last]


def choose_threshold(scores: np.ndarray, target: np.ndarray, point: str) -> float:
    """Chooses the threshold of one label: a case is called positive where its score is at least the threshold.

    Only scores that occur are considered. Where several are equally good, the highest is taken: it calls the fewest.

    Args:
        scores: ``(N,)``.
        target: ``(N,)``: 1, 0, or NaN where masked.
        point: One of ``OPERATING_POINTS``.

    Returns:
        The threshold, in the unit of the scores; NaN where there is no positive or no negative. Where no score has a
        specificity of 95 % it is infinity, which calls nothing.

    Raises:
        InputError: an unknown operating point; as ``mxa.metrics.auroc``.
    """
    if point not in OPERATING_POINTS:
        raise InputError(f"unknown operating point {point!r}: give one of {', '.join(OPERATING_POINTS)}")
    values, tp, fp = count_calls(scores, target)
    if not len(values) or not tp[-1] or not fp[-1]:
        return float("nan")
    positives, negatives = tp[-1], fp[-1]
    if point == "youden":
        worth = tp * negatives - fp * positives  # whole numbers, so that ties are ties
    elif point == "specificity95":
        worth = np.where(20 * fp <= negatives, tp, -1)
    else:
        worth = 2 * tp / (tp + fp + positives)
    best = int(worth.argmax())
    return float(values[best]) if worth[best] >= 0 else float("inf")


def choose_thresholds(scores: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Chooses the thresholds of every label, ``(N, L)`` to ``(L,)``, for each of ``OPERATING_POINTS``.

    Raises:
        InputError: as ``mxa.metrics.auroc``.
    """
    scores, targets, _ = checked(scores, targets)
    columns = range(targets.shape[1])
    return {
        point: np.array([choose_threshold(scores[:, i], targets[:, i], point) for i in columns])
        for point in OPERATING_POINTS
    }


def fit_temperatures(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Fits the temperature of each label: the T for which ``sigmoid(logit / T)`` has the least cross-entropy.

    Guo et al., 2017, one label at a time. The cross-entropy is convex in 1/T, so its derivative is bisected.

    Args:
        logits: ``(N, L)``.
        targets: ``(N, L)``: 1, 0, or NaN where masked.

    Returns:
        ``(L,)`` in [0.05, 20]; NaN where there is no positive or no negative. A value at an end says that no
        temperature fits. At 20 the logits say nothing about the label, or the opposite of it.

    Raises:
        InputError: as ``mxa.metrics.auroc``.
    """
    logits, targets, known = checked(logits, targets)
    positive = np.nan_to_num(targets)
    logits = np.where(known, np.clip(logits.astype(np.float64), -700, 700), 0)
    low, high = (np.full(targets.shape[1], 1 / t) for t in reversed(TEMPERATURES))
    for _ in range(50):
        middle = np.sqrt(low * high)
        rising = ((sigmoid(logits * middle) - positive) * logits).sum(0, where=known) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    defined = ((targets == 1).any(0)) & ((targets == 0).any(0))
    return np.where(defined, 1 / np.sqrt(low * high), np.nan)
