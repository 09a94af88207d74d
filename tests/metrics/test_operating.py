"""Thresholds against a search over every cut, temperatures against a grid."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss, roc_curve

from mxa.metrics import OPERATING_POINTS, choose_threshold, choose_thresholds, fit_temperatures, sigmoid
from mxa.metrics.operating import count_calls
from mxa.utils.errors import InputError

NAN, INF = float("nan"), float("inf")


def case(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-8, 9, n) / 4
    target = (rng.random(n) < sigmoid(scores)).astype(float)
    target[rng.random(n) < 0.2] = NAN
    return scores, target


def worth(point: str, called: np.ndarray, truth: np.ndarray) -> float:
    sensitivity, specificity = called[truth == 1].mean(), 1 - called[truth == 0].mean()
    if point == "youden":
        return sensitivity + specificity
    if point == "f1":
        return f1_score(truth, called)
    return sensitivity if specificity >= 0.95 else -1


@pytest.mark.parametrize("point", OPERATING_POINTS)
@pytest.mark.parametrize("seed", range(6))
def test_a_threshold_is_the_best_of_all(seed, point):
    scores, target = case(seed)
    known = ~np.isnan(target)
    threshold = choose_threshold(scores, target, point)
    best = worth(point, scores[known] >= threshold, target[known])
    others = {t: worth(point, scores[known] >= t, target[known]) for t in np.unique(scores[known])}
    if max(others.values()) < 0:
        assert threshold == np.inf
        return
    assert best == pytest.approx(max(others.values()))
    assert threshold == max(t for t, value in others.items() if value == pytest.approx(best))
    order = np.random.default_rng(seed).permutation(len(scores))
    assert choose_threshold(scores[order], target[order], point) == threshold
    assert choose_threshold(np.exp(scores), target, point) == pytest.approx(np.exp(threshold))


def test_youden_is_scikit_learns():
    scores, target = case(9)
    known = ~np.isnan(target)
    fpr, tpr, thresholds = roc_curve(target[known], scores[known])
    assert choose_threshold(scores, target, "youden") == thresholds[(tpr - fpr).argmax()]


def test_thresholds_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.2]])
    target = np.array([[1.0], [0.0], [1.0], [0.0], [0.0]])
    assert {k: v[0] for k, v in choose_thresholds(scores, target).items()} == {
        "youden": 0.7,
        "specificity95": 0.9,
        "f1": 0.7,
    }


@pytest.mark.parametrize("fill", [0.0, 1.0, NAN])
def test_no_threshold_and_no_temperature_without_both_kinds(fill):
    scores, target = np.arange(4.0)[:, None], np.full((4, 1), fill)
    assert all(np.isnan(v).all() for v in choose_thresholds(scores, target).values())
    assert np.isnan(fit_temperatures(scores, target)).all()


def test_the_highest_score_negative_leaves_no_threshold_of_high_specificity():
    assert choose_threshold(np.array([2.0, 1.0]), np.array([0.0, 1.0]), "specificity95") == np.inf


def test_an_unknown_operating_point_is_an_error():
    for target in (np.arange(2.0), np.zeros(2)):
        with pytest.raises(ValueError, match="unknown operating point 'best': give one of youden"):
            choose_threshold(np.arange(2.0), target, "best")


@pytest.mark.parametrize("end", [INF, -INF])
def test_equal_infinities_are_one_threshold(end):
    values, tp, fp = count_calls(np.array([end, end, 0.0, end]), np.array([0, 1, 1, 0]))
    assert values.tolist() == ([INF, 0] if end > 0 else [0, -INF])
    assert (tp.tolist(), fp.tolist()) == (([1, 2], [2, 2]) if end > 0 else ([1, 2], [0, 2]))


def test_small_whole_numbers_are_scores_too():
    scores, target = np.array([0, 200, 100], np.uint8), np.array([0, 1, 0])
    assert choose_threshold(scores, target, "youden") == 200


def test_what_is_refused():
    scores, target = case(0)
    fitted = [
        count_calls,
        *(lambda s, t, p=point: choose_threshold(s, t, p) for point in OPERATING_POINTS),
        lambda s, t: choose_thresholds(s[:, None], t[:, None]),
        lambda s, t: fit_temperatures(s[:, None], t[:, None]),
    ]
    for fit in fitted:
        for strange in (2, -1, 0.7):
            with pytest.raises(InputError, match=rf"a target must be 0, 1 or NaN \(masked\), got {strange:g}"):
                fit(scores, np.where(np.arange(len(target)) == 3, strange, target))
        with pytest.raises(InputError, match="a score is NaN"):
            fit(np.where(np.isnan(target), scores, NAN), target)
        fit(np.where(np.isnan(target), NAN, scores), target)


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_temperatures_have_the_least_entropy(true):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (4000, 2))
    target = (rng.random((4000, 2)) < sigmoid(logits)).astype(float)
    target[:500, 1] = NAN
    found = fit_temperatures(logits * true, target)
    np.testing.assert_allclose(found, true, rtol=0.1)
    for i in range(2):
        known = ~np.isnan(target[:, i])
        entropy = {
            t: log_loss(target[known, i], sigmoid(true * logits[known, i] / t)) for t in found[i] * np.r_[0.98, 1, 1.02]
        }
        assert min(entropy, key=entropy.get) == found[i]


def test_temperatures_stay_in_bounds():
    logits = np.array([[3.0, -3.0], [-3.0, 3.0]])
    target = np.array([[1.0, 1.0], [0.0, 0.0]])  # told perfectly, and the wrong way round
    np.testing.assert_allclose(fit_temperatures(logits, target), [0.05, 20])


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise"):
        assert sigmoid(np.array([-1e9, 0, 1e9])).tolist() == pytest.approx([0, 0.5, 1])
