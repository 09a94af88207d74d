"""What an evaluation reports: each number against a plain computation of its own."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, recall_score, roc_auc_score

from mxa.evaluation.predictions import Arm, Predictions
from mxa.evaluation.report import numbers
from mxa.metrics import choose_threshold, fit_temperatures, patient_weights, sigmoid
from mxa.utils.errors import InputError

LABELS = ("Edema", "Mass", "Fracture", "Hernia")
NAN = float("nan")


def rows_of(one: Predictions, i: int) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(one.targets[:, i])
    return one.logits[known, i], one.targets[known, i]


@pytest.mark.filterwarnings("error")
def test_points_are_scikit_learns(arm):
    one = arm()
    model = numbers([one], 20)["models"][0]
    for i, name in enumerate(("Edema", "Mass")):
        row, (logits, truth) = model["labels"][name], rows_of(one.scored[0], i)
        p = sigmoid(logits)
        assert row["auc"] == pytest.approx(roc_auc_score(truth, logits), abs=1e-6)
        assert row["ap"] == pytest.approx(average_precision_score(truth, logits), abs=1e-6)
        assert row["f1"] == pytest.approx(f1_score(truth, p >= 0.5), abs=1e-6)
        assert row["brier"] == pytest.approx(brier_score_loss(truth, p), abs=1e-6)
        assert (row["n_pos"], row["n_neg"]) == ((truth == 1).sum(), (truth == 0).sum())
    known = ~np.isnan(one.targets)
    micro = roc_auc_score(one.targets[known], one.scored[0].logits[known])
    assert model["micro_auc"] == pytest.approx(micro, abs=1e-6)
    assert model["macro_auc"] == pytest.approx(
        np.mean([model["labels"][n]["auc"] for n in ("Edema", "Mass")]), abs=1e-6
    )
    assert (model["images"], model["patients"]) == (240, 120)


@pytest.mark.filterwarnings("error")
def test_thresholds_and_temperatures_come_from_validation_and_are_only_applied(arm):
    one = arm()
    model = numbers([one], 20)["models"][0]
    val = one.val[0]
    for i, name in enumerate(("Edema", "Mass")):
        logits, truth = rows_of(one.scored[0], i)
        for point in ("youden", "specificity95", "f1"):
            metadata = model["labels"][name]["operating_points"][point]
            threshold = choose_threshold(val.logits[:, i], val.targets[:, i], point)
            assert metadata["threshold"] == pytest.approx([sigmoid(np.array(threshold))], abs=1e-6)
            assert metadata["sensitivity"] == pytest.approx(recall_score(truth, logits >= threshold), abs=1e-6)
            assert metadata["specificity"] == pytest.approx(
                recall_score(truth, logits >= threshold, pos_label=0), abs=1e-6
            )
        temperature = fit_temperatures(val.logits, val.targets)[i]
        assert model["labels"][name]["temperature"] == pytest.approx([temperature], abs=1e-6)
        scaled = brier_score_loss(truth, sigmoid(logits / temperature))
        assert model["labels"][name]["brier_scaled"] == pytest.approx(scaled, abs=1e-6)
    assert model["chosen_on"] == {"split": "val", "images": 120, "patients": 60}
    other = replace(one, scored=(replace(one.scored[0], targets=1 - one.targets),))  # the test split cannot move them
    again = numbers([other], 5)["models"][0]["labels"]["Edema"]["operating_points"]["youden"]
    assert again["threshold"] == model["labels"]["Edema"]["operating_points"]["youden"]["threshold"]
    without = numbers([arm(val=False)], 5)["models"][0]
    assert "chosen_on" not in without and "operating_points" not in without["labels"]["Edema"]
    assert without["labels"]["Edema"]["auc"] == model["labels"]["Edema"]["auc"]


def test_what_scaling_changes_is_a_mean_over_the_labels_that_have_a_temperature(arm):
    one = arm()
    val = replace(one.val[0], targets=one.val[0].targets.copy())
    positives = np.flatnonzero(val.targets[:, 1] == 1)
    val.targets[positives[4:], 1] = NAN  # Mass keeps four, too few for a temperature
    model = numbers([replace(one, val=(val,))], 5)["models"][0]
    labels = model["labels"]
    for name in ("brier", "ece"):
        assert labels["Mass"][f"{name}_scaled"] is None and labels["Mass"][name] is not None
        assert model[f"{name}_unscaled"] == labels["Edema"][name] != model[name]
        assert model[f"{name}_scaled"] == labels["Edema"][f"{name}_scaled"]


def test_intervals_are_quantiles_over_patients(arm):
    one = arm()
    model = numbers([one], 150)["models"][0]
    draws = np.concatenate(list(patient_weights(one.scored[0].cases["patient"].to_numpy(object), 150))).astype(int)
    first, truth = one.scored[0].logits[:, 0], one.targets[:, 0]
    aucs = [roc_auc_score(np.repeat(truth, w), np.repeat(first, w)) for w in draws]
    np.testing.assert_allclose(model["labels"]["Edema"]["auc_interval"], np.quantile(aucs, [0.025, 0.975]), atol=1e-6)
    wide = replace(
        one, scored=(replace(one.scored[0], cases=one.scored[0].cases.assign(patient=np.arange(240) // 12)),)
    )
    assert numbers([wide], 60)["models"][0]["patients"] == 20


@pytest.mark.filterwarnings("error")
def test_undefined_is_none_named_and_out_of_the_means(arm):
    model = numbers([arm()], 20)["models"][0]
    assert model["undefined"] == ["Fracture", "Hernia"] and model["not_in_collection"] == ["Hernia"]
    fracture, hernia = model["labels"]["Fracture"], model["labels"]["Hernia"]
    assert fracture["auc"] is None and fracture["auc_interval"] == [None, None] and fracture["f1"] is None
    assert fracture["accuracy"] is not None and (fracture["n_pos"], fracture["n_neg"]) == (0, 240)
    assert hernia["accuracy"] is None and (hernia["n_pos"], hernia["n_neg"]) == (0, 0)
    assert model["labels_in_headline"] == ["Edema"]  # Mass has under 20 positives
    assert model["macro_auc_min20"] == model["labels"]["Edema"]["auc"]
    assert model["chexpert5_auc"] is None


def test_degenerate_replicates_are_counted(arm):
    one = arm()
    targets = np.zeros((240, 4))
    targets[:, 0], targets[:2, 1] = one.targets[:, 0], 1  # one patient's images are Mass's only positives
    lone = replace(one, scored=(replace(one.scored[0], targets=targets),))
    model = numbers([lone], 300)["models"][0]
    draws = patient_weights(one.scored[0].cases["patient"].to_numpy(object), 300)
    without = sum(int((w[:, 0] == 0).sum()) for w in draws)
    assert 60 < without < 160  # 1/e
    assert model["labels"]["Mass"]["auc_skipped"] == model["macro_auc_skipped"] == without
    assert model["macro_auc_min20_skipped"] == 0 and None not in model["macro_auc_interval"]


def test_the_five_labels_of_chexpert_under_any_spelling(arm):
    one = arm().scored[0]
    names = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Mass")
    columns = [0, 0, 0, 0, 0, 1]
    five = Predictions(names, one.logits[:, columns] * [1, -1, 1, 1, 1, 1], one.targets[:, columns], one.cases)
    model = numbers([Arm("five", (five,))], 10)["models"][0]
    auc = model["labels"]["Edema"]["auc"]
    assert model["chexpert5_auc"] == pytest.approx((4 * auc + 1 - auc) / 5, abs=1e-5)


def test_seeds_are_averaged_and_resampled(arm):
    alone = [numbers([arm(seeds=(s,))], 100)["models"][0] for s in range(3)]
    model = numbers([arm(seeds=(0, 1, 2))], 100)["models"][0]
    for metric in ("auc", "ap", "brier", "ece_scaled"):
        mean = np.mean([m["labels"]["Edema"][metric] for m in alone])
        assert model["labels"]["Edema"][metric] == pytest.approx(mean, abs=2e-6)
    assert [s["macro_auc"] for s in model["seeds"]] == pytest.approx([m["macro_auc"] for m in alone], abs=1e-6)
    assert model["labels"]["Edema"]["operating_points"]["youden"]["threshold"] == [
        m["labels"]["Edema"]["operating_points"]["youden"]["threshold"][0] for m in alone
    ]
    twins = numbers([arm(seeds=(0, 0, 0))], 100)["models"][0]  # three equal seeds add nothing to patients alone
    assert twins["macro_auc_interval"] == pytest.approx(alone[0]["macro_auc_interval"], abs=1e-5)
    far = arm(seeds=(0, 1))
    logits = [far.scored[0].logits, -far.scored[0].logits]  # two seeds as far apart as can be
    far = replace(far, scored=tuple(replace(s, logits=v) for s, v in zip(far.scored, logits, strict=True)))
    low, high = numbers([far], 200)["models"][0]["labels"]["Edema"]["auc_interval"]
    assert high - low > 0.3


def test_intervals_of_rates_stay_between_0_and_1(arm):
    """Of two seeds, one always right and one always wrong, a replicate's share may be below 0 or above 1."""
    one = arm()
    right = np.nan_to_num(one.targets) * 8 - 4
    far = replace(one, scored=tuple(replace(one.scored[0], logits=sign * right) for sign in (1, -1)), val=one.val * 2)
    result = numbers([one, far], 100, ["sex"])
    found = []

    def look(value):
        for key, inner in value.items():
            if isinstance(inner, dict):
                look(inner)
            elif key.endswith("_interval") and "difference" not in key:
                found.extend(end for end in inner if end is not None)

    look(result["models"][1])
    assert min(found) == 0 and max(found) == 1
    low, high = result["paired"][0]["labels"]["Edema"]["auc_interval"]
    assert low < -0.75 and high > 0.25  # a difference may be of either sign


