"""Metrics as pure functions on scores and targets; NaN targets are masked, an undefined metric is NaN.

A target is 0, 1 or NaN. The score of a case whose target is known is not NaN; an infinite score is a score, and equal
infinities are a tie. Anything else is an ``InputError``.

Every function takes weights of the cases, such as bootstrap counts, and many sets of weights at once. scikit-learn and
torchmetrics take one set a call, which is too slow for a bootstrap.
"""

from __future__ import annotations

import numpy as np

from ..utils.errors import InputError

__all__ = [
    "Ranking",
    "auroc",
    "average_precision",
    "brier",
    "calibration_error",
    "checked",
    "confusion",
    "macro_auroc",
    "micro_auroc",
    "ranking",
    "rates",
]

BINS = 15  # of equal width, for the expected calibration error (Guo et al., 2017)


def checked(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Refuses cases that no metric is defined on.

    Args:
        scores: Scores, probabilities or calls, in the shape of ``targets``.
        targets: Any shape.

    Returns:
        Both as arrays, and where a target is known.

    Raises:
        InputError: the shapes differ, a target is not 0, 1 or NaN, or a case with a known target has a score of NaN.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape:
        raise InputError(f"scores {scores.shape} and targets {targets.shape} must have the same shape")
    known = ~np.isnan(targets)
    strange = known & (targets != 0) & (targets != 1)
    if strange.any():
        raise InputError(f"a target must be 0, 1 or NaN (masked), got {targets[strange][0]:g}")
    if np.isnan(scores[known]).any():
        raise InputError("a score is NaN: leave the case out, or mask it with a target of NaN")
    return scores, targets, known


def ranking(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of one label.

    In the area under the ROC curve a tie between a positive and a negative counts one half. In the average precision
    all cases of one score are one step.

    Args:
        scores: ``(N,)``, any monotone function of the probability.
        target: ``(N,)``: 1, 0, or NaN where masked.
        weight: ``(..., N)`` weights of the cases: one pair of values for each row.

    Returns:
        Two arrays ``(...)`` in [0, 1]; NaN where there is no positive or no negative.

    Raises:
        InputError: a target is not 0, 1 or NaN, a case with a known target has a score of NaN, the shapes do not fit,
            or there is no case.
    """
    return Ranking(scores, target)(weight)


class Ranking:
    """``ranking`` of one label for set after set of weights: the scores are sorted once.

    Args:
        scores: ``(N,)``.
        target: ``(N,)``: 1, 0, or NaN where masked.
        case: Which case each score is of, ``(N,)``, where a case has several; by default each is a case of its own.

    Raises:
        InputError: as ``ranking``.
    """

    def __init__(self, scores: np.ndarray, target: np.ndarray, case: np.ndarray | None = None):
        scores, target, known = checked(scores, target)
        if scores.ndim != 1 or not len(scores):
            raise InputError(f"give one score and one target for each case, and at least one case, got {scores.shape}")
        order = np.flatnonzero(known)[np.argsort(scores[known], kind="stable")]
        values, positive = scores[order], target[order] == 1
        self.cases = len(scores) if case is None else int(case.max()) + 1
        self.order = order if case is None else case[order]  # the case of each score, in rising order
        self.places = np.flatnonzero(positive)
        self.low, self.high = (np.searchsorted(values, values[self.places], side) for side in ("left", "right"))
        before = np.concatenate([[0], np.cumsum(positive)])
        self.first, self.last = before[self.low], before[self.high]  # the same among the positives

    def __call__(self, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision ``(...)`` of weights of the cases, ``(..., cases)``; all 1 by default."""
        weight = _floating(weight, self.cases)
        total = np.zeros(len(self.order) + 1)  # one buffer: new memory would cost more than the sum
        # One row of weights at a time: it stays in the cache.
        pairs = [self._ranked(row[self.order], total) for row in weight.reshape(-1, self.cases)]
        area, mean = np.array(pairs).reshape(*weight.shape[:-1], 2).T
        return area.T, mean.T

    def _ranked(self, weight: np.ndarray, total: np.ndarray) -> tuple[float, float]:
        """One running sum of the weights tells what lies below each positive, and at its score."""
        np.cumsum(weight, out=total[1:])
        own = weight[self.places].astype(np.float64)
        held = np.concatenate([[0.0], np.cumsum(own)])
        positives, negatives = held[-1], total[-1] - held[-1]
        if not (positives > 0 and negatives > 0):
            return float("nan"), float("nan")
        below = total[self.low] - held[self.first]  # negatives of a lower score
        tied = total[self.high] - held[self.last] - below
        area = own @ (below + tied / 2) / (positives * negatives)
        found, above = positives - held[self.first], total[-1] - total[self.low]  # of this score and higher
        precision = np.divide(found, above, out=np.zeros_like(found), where=found > 0)
        return float(area), float(own @ precision / positives)


def auroc(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve of one label; arguments, shapes and errors as ``ranking``.

    >>> float(auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])))
    0.75
    """
    return ranking(scores, target, weight)[0]


def average_precision(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Average precision of one label: the area under its precision-recall curve, a step function (AUPRC).

    Arguments, shapes and errors as ``ranking``.

    >>> round(float(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))), 4)
    0.8333
    """
    return ranking(scores, target, weight)[1]


