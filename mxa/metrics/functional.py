"""Metrics as pure functions on scores and targets; NaN targets are masked, an undefined metric is NaN.

Every function takes weights of the cases, such as bootstrap counts, many sets of them at once: neither scikit-learn nor
torchmetrics does, and one pass a replicate is too slow.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "auroc",
    "average_precision",
    "brier",
    "calibration_error",
    "confusion",
    "macro_auroc",
    "micro_auroc",
    "ranking",
    "rates",
]

BINS = 15  # of equal width, for the expected calibration error (Guo et al., 2017)


def ranking(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of one label.

    A tie between a positive and a negative counts one half in the first; tied scores are one step of the second.

    Args:
        scores: ``(N,)``, any monotone function of the probability.
        target: ``(N,)``: 1, 0, or NaN where masked.
        weight: ``(..., N)`` weights of the cases: one pair of values for each row.

    Returns:
        Two arrays ``(...)`` in [0, 1]; NaN where there is no positive or no negative.
    """
    known = ~np.isnan(target)
    order = np.flatnonzero(known)[np.argsort(scores[known], kind="stable")]
    values, positive = scores[order], (target[order] == 1).astype(np.float64)
    first = (
        np.flatnonzero(np.r_[True, np.diff(values) != 0]) if len(order) else order
    )  # where each group of ties starts
    weight = np.ones(len(scores)) if weight is None else weight
    rows = weight.reshape(-1, len(scores))
    # One row of weights at a time: it stays in the cache.
    pairs = [_ranked(row[order].astype(np.float64), positive, first) for row in rows]
    area, mean = np.array(pairs).reshape(*weight.shape[:-1], 2).T
    return area.T, mean.T


def _ranked(weight: np.ndarray, positive: np.ndarray, first: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision of cases in the order of their scores, equal scores in groups."""
    pos = weight * positive
    if len(first) < len(weight):
        weight, pos = np.add.reduceat(weight, first), np.add.reduceat(pos, first)
    neg = weight - pos
    positives, negatives = pos.sum(), neg.sum()
    if not (positives > 0 and negatives > 0):
        return float("nan"), float("nan")
    found, above = np.cumsum(pos[::-1])[::-1], np.cumsum(neg[::-1])[::-1]  # at this score and higher
    area = (pos * (negatives - above + neg / 2)).sum() / (positives * negatives)
    precision = np.divide(found, found + above, out=np.zeros_like(found), where=found > 0)
    return float(area), float((pos * precision).sum() / positives)


def auroc(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve of one label, see ``ranking``.

    >>> float(auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])))
    0.75
    """
    return ranking(scores, target, weight)[0]


def average_precision(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Area under the precision-recall curve of one label, as a step function (AUPRC), see ``ranking``.

    >>> round(float(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))), 4)
    0.8333
    """
    return ranking(scores, target, weight)[1]


def macro_auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of the labels' AUROC over those that are defined; scores and targets ``(N, L)``."""
    values = np.array([auroc(scores[:, i], targets[:, i]) for i in range(targets.shape[1])])
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def micro_auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """AUROC of all labels' scores pooled; scores and targets ``(N, L)``."""
    return float(auroc(scores.ravel(), targets.ravel()))


def confusion(called: np.ndarray, targets: np.ndarray, weight: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Counts true and false positives and negatives: ``tp``, ``fp``, ``fn``, ``tn``.

    Args:
        called: ``(N, L)`` bool, what is called positive.
        targets: ``(N, L)``: 1, 0, or NaN where masked.
        weight: ``(..., N)`` weights of the cases.

    Returns:
        Four arrays ``(..., L)``.
    """
    weight = _floating(weight, len(targets))
    positive, negative = targets == 1, targets == 0
    kinds = {"tp": called & positive, "fp": called & negative, "fn": ~called & positive, "tn": ~called & negative}
    return {name: weight @ cells.astype(weight.dtype) for name, cells in kinds.items()}


def rates(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sensitivity, specificity, PPV, NPV, accuracy and F1 of ``confusion``; NaN where there is no case to count.

    F1 is NaN where no case is positive.
    """
    tp, fp, fn, tn = (counts[k].astype(np.float64) for k in ("tp", "fp", "fn", "tn"))
    f1 = _share(2 * tp, 2 * tp + fp + fn)
    return {
        "sensitivity": _share(tp, tp + fn),
        "specificity": _share(tn, tn + fp),
        "ppv": _share(tp, tp + fp),
        "npv": _share(tn, tn + fn),
        "accuracy": _share(tp + tn, tp + fp + fn + tn),
        "f1": np.where(tp + fn > 0, f1, np.nan),
    }


def brier(probabilities: np.ndarray, targets: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Mean squared difference of probability and target over the known cases: ``(N, L)`` to ``(..., L)``."""
    weight = _floating(weight, len(targets))
    known = ~np.isnan(targets)
    squares = np.where(known, (probabilities - np.nan_to_num(targets)) ** 2, 0)
    return _share(weight @ squares.astype(weight.dtype), weight @ known.astype(weight.dtype))


def calibration_error(
    probabilities: np.ndarray, targets: np.ndarray, weight: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Expected calibration error of each label (Guo et al., 2017).

    The known cases fall into bins of equal width by probability; the error is the mean over the bins, weighted by their
    cases, of the distance between mean probability and share of positives.

    Args:
        probabilities: ``(N, L)`` in [0, 1].
        targets: ``(N, L)``, NaN where masked.
        weight: ``(..., N)`` weights of the cases.
        bins: Number of bins.

    Returns:
        ``(..., L)`` in [0, 1], NaN where no case is known.
    """
    weight = _floating(weight, len(targets))
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    errors = []
    for label in range(targets.shape[1]):
        known = np.flatnonzero(~np.isnan(targets[:, label]))
        member = np.zeros((len(known), bins), weight.dtype)
        member[np.arange(len(known)), index[known, label]] = 1
        of = weight[..., known]
        gap = of @ (member * (probabilities[known, label] - targets[known, label])[:, None].astype(weight.dtype))
        errors.append(_share(np.abs(gap).sum(-1), of.sum(-1)))
    return np.stack(errors, axis=-1)


def _floating(weight: np.ndarray | None, count: int) -> np.ndarray:
    """Weights as floating point, float32 where they are; ones where there are none."""
    if weight is None:
        return np.ones(count)
    weight = np.asarray(weight)
    return weight if weight.dtype.kind == "f" else weight.astype(np.float64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
