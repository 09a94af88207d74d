"""Every number of an evaluation, from scores alone: point, interval, n, and what is undefined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from ...labels import align, canonical
from ...metrics import (
    OPERATING_POINTS,
    brier,
    calibration_error,
    choose_thresholds,
    confusion,
    fit_temperatures,
    interval,
    patient_weights,
    ranking,
    rates,
    sigmoid,
)
from ...metrics.bootstrap import seed_weights
from ...metrics.functional import Ranking
from ...metrics.operating import ENOUGH, count_cases
from ...task import masked_bce_with_logits
from ...utils.errors import InputError
from ...utils.processor import core_count
from ..predictions import Arm, Predictions
from .groups import group_numbers

__all__ = ["CHEXPERT5", "ENOUGH", "numbers"]

#: The five labels of CheXpert's competition.
CHEXPERT5 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


@dataclass(frozen=True)
class _Chosen:
    """Thresholds (logits, ``(L,)`` for each operating point) and temperatures ``(L,)`` of one seed."""

    thresholds: dict[str, np.ndarray]
    temperatures: np.ndarray | None


def numbers(
    arms: Sequence[Arm],
    replicates: int = 1000,
    by: Sequence[str] | None = None,
    min_group: int = 50,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Computes the report of one or more arms.

    Intervals are 95 % percentiles of bootstrap replicates of patients, and of seeds where an arm has several (each
    metric is then the mean over the seeds), given the thresholds that were chosen. Every arm sees the same draws of
    patients, so that the differences are paired; seeds are drawn for each arm by itself.

    Args:
        arms: What is compared; the first is the reference of the differences.
        replicates: Bootstrap replicates.
        by: Columns of the cases to report groups by; view, sex and age, where they are known, by default.
        min_group: Images under which a group is counted but not scored.
        pairs: Numbers of the arms that are compared, the reference first; by default every arm with the first.

    Returns:
        A dict for JSON: ``models`` has a dict for each arm, ``paired`` one for each pair. What is undefined is None and
        left out of means.

    Raises:
        InputError: a score is not finite, the arms are not of the same images, or a column to group by is unknown.
    """
    arms = [_checked(arm, arms[0]) for arm in arms]
    models, draws = [], []
    for number, arm in enumerate(arms):
        chosen = [_choose(arm.val[s] if arm.val else None) for s in range(len(arm.scored))]
        shares = seed_weights(len(arm.scored), replicates, number)
        point, drawn = _measured(arm, chosen, shares)
        groups = group_numbers(arm, chosen, shares, by, min_group)
        models.append({**_arm(arm, chosen, point, drawn, replicates), **groups})
        draws.append((point, drawn))
    pairs = [(0, k) for k in range(1, len(arms))] if pairs is None else pairs
    paired = [_paired(arms[i], *draws[i], arms[k], *draws[k]) for i, k in pairs]
    return _plain({"models": models, "paired": paired, "replicates": replicates})


def _checked(arm: Arm, first: Arm) -> Arm:
    """Puts the labels of an arm's seeds into one order, and refuses scores that cannot be compared."""
    for one in (*arm.scored, *arm.val):
        one.check()
    arm = Arm(arm.name, *(tuple(_in_order(one, arm) for one in scores) for scores in (arm.scored, arm.val)))
    pairs = [(arm.name, one, arm.scored[0]) for one in arm.scored] + [(arm.name, v, arm.val[0]) for v in arm.val]
    for name, one, other in (*pairs, (f"{arm.name} and {first.name}", arm.scored[0], first.scored[0])):
        if one.cases["image"].tolist() != other.cases["image"].tolist():
            raise InputError(f"{name}: scores of different images: score the same split")
        if one.cases["patient"].tolist() != other.cases["patient"].tolist():
            raise InputError(f"{name}: the same images are of different patients")
        for i, k in enumerate(align(other.labels, one.labels)):
            if k is not None and not np.array_equal(one.targets[:, i], other.targets[:, k], equal_nan=True):
                raise InputError(f"{name}: the targets of {one.labels[i]} differ: score the same collection")
    both = set(arm.scored[0].cases["patient"]) & set(arm.val[0].cases["patient"] if arm.val else ())
    if both:
        raise InputError(
            f"{arm.name}: {len(both)} patient(s) are in the validation split and in the split that is reported"
        )
    return arm


def _in_order(one: Predictions, arm: Arm) -> Predictions:
    index = align(one.labels, arm.labels)
    if None in index or len(one.labels) != len(arm.labels):
        raise InputError(f"{arm.name}: its seeds have different labels")
    return replace(one, labels=arm.labels, logits=one.logits[:, index], targets=one.targets[:, index])


def _choose(val: Predictions | None) -> _Chosen:
    if val is None:
        return _Chosen({}, None)
    *_, enough = count_cases(val.targets)
    thresholds = choose_thresholds(val.logits, val.targets)
    temperatures = fit_temperatures(val.logits, val.targets)
    return _Chosen(
        {point: np.where(enough, values, np.nan) for point, values in thresholds.items()},
        np.where(enough, temperatures, np.nan),
    )