def macro_auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean AUROC of the labels for which it is defined; scores and targets ``(N, L)``, errors as ``ranking``."""
    scores, targets, _ = checked(scores, targets)
    values = np.array([auroc(scores[:, i], targets[:, i]) for i in range(targets.shape[1])])
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def micro_auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """AUROC of the scores of all labels together; scores and targets ``(N, L)``, errors as ``ranking``."""
    return float(auroc(np.ravel(scores), np.ravel(targets)))


def confusion(called: np.ndarray, targets: np.ndarray, weight: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Counts true and false positives and negatives: ``tp``, ``fp``, ``fn``, ``tn``.

    Args:
        called: ``(N, L)`` bool, True where a case is called positive.
        targets: ``(N, L)``: 1, 0, or NaN where masked.
        weight: ``(..., N)`` weights of the cases.

    Returns:
        Four arrays ``(..., L)``.

    Raises:
        InputError: as ``ranking``, or the calls are not booleans.
    """
    called, targets, _ = checked(called, targets)
    if called.dtype != bool:
        raise InputError(f"calls must be booleans, got {called.dtype}: give scores >= threshold")
    weight = _floating(weight, len(targets))
    positive, negative = targets == 1, targets == 0
    kinds = {"tp": called & positive, "fp": called & negative, "fn": ~called & positive, "tn": ~called & negative}
    return {name: weight @ cells.astype(weight.dtype) for name, cells in kinds.items()}


def rates(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sensitivity, specificity, PPV, NPV, accuracy and F1 from the counts of ``confusion``.

    A rate without a case to count is NaN, and so is F1 where no case is positive.
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
    """Mean squared difference of probability and target over the known cases: ``(N, L)`` to ``(..., L)``.

    Raises:
        InputError: as ``ranking``, or a probability lies outside [0, 1].
    """
    probabilities, targets, known = _checked_probabilities(probabilities, targets)
    weight = _floating(weight, len(targets))
    squares = np.where(known, (probabilities - np.nan_to_num(targets)) ** 2, 0)
    return _share(weight @ squares.astype(weight.dtype), weight @ known.astype(weight.dtype))


def calibration_error(
    probabilities: np.ndarray, targets: np.ndarray, weight: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Expected calibration error of each label (Guo et al., 2017).

    The known cases are put into bins of equal width by their probability. A bin's error is the distance between its
    mean probability and its share of positives. The result is the mean of these errors, weighted by the bins' cases.

    Args:
        probabilities: ``(N, L)`` in [0, 1].
        targets: ``(N, L)``: 1, 0, or NaN where masked.
        weight: ``(..., N)`` weights of the cases.
        bins: Number of bins.

    Returns:
        ``(..., L)`` in [0, 1], NaN where no case is known.

    Raises:
        InputError: as ``brier``.
    """
    probabilities, targets, known = _checked_probabilities(probabilities, targets)
    weight = _floating(weight, len(targets))
    errors = []
    for label in range(targets.shape[1]):
        rows = np.flatnonzero(known[:, label])
        probability, target = probabilities[rows, label], targets[rows, label]
        member = np.zeros((len(rows), bins), weight.dtype)
        member[np.arange(len(rows)), np.minimum((probability * bins).astype(int), bins - 1)] = 1
        of = weight[..., rows]
        gap = of @ (member * (probability - target)[:, None].astype(weight.dtype))
        errors.append(_share(np.abs(gap).sum(-1), of.sum(-1)))
    return np.stack(errors, axis=-1)


def _checked_probabilities(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    probabilities, targets, known = checked(probabilities, targets)
    if ((probabilities < 0) | (probabilities > 1))[known].any():
        raise InputError("a probability lies outside [0, 1]: give mxa.metrics.sigmoid(logits)")
    return probabilities, targets, known


def _floating(weight: np.ndarray | None, count: int) -> np.ndarray:
    """Weights as floating point, float32 where they are; ones where there are none."""
    if weight is None:
        return np.ones(count)
    weight = np.asarray(weight)
    if weight.ndim == 0 or weight.shape[-1] != count:
        raise InputError(f"weights {weight.shape} must end in one for each of the {count} cases")
    return weight if weight.dtype.kind == "f" else weight.astype(np.float64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
