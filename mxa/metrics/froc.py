"""Free-response ROC: how many findings a model marks, at so many false boxes an image (Bunch et al., 1978).

A model gives each image one box for each finding, with its probability. A box is right where its IoU with the boxes
drawn is above a threshold. Every other box is false.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import InputError
from .bootstrap import interval, patient_weights, seed_weights
from .localization_table import MACRO

__all__ = ["RATES", "MarkedBox", "froc", "froc_table"]

#: False boxes an image at which the table gives the sensitivity.
RATES = (0.05, 0.1, 0.2, 0.5)


class MarkedBox(NamedTuple):
    """The box of one finding in one image: how probable, whether the image has the finding, and whether it is right."""

    image: str
    patient: str
    finding: str
    score: float
    case: bool
    right: bool
    seed: int = 0


def froc(
    scores: np.ndarray,
    cases: np.ndarray,
    right: np.ndarray,
    rates: Sequence[float] = RATES,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Computes the share of cases whose box is right, at the lowest score with so many false boxes an image.

    Images with one score come in together, so ties do not depend on their order.

    Args:
        scores: Probability of the finding in each image, ``(N,)``.
        cases: Which images have the finding, ``(N,)`` bool.
        right: Whose box is right, ``(N,)`` bool; only a case's can be.
        rates: False boxes an image, F of them, each in [0, 1].
        weights: How often each image counts, ``(R, N)``; once by default.

    Returns:
        ``(R, F)``, or ``(F,)`` without weights; NaN where there is no case.

    >>> froc(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0], bool), np.array([1, 0, 1, 0], bool), (0.0, 0.25))
    array([0.5, 1. ])
    """
    counts = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of those with one score
    counts = counts[:, order]
    none = np.zeros((len(counts), 1))
    found = np.concatenate([none, np.cumsum(counts * right[order], axis=1)[:, last]], axis=1)
    false = np.concatenate([none, np.cumsum(counts * ~right[order], axis=1)[:, last]], axis=1)
    images, total = counts.sum(1, keepdims=True), (counts * cases[order]).sum(1)
    false = false / np.maximum(images, 1e-12)
    at = np.stack([(false <= rate + 1e-12).sum(1) - 1 for rate in rates], axis=1)  # false never falls
    found = np.take_along_axis(found, at, axis=1)
    result = np.where(total[:, None] > 0, found / np.maximum(total, 1e-12)[:, None], np.nan)
    return result[0] if weights is None else result


def froc_table(
    boxes: Iterable[MarkedBox], replicates: int = 1000, level: float = 0.95, seed: int = 0
) -> list[dict[str, Any]]:
    """Computes the sensitivity at ``RATES`` by finding, with percentile intervals over patients and seeds.

    Args:
        boxes: Of one model: each image that has the finding with a box drawn, and each that does not have it.
        replicates: Bootstrap replicates, drawn as ``localization_table`` does.
        level: Coverage.
        seed: Seed of the draw.

    Returns:
        A row for each finding that has a case, then ``MACRO``, the mean over them: ``finding``, ``n`` cases,
        ``images``, and for each rate ``froc_{rate}`` and ``froc_{rate}_interval``.

    Raises:
        InputError: no boxes, or an image twice for a finding and seed.
    """
    boxes = list(boxes)
    if len({(box.image, box.finding, box.seed) for box in boxes}) < len(boxes) or not boxes:
        raise InputError("there must be boxes, and one of each image for a finding and seed")
    patients = np.unique([box.patient for box in boxes])
    draws = np.concatenate([np.ones((1, len(patients))), *patient_weights(patients, replicates, seed)])  # (1 + R, P)
    seeds = sorted({box.seed for box in boxes})
    equal = np.full((1, len(seeds)), 1 / len(seeds))
    shares = np.concatenate([equal, seed_weights(len(seeds), replicates, seed)])  # (1 + R, S)
    values: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    for finding in dict.fromkeys(box.finding for box in boxes):
        own = [box for box in boxes if box.finding == finding]
        if not any(box.case for box in own):
            continue
        total = np.zeros((1 + replicates, len(RATES)))
        for s, share in zip(seeds, shares.T, strict=True):
            some = [box for box in own if box.seed == s]
            columns = np.searchsorted(patients, [box.patient for box in some])
            score, case, right = (np.array([getattr(box, name) for box in some]) for name in ("score", "case", "right"))
            total = total + share[:, None] * froc(score, case, right, weights=draws[:, columns])
        values[finding] = total
        first = [box for box in own if box.seed == seeds[0]]
        rows.append({"finding": finding, "n": sum(box.case for box in first), "images": len(first)})
    values[MACRO] = np.mean(list(values.values()), axis=0)  # NaN where a finding has no case in a draw
    rows.append({"finding": MACRO, "n": sum(row["n"] for row in rows), "images": len({box.image for box in boxes})})
    for row, found in zip(rows, values.values(), strict=True):
        ends = np.clip(interval(found[1:], level), 0, 1)
        for i, rate in enumerate(RATES):
            row[f"froc_{rate}"] = round(float(found[0, i]), 6)
            row[f"froc_{rate}_interval"] = [round(float(v), 6) for v in ends[:, i]]
    return rows