def test_a_model_minus_itself_is_nothing(arm):
    pair = numbers([arm("a"), arm("b")], 50)["paired"][0]
    assert (pair["name"], pair["minus"]) == ("b", "a")
    for name in ("macro_auc", "macro_auc_min20", "micro_auc", "macro_ap"):
        assert pair[name] == 0 and pair[f"{name}_interval"] == [0, 0]
    assert pair["labels"]["Fracture"]["auc"] is None


def test_a_difference_is_the_second_minus_the_first(arm):
    found = numbers([arm("a", skill=0.3), arm("b", (1,), skill=2.0)], 80)
    (a, b), pair = found["models"], found["paired"][0]
    sides = [(pair, a, b, name) for name in ("macro_auc", "macro_auc_min20", "micro_auc", "macro_ap")]
    sides += [(pair["labels"][name], a["labels"][name], b["labels"][name], "auc") for name in ("Edema", "Mass")]
    for gap, first, second, name in sides:
        assert gap[name] == pytest.approx(second[name] - first[name], abs=2e-6)
        low, high = gap[f"{name}_interval"]
        assert 0 < low < gap[name] < high


def test_pairing_is_by_replicate(arm):
    first, second = arm("a", (0,)), arm("b", (1,), skill=1.3)
    pair = numbers([first, second], 120)["paired"][0]
    draws = np.concatenate(list(patient_weights(first.scored[0].cases["patient"].to_numpy(object), 120))).astype(int)
    truth = first.targets[:, 0]
    gaps = [
        np.subtract(
            *(roc_auc_score(np.repeat(truth, w), np.repeat(a.scored[0].logits[:, 0], w)) for a in (second, first))
        )
        for w in draws
    ]
    np.testing.assert_allclose(pair["labels"]["Edema"]["auc_interval"], np.quantile(gaps, [0.025, 0.975]), atol=2e-6)
    swapped = numbers([second, first], 120)["paired"][0]
    assert swapped["macro_auc"] == pytest.approx(-pair["macro_auc"], abs=2e-6)
    assert swapped["macro_auc_interval"] == pytest.approx([-v for v in pair["macro_auc_interval"][::-1]], abs=2e-6)


