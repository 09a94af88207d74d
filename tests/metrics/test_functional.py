"""The metrics against scikit-learn, and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from mxa.metrics import (
    auroc,
    average_precision,
    brier,
    calibration_error,
    confusion,
    macro_auroc,
    micro_auroc,
    ranking,
    rates,
)
from mxa.metrics.functional import Ranking
from mxa.utils.errors import InputError

NAN, INF = float("nan"), float("inf")


def case(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores on a grid, so that many are tied, and targets that depend on them."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, n) / 4 - 1
    return scores, (rng.random(n) < 0.2 + 0.2 * (scores + 1)).astype(float)


def masked(target: np.ndarray, seed: int, share: float = 0.3) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(target.shape) < share, NAN, target)


@pytest.mark.parametrize("seed", range(8))
def test_auroc_is_scikit_learns(seed):
    scores, target = case(seed)
    assert auroc(scores, target) == pytest.approx(roc_auc_score(target, scores), abs=1e-12)
    hidden = masked(target, seed)
    known = ~np.isnan(hidden)
    assert auroc(scores, hidden) == pytest.approx(roc_auc_score(target[known], scores[known]), abs=1e-12)
    weight = np.random.default_rng(seed).random(len(scores))
    expected = roc_auc_score(target[known], scores[known], sample_weight=weight[known])
    assert auroc(scores, hidden, weight) == pytest.approx(expected, abs=1e-12)


def test_auroc_is_the_share_of_ordered_pairs():
    scores, target = case(3)
    pairs = scores[target == 1][:, None] - scores[target == 0]
    assert (pairs == 0).sum() > 20
    assert auroc(scores, target) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)


def test_integer_weights_equal_repetition():
    scores, target = case(0)
    times = np.random.default_rng(1).integers(0, 4, len(scores))
    repeated = auroc(np.repeat(scores, times), np.repeat(target, times))
    assert auroc(scores, target, times) == pytest.approx(repeated, abs=1e-12)
    assert auroc(scores, target, times.astype(np.float32)) == pytest.approx(repeated, abs=1e-6)


def test_a_batch_of_weights_gives_a_curve_each():
    scores, target = case(0)
    target = masked(target, 0)
    weights = np.random.default_rng(2).random((2, 5, len(scores)))
    result = auroc(scores, target, weights)
    assert result.shape == (2, 5)
    for i in np.ndindex(2, 5):
        assert result[i] == pytest.approx(auroc(scores, target, weights[i]), abs=1e-12)
    weights[0, 0] = np.where(target == 1, 0, 1)  # no positive is left
    result = auroc(scores, target, weights)
    assert np.isnan(result[0, 0]) and np.isnan(result).sum() == 1


@pytest.mark.parametrize("target", [[1, 1, 1], [0, 0, 0], [NAN, NAN, NAN], [1, NAN, 1], [0, NAN, NAN]])
def test_auroc_without_both_kinds_is_undefined(target):
    scores = np.array([0.1, 0.5, 0.9])
    assert np.isnan(auroc(scores, np.array(target, dtype=float)))
    assert np.isnan(auroc(scores, np.array(target, dtype=float), np.ones((4, 3)))).tolist() == [True] * 4


def test_auroc_of_one_case_and_of_two():
    assert np.isnan(auroc(np.array([0.3]), np.array([1.0])))
    assert auroc(np.array([0.3, 0.4]), np.array([0.0, 1.0])) == 1
    assert auroc(np.array([0.3, 0.4]), np.array([1.0, 0.0])) == 0
    assert auroc(np.array([0.3, 0.3]), np.array([1.0, 0.0])) == 0.5


@pytest.mark.parametrize("end", [INF, -INF])
def test_equal_infinities_are_a_tie(end):
    for target in ([0, 1], [1, 0]):
        assert auroc([end, end], target) == 0.5 and average_precision([end, end], target) == 0.5
    scores, target = case(2)
    far = np.where(scores == (scores.max() if end > 0 else scores.min()), end, scores)
    assert np.isinf(far).sum() > 1
    for found, expected in zip(ranking(far, target), ranking(scores, target), strict=True):
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_ranking_is_sorted_once_for_many_weights_and_takes_several_scores_of_a_case():
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(6, size=(40, 3)) / 5, rng.integers(2, size=(40, 3)).astype(float)
    targets[rng.random((40, 3)) < 0.2] = np.nan
    one = Ranking(scores.T.ravel(), targets.T.ravel(), np.tile(np.arange(40), 3))
    for weight in (rng.multinomial(40, [1 / 40] * 40, size=5).astype(np.float32), None):
        tiled = None if weight is None else np.tile(weight, 3)
        for found, expected in zip(one(weight), ranking(scores.T.ravel(), targets.T.ravel(), tiled), strict=True):
            np.testing.assert_array_equal(found, expected)


ALL = {
    "auroc": lambda s, t, w=None: auroc(s[:, 0], t[:, 0], w),
    "average_precision": lambda s, t, w=None: average_precision(s[:, 0], t[:, 0], w),
    "macro_auroc": lambda s, t: macro_auroc(s, t),
    "micro_auroc": lambda s, t: micro_auroc(s, t),
    "brier": brier,
    "calibration_error": calibration_error,
}


@pytest.mark.parametrize("metric", ALL)
def test_what_is_refused(metric):
    scores, targets = columns(0)
    targets[:, 0] = case(0)[1]
    for strange in (2, -1, 0.7, INF):
        wrong = targets.copy()
        wrong[3, 0] = strange
        with pytest.raises(InputError, match=rf"a target must be 0, 1 or NaN \(masked\), got {strange:g}"):
            ALL[metric](scores, wrong)
    blank = scores.copy()
    blank[3, 0] = NAN
    with pytest.raises(InputError, match="a score is NaN: leave the case out, or mask it"):
        ALL[metric](blank, targets)
    hidden = targets.copy()
    hidden[3, 0] = NAN
    ALL[metric](blank, hidden)
    with pytest.raises(InputError, match="must have the same shape"):
        ALL[metric](scores[:-1], targets)
    if not metric.endswith("o_auroc"):
        with pytest.raises(InputError, match=r"weights \(120,\) must end in one for each of the 60 cases"):
            ALL[metric](scores, targets, np.ones(120))


def test_calls_are_booleans():
    scores, targets = columns(0)
    with pytest.raises(InputError, match=r"calls must be booleans, got float64: give scores >= threshold"):
        confusion(scores, targets)
    with pytest.raises(InputError, match=r"a target must be 0, 1 or NaN \(masked\), got 2"):
        confusion(scores >= 0.5, np.where(np.isnan(targets), targets, 2))


@pytest.mark.parametrize("metric", [brier, calibration_error])
def test_probabilities_lie_between_0_and_1(metric):
    scores, targets = columns(0)
    for shift in (-1, 1):
        with pytest.raises(InputError, match=r"outside \[0, 1\]: give mxa\.metrics\.sigmoid\(logits\)"):
            metric(scores + shift, targets)


@pytest.mark.parametrize("seed", range(5))
def test_monotone_transforms_and_permutations_leave_auroc_alone(seed):
    scores, target = case(seed)
    target = masked(target, seed)
    value = auroc(scores, target)
    for transform in (lambda x: 3 * x - 7, np.exp, lambda x: x**3, lambda x: 1 / (1 + np.exp(-x))):
        assert auroc(transform(scores), target) == pytest.approx(value, abs=1e-12)
    order = np.random.default_rng(seed).permutation(len(scores))
    assert auroc(scores[order], target[order]) == pytest.approx(value, abs=1e-12)
    assert auroc(-scores, target) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(scores, 1 - target) == pytest.approx(1 - value, abs=1e-12)


def test_what_is_masked_does_not_count():
    scores, target = case(1)
    target[:20] = NAN
    value = auroc(scores, target)
    scores[:20] = 1000 * np.arange(20)
    assert auroc(scores, target) == value


def test_macro_and_micro():
    columns = [case(seed) for seed in range(3)]
    scores = np.stack([s for s, _ in columns], 1)
    targets = masked(np.stack([t for _, t in columns], 1), 0, 0.2)
    each = [auroc(scores[:, i], targets[:, i]) for i in range(3)]
    assert macro_auroc(scores, targets) == pytest.approx(np.mean(each), abs=1e-12)
    known = ~np.isnan(targets)
    assert micro_auroc(scores, targets) == pytest.approx(roc_auc_score(targets[known], scores[known]), abs=1e-12)
    targets[:, 1] = np.where(known[:, 1], 0, NAN)  # undefined: out of the macro mean, its negatives still in the micro
    assert macro_auroc(scores, targets) == pytest.approx((each[0] + each[2]) / 2, abs=1e-12)
    assert micro_auroc(scores, targets) == pytest.approx(roc_auc_score(targets[known], scores[known]), abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_macro_and_micro_of_nothing_are_undefined():
    scores = np.zeros((4, 2))
    assert np.isnan(macro_auroc(scores, np.zeros((4, 2))))
    assert np.isnan(micro_auroc(scores, np.full((4, 2), NAN)))
    assert np.isnan(macro_auroc(scores[:, []], scores[:, []]))


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_scikit_learns(seed):
    scores, target = case(seed)
    hidden = masked(target, seed)
    known = ~np.isnan(hidden)
    weight = np.random.default_rng(seed).random((3, len(scores)))
    expected = [average_precision_score(target[known], scores[known], sample_weight=w[known]) for w in weight]
    np.testing.assert_allclose(average_precision(scores, hidden, weight), expected, rtol=1e-12)
    assert average_precision(scores, target) == pytest.approx(average_precision_score(target, scores), abs=1e-12)


def test_average_precision_by_hand():
    scores, target = np.array([0.9, 0.8, 0.7, 0.7, 0.1]), np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    assert average_precision(scores, target) == pytest.approx((1 / 1 + 2 / 4 + 3 / 5) / 3)
    assert np.isnan(average_precision(scores, np.ones(5))) and np.isnan(average_precision(scores, np.zeros(5)))


def columns(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and masked targets of three labels, ``(60, 3)``."""
    cases = [case(seed + i) for i in range(3)]
    return np.stack([(s + 1) / 3 for s, _ in cases], 1), masked(np.stack([t for _, t in cases], 1), seed)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_rates_are_scikit_learns(seed, threshold):
    probabilities, targets = columns(seed)
    found = rates(confusion(probabilities >= threshold, targets))
    for i in range(3):
        known = ~np.isnan(targets[:, i])
        truth, called = targets[known, i], probabilities[known, i] >= threshold
        expected = {
            "accuracy": accuracy_score(truth, called),
            "f1": f1_score(truth, called),
            "sensitivity": recall_score(truth, called),
            "specificity": recall_score(truth, called, pos_label=0),
            "ppv": precision_score(truth, called),
            "npv": precision_score(truth, called, pos_label=0),
        }
        assert {name: value[i] for name, value in found.items()} == pytest.approx(expected)


def test_brier_is_scikit_learns():
    probabilities, targets = columns(0)
    for i, value in enumerate(brier(probabilities, targets)):
        known = ~np.isnan(targets[:, i])
        assert value == pytest.approx(brier_score_loss(targets[known, i], probabilities[known, i]))


def test_calibration_error_is_a_loop_over_bins():
    rng = np.random.default_rng(0)
    probabilities = np.r_[rng.random((200, 2)), [[0.0, 1.0]]]  # both ends
    targets = masked((rng.random((201, 2)) < probabilities**2).astype(float), 0)
    for i, value in enumerate(calibration_error(probabilities, targets, bins=7)):
        expected, known = 0.0, ~np.isnan(targets[:, i])
        for low in range(7):
            inside = known & (np.minimum((probabilities[:, i] * 7).astype(int), 6) == low)
            if inside.any():
                gap = abs(probabilities[inside, i].mean() - targets[inside, i].mean())
                expected += inside.sum() / known.sum() * gap
        assert value == pytest.approx(expected)
    sure = np.array([[1.0], [0.0]])
    assert calibration_error(sure, sure)[0] == 0 and calibration_error(sure, 1 - sure)[0] == 1


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_takes_weights_as_repetition(seed):
    probabilities, targets = columns(seed)
    times = np.random.default_rng(seed).integers(0, 4, (4, len(targets)))
    weight = times.astype(np.float32)
    for metric in (brier, calibration_error, lambda p, t, w=None: rates(confusion(p >= 0.4, t, w))["ppv"]):
        batch = metric(probabilities, targets, weight)
        assert batch.shape == (4, 3)
        for row, count in zip(batch, times, strict=True):
            repeated = metric(np.repeat(probabilities, count, 0), np.repeat(targets, count, 0))
            np.testing.assert_allclose(row, repeated, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_rates_at_their_ends():
    ends = {"nothing": np.full((3, 1), NAN), "negative": np.zeros((3, 1)), "positive": np.ones((3, 1))}
    found = {
        (name, called): {k: v[0] for k, v in rates(confusion(np.full((3, 1), called), target)).items()}
        for name, target in ends.items()
        for called in (True, False)
    }
    assert all(np.isnan(v) for called in (True, False) for v in found["nothing", called].values())
    assert found["positive", True]["sensitivity"] == found["positive", True]["f1"] == 1
    assert found["positive", False]["f1"] == 0 and np.isnan(found["positive", False]["ppv"])
    assert found["negative", False]["accuracy"] == 1 and np.isnan(found["negative", True]["f1"])
    assert np.isnan(brier(ends["negative"], ends["nothing"])) and np.isnan(
        calibration_error(ends["negative"], ends["nothing"])
    )


def test_whole_numbers_as_weights():
    probabilities, targets = columns(0)
    times = np.random.default_rng(0).integers(0, 4, len(targets))
    for metric in (brier, calibration_error, lambda p, t, w: rates(confusion(p >= 0.4, t, w))["ppv"]):
        np.testing.assert_allclose(
            metric(probabilities, targets, times), metric(probabilities, targets, times.astype(float))
        )
    np.testing.assert_allclose(
        brier(probabilities, targets, times > 1), brier(probabilities[times > 1], targets[times > 1])
    )


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 2), ()])
@pytest.mark.parametrize("function", [ranking, auroc, average_precision])
def test_scores_without_a_case(function, shape):
    with pytest.raises(InputError, match="at least one case"):
        function(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize("function", [macro_auroc, micro_auroc])
def test_tables_without_a_case(function):
    with pytest.raises(InputError, match="at least one case"):
        function(np.zeros((0, 3)), np.zeros((0, 3)))