def _rankings(logits: np.ndarray, targets: np.ndarray) -> list[Ranking]:
    """One for each label, and one of all labels pooled."""
    count, labels = targets.shape
    each = [Ranking(logits[:, i], targets[:, i]) for i in range(labels)]
    return [*each, Ranking(logits.T.ravel(), targets.T.ravel(), np.tile(np.arange(count), labels))]


def _measure(
    logits: np.ndarray,
    targets: np.ndarray,
    chosen: _Chosen,
    rankings: Sequence[Ranking],
    weight: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of one seed: ``(..., L)`` by label, and ``(...,)`` of all labels pooled."""
    *ranked, micro = (one(weight) for one in rankings)
    values = {name: np.stack([r[k] for r in ranked], axis=-1) for k, name in enumerate(("auc", "ap"))}
    values["micro_auc"], values["micro_ap"] = micro
    probabilities = sigmoid(logits)
    at_half = rates(confusion(logits >= 0, targets, weight))
    values |= {"accuracy": at_half["accuracy"], "f1": at_half["f1"]}
    values |= {"brier": brier(probabilities, targets, weight), "ece": calibration_error(probabilities, targets, weight)}
    if chosen.temperatures is not None:
        scaled = sigmoid(logits / np.nan_to_num(chosen.temperatures, nan=1.0))
        unknown = np.where(np.isnan(chosen.temperatures), np.nan, 0.0)
        values["brier_scaled"] = brier(scaled, targets, weight) + unknown
        values["ece_scaled"] = calibration_error(scaled, targets, weight) + unknown
    for name, threshold in chosen.thresholds.items():
        unknown = np.where(np.isnan(threshold), np.nan, 0.0)
        for rate, value in rates(confusion(logits >= threshold, targets, weight)).items():
            values[f"{name}.{rate}"] = value + unknown
    return values


def _stacked(seeds: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics ``(R, ...)`` of each seed, ``(R, S, ...)``."""
    return {name: np.stack([one[name] for one in seeds], axis=1) for name in seeds[0]}


def _measured(
    arm: Arm, chosen: Sequence[_Chosen], shares: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The mean of every metric over the seeds: the point ``(L,)`` or ``()``, the replicates ``(R, L)`` or ``(R,)``."""
    seeds = [
        partial(_measure, one.logits, arm.targets, c, _rankings(one.logits, arm.targets))
        for one, c in zip(arm.scored, chosen, strict=True)
    ]
    whole = [measure() for measure in seeds]
    point = {name: np.mean([w[name] for w in whole], axis=0) for name in whole[0]}
    pieces: list[dict[str, np.ndarray]] = []
    weights = patient_weights(arm.scored[0].cases["patient"].to_numpy(object), len(shares))
    with ThreadPoolExecutor(core_count()) as pool:  # numpy computes without Python's lock
        while some := list(islice(weights, core_count())):
            pieces += pool.map(lambda weight: _stacked([measure(weight) for measure in seeds]), some)
    drawn = {name: np.concatenate([piece[name] for piece in pieces]) for name in point}  # (R, S, ...)
    drawn = {name: np.einsum("rs,rs...->r...", shares, values) for name, values in drawn.items()}
    for name, labels in _means(arm, point["auc"]).items():
        metric = name.rpartition("_")[2] if name.endswith("_ap") else "auc"
        point[name], drawn[name] = (
            v[..., labels].mean(-1) if len(labels) else np.full(v.shape[:-1], np.nan)
            for v in (point[metric], drawn[metric])
        )
    return point, drawn


def _means(arm: Arm, auc: np.ndarray) -> dict[str, list[int]]:
    """The labels that each mean is taken over."""
    defined = np.flatnonzero(~np.isnan(auc)).tolist()
    enough = [i for i in defined if min((arm.targets[:, i] == k).sum() for k in (0, 1)) >= ENOUGH]
    five = [i for i in align(arm.labels, CHEXPERT5) if i in defined]
    return {
        "macro_auc": defined,
        "macro_ap": defined,
        f"macro_auc_min{ENOUGH}": enough,
        "chexpert5_auc": five if len(five) == len(CHEXPERT5) else [],
    }


def _with_interval(name: str, point: np.ndarray, drawn: np.ndarray, difference: bool = False) -> dict[str, Any]:
    """A number with its interval; that of a rate is cut to [0, 1], because a seed's share may be below 0."""
    ends = interval(drawn)
    ends = ends if difference else np.clip(ends, 0, 1)
    return {name: point, f"{name}_interval": ends, f"{name}_skipped": int(np.isnan(drawn).sum())}


def _arm(
    arm: Arm,
    chosen: Sequence[_Chosen],
    point: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    replicates: int,
) -> dict[str, Any]:
    cases, targets = arm.scored[0].cases, arm.targets
    result: dict[str, Any] = {
        "name": arm.name,
        "metadata": [one.metadata for one in arm.scored],
        "images": len(cases),
        "patients": cases["patient"].nunique(),
        "replicates": replicates,
        "loss": np.mean([_loss(one) for one in arm.scored]),
        "undefined": [n for n, v in zip(arm.labels, point["auc"], strict=True) if np.isnan(v)],
        "not_in_collection": [n for n, c in zip(arm.labels, targets.T, strict=True) if np.isnan(c).all()],
        "labels_in_headline": [arm.labels[i] for i in _means(arm, point["auc"])[f"macro_auc_min{ENOUGH}"]],
    }
    for name in (f"macro_auc_min{ENOUGH}", "macro_auc", "micro_auc", "chexpert5_auc", "macro_ap", "micro_ap"):
        result |= _with_interval(name, point[name], drawn[name])
    for name in ("accuracy", "f1", "brier", "ece", "brier_scaled", "ece_scaled"):
        if name in point:
            result[name] = _mean(point[name])
    for name in ("brier", "ece"):
        if f"{name}_scaled" in point:  # what scaling changed is seen on the labels that it could be fitted to
            result[f"{name}_unscaled"] = _mean(np.where(np.isnan(point[f"{name}_scaled"]), np.nan, point[name]))
    if len(arm.scored) > 1:
        result["seeds"] = [
            {"macro_auc": _mean(w), "labels": dict(zip(arm.labels, w, strict=True))}
            for w in (
                [ranking(one.logits[:, i], targets[:, i])[0] for i in range(len(arm.labels))] for one in arm.scored
            )
        ]
    if arm.val:
        result["chosen_on"] = {
            "split": "val",
            "images": len(arm.val[0]),
            "patients": arm.val[0].cases["patient"].nunique(),
        }
    result["labels"] = {name: _label(i, arm, chosen, point, drawn) for i, name in enumerate(arm.labels)}
    return result


def _label(
    i: int, arm: Arm, chosen: Sequence[_Chosen], point: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    row: dict[str, Any] = {"n_pos": int((arm.targets[:, i] == 1).sum()), "n_neg": int((arm.targets[:, i] == 0).sum())}
    for name in ("auc", "ap", "accuracy", "f1", "brier", "ece", "brier_scaled", "ece_scaled"):
        if name in point:
            row |= _with_interval(name, point[name][i], drawn[name][:, i])
    if arm.val:
        row["temperature"] = [c.temperatures[i] for c in chosen]
        positives, negatives, _ = count_cases(arm.val[0].targets[:, [i]])
        row |= {"val_pos": int(positives[0]), "val_neg": int(negatives[0])}
        row["operating_points"] = {}
        for name in OPERATING_POINTS:
            operating: dict[str, Any] = {"threshold": [sigmoid(c.thresholds[name][i]) for c in chosen]}
            for rate in ("sensitivity", "specificity", "ppv", "npv", "accuracy", "f1"):
                operating |= _with_interval(rate, point[f"{name}.{rate}"][i], drawn[f"{name}.{rate}"][:, i])
            row["operating_points"][name] = operating
    return row


def _loss(one: Predictions) -> float:
    logits, targets = (torch.from_numpy(np.asarray(v, np.float64)) for v in (one.logits, one.targets))
    return float(masked_bce_with_logits(logits, targets))


def _paired(first: Arm, point: Mapping, drawn: Mapping, other: Arm, point2: Mapping, drawn2: Mapping) -> dict[str, Any]:
    """Differences of another arm to the first, replicate by replicate, over the labels that both have."""
    result: dict[str, Any] = {"name": other.name, "minus": first.name, "labels": {}}
    pairs = [(i, k) for i, k in enumerate(align(other.labels, first.labels)) if k is not None]
    means = _means(first, point["auc"])
    for name in (f"macro_auc_min{ENOUGH}", "macro_auc"):
        labels = [(i, k) for i, k in pairs if i in means[name]]
        gaps = [
            (v2["auc"][..., [k for _, k in labels]] - v["auc"][..., [i for i, _ in labels]])
            for v, v2 in ((point, point2), (drawn, drawn2))
        ]
        means_of_gaps = (g.mean(-1) if labels else np.full(g.shape[:-1], np.nan) for g in gaps)
        result |= _with_interval(name, *means_of_gaps, difference=True)
    if [canonical(n) for n in first.labels] == [canonical(n) for n in other.labels]:
        for name in ("micro_auc", "macro_ap"):
            result |= _with_interval(name, point2[name] - point[name], drawn2[name] - drawn[name], difference=True)
    for i, k in pairs:
        gap, gaps = point2["auc"][k] - point["auc"][i], drawn2["auc"][:, k] - drawn["auc"][:, i]
        result["labels"][first.labels[i]] = _with_interval("auc", gap, gaps, difference=True)
    return result


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are defined."""
    defined = [float(v) for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def _plain(value: Any) -> Any:
    """Turns arrays into lists, NaN and infinity into None, for JSON."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(v) for v in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating, np.ndarray)):
        return round(float(value), 6) if np.isfinite(value) else None
    return value