def test_models_with_other_labels_are_compared_where_they_share_them(arm):
    second = arm("b", (1,))
    columns = [1, 0]
    fewer = [
        replace(p, labels=("mass", "Edema"), logits=p.logits[:, columns], targets=p.targets[:, columns])
        for p in (*second.scored, *second.val)
    ]
    pair = numbers([arm("a"), Arm("b", (fewer[0],), (fewer[1],))], 40)["paired"][0]
    whole = numbers([arm("a"), second], 40)["paired"][0]
    assert set(pair["labels"]) == {"Edema", "Mass"} and "micro_auc" not in pair
    assert pair["labels"]["Edema"] == whole["labels"]["Edema"] and pair["macro_auc"] == whole["macro_auc"]


def test_permuting_the_cases_and_monotone_transforms_leave_everything_alone(arm):
    one = arm()
    model = numbers([one], 40)["models"][0]
    order = np.random.default_rng(0).permutation(240)
    mixed = replace(one, scored=(one.scored[0].rows(order),))
    assert numbers([mixed], 40)["models"][0] == model
    steep = replace(
        one,
        scored=tuple(replace(p, logits=3 * p.logits + 1) for p in one.scored),
        val=tuple(replace(p, logits=3 * p.logits + 1) for p in one.val),
    )
    other = numbers([steep], 40)["models"][0]
    for name in ("macro_auc", "macro_auc_interval", "micro_ap"):
        assert other[name] == model[name]
    for rate in ("sensitivity", "ppv"):
        assert (
            other["labels"]["Edema"]["operating_points"]["f1"][rate]
            == model["labels"]["Edema"]["operating_points"]["f1"][rate]
        )


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_score_that_is_no_number_is_an_error_that_names_the_case(arm, value):
    one = arm()
    one.scored[0].logits[5, 1] = value
    with pytest.raises(InputError, match=r"1 image\(s\) have a score that is not finite, such as Mass of test/5\.png"):
        numbers([one], 5)


