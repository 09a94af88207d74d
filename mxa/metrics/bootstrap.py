"""Intervals by resampling patients: the images of one patient are not independent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from .functional import auroc

__all__ = ["auroc_intervals", "patient_weights"]


def patient_weights(patients: np.ndarray, replicates: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields bootstrap counts of the images, patients drawn with replacement.

    Args:
        patients: ``(N,)`` identifiers.
        replicates: How many in all.
        seed: Seed of the draw.

    Yields:
        ``(R, N)`` float32, R at most 50, until there are ``replicates`` rows.
    """
    rng = np.random.default_rng(seed)
    unique, index = np.unique(patients, return_inverse=True)
    shares = np.full(len(unique), 1 / len(unique))
    for start in range(0, replicates, 50):
        counts = rng.multinomial(len(unique), shares, size=min(50, replicates - start))
        yield counts[:, index].astype(np.float32)


def auroc_intervals(
    scores: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, np.ndarray | int]:
    """Percentile intervals of the AUROC of each label, their macro mean and the micro AUROC.

    A replicate in which a label has no positive or no negative is skipped for that label; for the macro mean it is
    skipped where that happens to any label that is defined on the data.

    Args:
        scores: ``(N, L)``.
        targets: ``(N, L)``, NaN where masked.
        patients: ``(N,)``.
        replicates: Bootstrap replicates.
        level: Coverage.
        seed: Seed of the draw.

    Returns:
        ``labels`` ``(L, 2)``, ``macro`` ``(2,)``, ``micro`` ``(2,)``, each low and high, NaN where undefined;
        ``skipped``, the number of replicates that the macro interval left out.

    Raises:
        InputError: no replicates.
    """
    if replicates < 1:
        raise InputError(f"replicates must be at least 1, got {replicates}")
    per_label, micro = [], []
    flat_scores, flat_targets = scores.T.ravel(), targets.T.ravel()
    for weight in patient_weights(patients, replicates, seed):
        columns = range(targets.shape[1])
        per_label.append(np.stack([auroc(scores[:, i], targets[:, i], weight) for i in columns], axis=1))
        micro.append(auroc(flat_scores, flat_targets, np.tile(weight, targets.shape[1])))
    per_label, micro = np.concatenate(per_label), np.concatenate(micro)
    defined = ~np.isnan(per_label).all(0)
    macro = per_label[:, defined].mean(1) if defined.any() else np.full(replicates, np.nan)
    return {
        "labels": np.stack([_interval(column, level) for column in per_label.T]),
        "macro": _interval(macro, level),
        "micro": _interval(micro, level),
        "skipped": int(np.isnan(macro).sum()),
    }


def _interval(values: np.ndarray, level: float) -> np.ndarray:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return np.array([np.nan, np.nan])
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
