"""From the scores of cases to a table with intervals: a row a method and finding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import InputError
from .bootstrap import interval, patient_weights, seed_weights

__all__ = [
    "HITS",
    "MACRO",
    "METRICS",
    "POOLED",
    "THIRDS",
    "CaseScore",
    "localization_table",
]

#: T(IoU): a box hits where its IoU is above this.
HITS = (0.1, 0.25, 0.3, 0.5)
#: Columns of the table.
METRICS = ("pointing", "energy", "iou", *(f"hit_{t}" for t in HITS))
#: Names of the rows that stand for every finding: the mean of the findings' means, and the mean of all cases.
MACRO, POOLED = "all", "all cases"
#: Names of the rows of all cases by the area of their boxes.
THIRDS = ("smallest third", "middle third", "largest third")


class CaseScore(NamedTuple):
    """What one method scores on one finding of one image, with one seed; NaN where the method has no such score.

    ``area`` is the share of the image that the boxes of the case cover; NaN where it is not known.
    """

    image: str
    patient: str
    finding: str
    method: str
    pointing: float
    iou: float
    energy: float
    seed: int = 0
    area: float = math.nan


def localization_table(
    rows: Iterable[CaseScore], replicates: int = 1000, level: float = 0.95, seed: int = 0
) -> list[dict[str, Any]]:
    """Averages cases by method and finding, with percentile intervals over patients and seeds.

    Patients are drawn, not cases, and every method sees the same draws. A replicate in which a finding has no case is
    skipped for that finding and for the mean over the findings. Seeds are trainings of one model: each metric is the
    mean over the seeds, which are drawn as in ``mxa evaluate``.

    Args:
        rows: Any order; methods and findings keep the order in which they first come.
        replicates: Bootstrap replicates.
        level: Coverage.
        seed: Seed of the draw.

    Returns:
        For each method a row for each finding, then ``MACRO``, ``POOLED`` and, where areas are known, ``THIRDS``, cut
        at the same areas for every method. A row has ``method``, ``finding``, ``n`` cases (of one seed), ``patients``,
        and for each of ``METRICS`` its mean and ``{metric}_interval`` ``[low, high]``, cut to [0, 1]; None where
        undefined. For JSON.

    Raises:
        InputError: no rows, no replicates, one case of a method twice, or a case that not every seed has.
    """
    rows = list(rows)
    if not rows or replicates < 1:
        raise InputError("there must be at least one case and one replicate")
    if len({(*row[:4], row.seed) for row in rows}) < len(rows):
        raise InputError("one finding of one image is scored twice by one method")
    patients = np.unique([row.patient for row in rows])
    draws = np.concatenate([np.ones((1, len(patients))), *patient_weights(patients, replicates, seed)])  # (1 + R, P)
    seeds = np.unique([row.seed for row in rows])
    equal = np.full((1, len(seeds)), 1 / len(seeds))
    shares = np.concatenate([equal, seed_weights(len(seeds), replicates, seed)])  # (1 + R, S)

    def means_of(some: Sequence[CaseScore]) -> np.ndarray:
        """Weighted means, ``(1 + R, M)``; the shares of the seeds, which have the same cases, add up to 1."""
        weights = draws[:, np.searchsorted(patients, [case.patient for case in some])]
        return _means(some, weights * shares[:, np.searchsorted(seeds, [case.seed for case in some])])

    areas = {(case.image, case.finding): case.area for case in rows}
    cut = np.quantile(list(areas.values()), (1 / 3, 2 / 3))
    result = []
    for method, cases in _grouped(rows, "method").items():
        by_seed = _grouped(cases, "seed")
        if len(by_seed) < len(seeds) or len({frozenset(map(_scored, some)) for some in by_seed.values()}) > 1:
            raise InputError(f"{method}: not every seed has the same cases of it; are they seeds of one model?")
        findings = _grouped(cases, "finding")
        means = {name: means_of(some) for name, some in findings.items()}
        means[MACRO] = _macro(np.stack(list(means.values())))
        means[POOLED] = means_of(cases)
        if not np.isnan(cut).any():
            sizes = _grouped(
                (case._replace(finding=THIRDS[np.searchsorted(cut, case.area)]) for case in cases), "finding"
            )
            findings |= sizes
            means |= {name: means_of(sizes[name]) for name in THIRDS if name in sizes}
        for name, values in means.items():
            some = findings.get(name, cases)
            row = {"method": method, "finding": name, "n": len(some) // len(seeds)}
            row["patients"] = len({case.patient for case in some})
            bounds = np.clip(interval(values[1:], level), 0, 1)  # a seed's share may be below 0
            for metric, point, ends in zip(METRICS, values[0], bounds.T, strict=True):
                row |= {
                    metric: _plain(point),
                    f"{metric}_interval": None if np.isnan(ends[0]) else [*map(_plain, ends)],
                }
            result.append(row)
    return result


def _scored(case: CaseScore) -> tuple[Any, ...]:
    """Which case it is, and which scores it has."""
    return (*case[:4], *np.isnan(case[4:7]))


def _means(cases: Sequence[CaseScore], weights: np.ndarray) -> np.ndarray:
    """Weighted means of some cases, ``(D, M)`` for weights ``(D, n)``; NaN where there is nothing."""
    values = np.array([_metrics(case) for case in cases])  # (n, M)
    count = weights @ ~np.isnan(values)
    return np.where(count > 0, weights @ np.nan_to_num(values) / np.where(count > 0, count, 1), np.nan)


def _macro(means: np.ndarray) -> np.ndarray:
    """Mean ``(D, M)`` of ``(F, D, M)`` over the findings that are defined in the first draw, that of all cases.

    A draw in which one of these findings is undefined is NaN.
    """
    defined = ~np.isnan(means[:, :1])  # (F, 1, M)
    count = defined.sum(0)
    return np.where(count > 0, np.where(defined, means, 0).sum(0) / np.where(count > 0, count, 1), np.nan)


def _metrics(case: CaseScore) -> tuple[float, ...]:
    hits = (math.nan if math.isnan(case.iou) else float(case.iou > t) for t in HITS)
    return case.pointing, case.energy, case.iou, *hits


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def _grouped(rows: Iterable[CaseScore], field: str) -> dict[Any, list[CaseScore]]:
    groups: dict[Any, list[CaseScore]] = {}
    for row in rows:
        groups.setdefault(getattr(row, field), []).append(row)
    return groups