def test_other_images_are_an_error(arm):
    second = arm("b")
    with pytest.raises(InputError, match="b and a: scores of different images"):
        numbers([arm("a"), replace(second, scored=(second.scored[0].rows(np.arange(100)),))], 5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fill", [0.0, 1.0, NAN])
def test_nothing_defined(arm, fill):
    one = arm()
    empty = replace(one, scored=(replace(one.scored[0], targets=np.full((240, 4), fill)),))
    model = numbers([empty], 10)["models"][0]
    assert model["macro_auc"] is model["micro_auc"] is model["macro_auc_min20"] is None
    assert model["undefined"] == ["Edema", "Mass", "Fracture", "Hernia"]
    json.dumps(model, allow_nan=False)


@pytest.mark.filterwarnings("error")
def test_one_case(arm):
    one = arm(val=False)
    model = numbers([replace(one, scored=(one.scored[0].rows(np.array([0])),))], 10)["models"][0]
    assert model["images"] == model["patients"] == 1 and model["labels"]["Edema"]["accuracy"] in (0, 1)


def test_the_labels_of_seeds_are_aligned_by_name(arm):
    two = arm(seeds=(0, 1))
    columns = [3, 1, 0, 2]
    mixed = [
        replace(
            p, labels=tuple(p.labels[i] for i in columns), logits=p.logits[:, columns], targets=p.targets[:, columns]
        )
        for p in (two.scored[1], two.val[1])
    ]
    other = replace(two, scored=(two.scored[0], mixed[0]), val=(two.val[0], mixed[1]))
    assert numbers([other], 20) == numbers([two], 20)


def test_what_cannot_be_compared_is_refused(arm):
    one, two = arm("a"), arm("b", (1,))
    wrong = replace(two.scored[0], targets=1 - two.targets)
    with pytest.raises(InputError, match="b and a: the targets of Edema differ: score the same collection"):
        numbers([one, replace(two, scored=(wrong,))], 5)
    with pytest.raises(InputError, match="a: the targets of Edema differ"):
        numbers([replace(one, scored=(one.scored[0], wrong), val=())], 5)
    fewer = replace(two.scored[0], labels=LABELS[:3], logits=two.scored[0].logits[:, :3], targets=two.targets[:, :3])
    with pytest.raises(InputError, match="a: its seeds have different labels"):
        numbers([replace(one, scored=(one.scored[0], fewer), val=())], 5)
    others = replace(two.scored[0], cases=two.scored[0].cases.assign(patient="x"))
    with pytest.raises(InputError, match="b and a: the same images are of different patients"):
        numbers([one, replace(two, scored=(others,))], 5)


def test_a_patient_who_validates_and_is_reported_is_refused(arm):
    one = arm()
    val = replace(one.val[0], cases=one.val[0].cases.assign(patient=["test0"] * 2 + ["v"] * 118))
    with pytest.raises(
        InputError, match=r"a: 1 patient\(s\) are in the validation split and in the split that is reported"
    ):
        numbers([replace(one, val=(val,))], 5)


def test_a_name_moves_no_interval(arm):
    assert (
        numbers([arm("run", (0, 1))], 30)["models"][0]["macro_auc_interval"]
        == (numbers([arm("x", (0, 1))], 30)["models"][0]["macro_auc_interval"])
    )
