"""The numbers of an evaluation for groups of patients: who is served worse?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ...metrics import confusion, interval, patient_weights, ranking, rates
from ...utils.errors import InputError
from ..predictions import Arm

__all__ = ["AGE_BANDS", "group_numbers", "groups_of"]

#: Lower ends of the age bands, in years.
AGE_BANDS = (0, 18, 40, 60, 80)

_LEAST = 10  # a label counts in a grouping where every group has as many positives and as many negatives


def groups_of(cases: pd.DataFrame, by: str) -> dict[str, np.ndarray]:
    """Divides cases by a column: ``"age"`` into bands, ``"frontal"`` by view. A case may be in no group.

    Returns:
        Name of each group and a mask ``(N,)``, in the order of their names.

    Raises:
        InputError: there is no such column, or it has more than 20 values.
    """
    if by == "frontal":
        values = cases["view"].map(lambda v: "lateral" if v == "LATERAL" else "" if v == "OTHER" else "frontal")
    elif by == "age":
        ends = [*AGE_BANDS, np.inf]
        names = [f"{low} to {high - 1}" for low, high in pairwise(AGE_BANDS)]
        values = pd.cut(cases["age"], ends, right=False, labels=[*names, f"{AGE_BANDS[-1]} and over"])
        return {name: (values == name).to_numpy(bool) for name in values.cat.categories if (values == name).any()}
    elif by in cases:
        values = cases[by]
    else:
        raise InputError(f"no column {by!r} to group by; there are {', '.join(map(str, cases.columns))}")
    values = values.fillna("").astype(str)
    names = sorted(set(values) - {"", "nan"})
    if len(names) > 20:
        raise InputError(f"column {by!r} has {len(names)} values: group by one of at most 20")
    return {name: (values == name).to_numpy(bool) for name in names}


def group_numbers(
    arm: Arm, chosen: Sequence[Any], shares: np.ndarray, by: Sequence[str] | None, min_group: int
) -> dict[str, Any]:
    """Scores each group of each grouping, and the gaps between them.

    A label counts in a grouping where every scored group has at least 10 positives and 10 negatives of it, so that all
    groups are compared over the same labels. Where thresholds are chosen, it must have one. True and false positive
    rates are at Youden's threshold. Every other group is compared with the largest: the differences have intervals. A
    gap is the largest value among the groups minus the smallest; it is above 0 by chance alone.

    Returns:
        ``groups``: for each grouping its ``labels``, ``groups`` (``images``, and ``auc``, ``tpr``, ``fpr`` with
        intervals, means over those labels), ``reference`` and ``gaps``; and for each label its own, under ``by_label``.
    """
    cases = arm.scored[0].cases
    names = by if by is not None else [n for n in ("view", "frontal", "sex", "age") if len(groups_of(cases, n)) > 1]
    weights = list(patient_weights(cases["patient"].to_numpy(object), len(shares))) if names else []
    return {
        "groups": {name: _grouping(arm, chosen, groups_of(cases, name), weights, shares, min_group) for name in names}
    }


def _grouping(
    arm: Arm,
    chosen: Sequence[Any],
    groups: dict[str, np.ndarray],
    weights: list[np.ndarray],
    shares: np.ndarray,
    min_group: int,
) -> dict[str, Any]:
    scored = {name: rows for name, rows in groups.items() if rows.sum() >= min_group}
    counts = np.array([[(arm.targets[rows] == kind).sum(0) for kind in (0, 1)] for rows in scored.values()])
    chosen_for = [np.isfinite(c.thresholds["youden"]) for c in chosen if c.thresholds]
    counted = (counts >= _LEAST).all((0, 1)) & np.all(chosen_for, axis=0) if len(scored) else np.array([], bool)
    labels = np.flatnonzero(counted)
    result: dict[str, Any] = {"labels": [arm.labels[i] for i in labels], "groups": {}, "gaps": {}, "by_label": {}}
    values = {name: _rates_of(arm, chosen, rows, labels, weights, shares) for name, rows in scored.items()}
    for name, rows in groups.items():
        numbers: dict[str, Any] = {
            "images": int(rows.sum()),
            "patients": arm.scored[0].cases["patient"][rows].nunique(),
        }
        if name in values and len(labels):
            for metric, (point, drawn) in values[name].items():
                numbers |= {metric: point.mean(), f"{metric}_interval": np.clip(interval(drawn.mean(-1)), 0, 1)}
        result["groups"][name] = numbers
    if len(scored) < 2 or not len(labels):
        return result
    reference = max(scored, key=lambda name: scored[name].sum())
    result["reference"] = reference
    for metric in next(iter(values.values())):
        points = np.stack([v[metric][0] for v in values.values()])  # (G, L)
        result["gaps"][metric] = np.ptp(points.mean(-1))
        for name in set(values) - {reference}:
            (point, drawn), (point0, drawn0) = values[name][metric], values[reference][metric]
            numbers = result["groups"][name]
            numbers[f"{metric}_difference"] = point.mean() - point0.mean()
            numbers[f"{metric}_difference_interval"] = interval((drawn - drawn0).mean(-1))
        for i, label in enumerate(labels):
            row = result["by_label"].setdefault(arm.labels[label], {})
            row[metric] = dict(zip(values, points[:, i], strict=True))
            row[f"{metric}_gap"] = np.ptp(points[:, i])
    return result


def _rates_of(
    arm: Arm, chosen: Sequence[Any], rows: np.ndarray, labels: np.ndarray, weights: list[np.ndarray], shares: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """AUC, TPR and FPR of one group, mean over the seeds: point ``(L,)`` and replicates ``(R, L)``."""
    targets = arm.targets[np.ix_(rows, labels)]

    def measure(weight: np.ndarray | None) -> dict[str, np.ndarray]:  # each (seeds, ..., L)
        each = []
        for one, c in zip(arm.scored, chosen, strict=True):
            logits = one.logits[np.ix_(rows, labels)]
            auc = np.stack([ranking(s, t, weight)[0] for s, t in zip(logits.T, targets.T, strict=True)], axis=-1)
            found = {"auc": auc}
            if c.thresholds:
                at = rates(confusion(logits >= c.thresholds["youden"][labels], targets, weight))
                found |= {"tpr": at["sensitivity"], "fpr": 1 - at["specificity"]}
            each.append(found)
        return {metric: np.stack([e[metric] for e in each]) for metric in each[0]}

    if not len(labels):
        return {}
    point, drawn = measure(None), [measure(weight[:, rows]) for weight in weights]
    return {
        metric: (
            point[metric].mean(0),
            np.einsum("rs,srl->rl", shares, np.concatenate([d[metric] for d in drawn], axis=1)),
        )
        for metric in point
    }
