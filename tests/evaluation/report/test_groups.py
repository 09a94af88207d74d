"""Groups of patients: who is in which, what is compared, and the gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mxa.evaluation.report import numbers
from mxa.evaluation.report.groups import groups_of
from mxa.metrics import choose_threshold
from mxa.utils.errors import InputError


def test_who_is_in_which_group():
    cases = pd.DataFrame(
        {
            "view": ["AP", "PA", "LATERAL", "", "OTHER"],
            "age": [17.9, 18, 59, 80, np.nan],
            "sex": ["F", "", "M", "F", "M"],
            "scanner": ["a", "b", None, "a", "nan"],
        }
    )
    found = {by: {k: np.flatnonzero(v).tolist() for k, v in groups_of(cases, by).items()} for by in (*cases, "frontal")}
    assert found["view"] == {"AP": [0], "LATERAL": [2], "OTHER": [4], "PA": [1]}
    assert found["frontal"] == {"frontal": [0, 1, 3], "lateral": [2]}
    assert found["age"] == {"0 to 17": [0], "18 to 39": [1], "40 to 59": [2], "80 and over": [3]}
    assert found["sex"] == {"F": [0, 3], "M": [2, 4]} and found["scanner"] == {"a": [0, 3], "b": [1]}
    with pytest.raises(InputError, match="no column 'site' to group by; there are view, age, sex, scanner"):
        groups_of(cases, "site")
    with pytest.raises(InputError, match="has 30 values: group by one of at most 20"):
        groups_of(pd.DataFrame({"id": range(30)}), "id")


def test_groups_are_scored_over_labels_that_all_have(arm):
    one = arm()
    grouping = numbers([one], 30, ["sex"])["models"][0]["groups"]["sex"]
    assert grouping["labels"] == ["Edema"]  # Mass has too few positives among F
    threshold = choose_threshold(one.val[0].logits[:, 0], one.val[0].targets[:, 0], "youden")
    aucs = {}
    for name, group in grouping["groups"].items():
        rows = (one.scored[0].cases["sex"] == name).to_numpy()
        logits, truth = one.scored[0].logits[rows, 0], one.targets[rows, 0]
        aucs[name] = roc_auc_score(truth, logits)
        assert group["images"] == rows.sum() and group["auc"] == pytest.approx(aucs[name], abs=1e-6)
        assert group["tpr"] == pytest.approx((logits[truth == 1] >= threshold).mean(), abs=1e-6)
        assert group["fpr"] == pytest.approx((logits[truth == 0] >= threshold).mean(), abs=1e-6)
        assert group["auc_interval"][0] < group["auc"] < group["auc_interval"][1]
    assert grouping["gaps"]["auc"] == pytest.approx(abs(aucs["F"] - aucs["M"]), abs=1e-6)
    assert grouping["by_label"]["Edema"]["auc"] == pytest.approx(aucs, abs=1e-6)


def test_a_group_that_is_served_worse_shows(arm):
    one = arm(skill=3.0)
    logits = one.scored[0].logits.copy()
    women = (one.scored[0].cases["sex"] == "F").to_numpy()
    logits[women] = np.random.default_rng(5).normal(size=(women.sum(), 4))
    worse = replace(one, scored=(replace(one.scored[0], logits=logits),))
    grouping = numbers([worse], 100, ["sex"])["models"][0]["groups"]["sex"]
    women = grouping["groups"]["F"]
    assert grouping["reference"] == "M" and grouping["gaps"]["auc"] > 0.3
    assert women["auc_difference"] < -0.3 and women["auc_difference_interval"][1] < -0.15


def test_groups_by_chance_differ_by_nothing(arm):
    held = 0
    for seed in range(8):
        one = arm(seeds=(seed,))
        patients = one.scored[0].cases["patient"]
        side = dict(zip(patients.unique(), np.random.default_rng(seed).integers(0, 2, 120), strict=True))
        cases = one.scored[0].cases.assign(sex=[("F", "M")[side[p]] for p in patients])
        grouping = numbers([replace(one, scored=(replace(one.scored[0], cases=cases),))], 100, ["sex"])["models"][0]
        grouping = grouping["groups"]["sex"]
        other = next(g for n, g in grouping["groups"].items() if n != grouping["reference"])
        low, high = other["auc_difference_interval"]
        held += low <= 0 <= high
    assert held >= 6


def test_seeds_are_resampled_in_groups_too(arm):
    far = arm(seeds=(0, 1))
    far = replace(far, scored=(far.scored[0], replace(far.scored[1], logits=-far.scored[0].logits)))
    whole = [replace(s, cases=s.cases.assign(sex="F")) for s in far.scored]
    model = numbers([replace(far, scored=tuple(whole))], 100, ["sex"])["models"][0]
    group = model["groups"]["sex"]
    assert group["labels"] == ["Edema", "Mass"] or group["labels"] == ["Edema"]
    if group["labels"] == ["Edema"]:
        assert group["groups"]["F"]["auc_interval"] == model["labels"]["Edema"]["auc_interval"]
    low, high = group["groups"]["F"]["auc_interval"]
    assert high - low > 0.3


def test_small_groups_are_counted_not_scored(arm):
    model = numbers([arm()], 10, ["view"], min_group=70)["models"][0]
    grouping = model["groups"]["view"]
    assert all("auc" not in group and group["images"] == 60 for group in grouping["groups"].values())
    assert grouping["gaps"] == {}


def test_what_is_grouped_by_default(arm):
    assert list(numbers([arm()], 5)["models"][0]["groups"]) == ["view", "frontal", "sex", "age"]
    one = arm()
    alike = replace(one.scored[0], cases=one.scored[0].cases.assign(view="", sex="F", age=np.nan))
    assert numbers([replace(one, scored=(alike,))], 5)["models"][0]["groups"] == {}
