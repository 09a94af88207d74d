"""Metrics as pure functions on scores and targets; NaN targets are masked, an undefined metric is NaN."""

from __future__ import annotations

import numpy as np

__all__ = ["accuracy", "auroc", "f1", "macro_auroc", "micro_auroc"]


def auroc(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve of one label; a tie between a positive and a negative counts one half.

    Args:
        scores: ``(N,)``, any monotone function of the probability.
        target: ``(N,)``: 1, 0, or NaN where masked.
        weight: ``(..., N)`` weights of the cases, such as bootstrap counts: one curve for each row.

    Returns:
        ``(...)`` in [0, 1]; NaN where there is no positive or no negative.

    >>> float(auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])))
    0.75
    """
    known = ~np.isnan(target)
    order = np.argsort(scores[known], kind="stable")
    sorted_scores, positive = scores[known][order], target[known][order] == 1
    weight = np.ones(len(order)) if weight is None else weight[..., known][..., order]
    if len(order) == 0:
        return np.full(weight.shape[:-1], np.nan)
    first = np.flatnonzero(np.r_[True, np.diff(sorted_scores) != 0])  # where each group of ties starts
    pos = np.add.reduceat(weight * positive, first, axis=-1)
    neg = np.add.reduceat(weight * ~positive, first, axis=-1)
    below = np.cumsum(neg, axis=-1) - neg / 2
    pairs = pos.sum(-1) * neg.sum(-1)
    return np.where(pairs > 0, (pos * below).sum(-1) / np.where(pairs > 0, pairs, 1), np.nan)


def macro_auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of the labels' AUROC over those that are defined; scores and targets ``(N, L)``."""
    values = np.array([auroc(scores[:, i], targets[:, i]) for i in range(targets.shape[1])])
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def micro_auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """AUROC of all labels' scores pooled; scores and targets ``(N, L)``."""
    return float(auroc(scores.ravel(), targets.ravel()))


def accuracy(probabilities: np.ndarray, target: np.ndarray, threshold: float = 0.5) -> float:
    """Share of the known cases of one label, ``(N,)``, that are on the right side of the threshold."""
    known = ~np.isnan(target)
    return float(((probabilities >= threshold) == (target == 1))[known].mean()) if known.any() else float("nan")


def f1(probabilities: np.ndarray, target: np.ndarray, threshold: float = 0.5) -> float:
    """F1 of one label's positives, ``(N,)``; NaN where no case is positive."""
    known = ~np.isnan(target)
    called, positive = (probabilities >= threshold)[known], target[known] == 1
    return float(2 * (called & positive).sum() / (called.sum() + positive.sum())) if positive.any() else float("nan")
