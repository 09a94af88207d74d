"""Intervals by resampling patients (and seeds): the images of one patient are not independent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..utils.errors import InputError

__all__ = ["interval", "patient_weights", "seed_weights"]

CHUNK = 50  # replicates at a time


def patient_weights(patients: np.ndarray, replicates: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each image counts in each bootstrap replicate; patients are drawn with replacement.

    The same arguments give the same counts, so that two models can be compared replicate by replicate.

    Args:
        patients: ``(N,)`` identifiers.
        replicates: How many in all.
        seed: Seed of the draw.

    Yields:
        ``(R, N)`` float32, R at most 50, until there are ``replicates`` rows.

    Raises:
        InputError: no replicates.
    """
    if replicates < 1:
        raise InputError(f"replicates must be at least 1, got {replicates}")
    rng = np.random.default_rng(seed)
    unique, index = np.unique(patients, return_inverse=True)
    shares = np.full(len(unique), 1 / len(unique))
    for start in range(0, replicates, CHUNK):
        counts = rng.multinomial(len(unique), shares, size=min(CHUNK, replicates - start)).astype(np.float32)
        yield counts[:, index]


def seed_weights(seeds: int, replicates: int, seed: int) -> np.ndarray:
    """Returns the share of each training seed in each replicate, seeds drawn with replacement: ``(R, S)``.

    Means over seeds that are drawn with replacement spread too little, by a factor of ``sqrt((S - 1) / S)``. The
    distance of each share from 1/S is divided by this factor, so that a share may lie below 0. A single seed has a
    share of 1.
    """
    if seeds == 1:
        return np.ones((replicates, 1))
    drawn = np.random.default_rng((seed, seeds)).multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates) / seeds
    return 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (drawn - 1 / seeds)


def interval(values: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Percentile interval of replicates: ``(R, ...)`` to ``(2, ...)``, low and high.

    Replicates that are NaN are left out; where all are NaN, the interval is NaN.
    """
    defined = ~np.isnan(values).all(0)
    ends = np.full((2, *values.shape[1:]), np.nan)
    ends[:, defined] = np.nanquantile(values[:, defined], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends
