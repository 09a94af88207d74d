"""Intervals: patients are drawn, not images."""

from __future__ import annotations

import numpy as np
import pytest

from mxa.errors import InputError
from mxa.metrics import auroc, auroc_intervals, macro_auroc, micro_auroc, patient_weights

NAN = float("nan")


def easy(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two labels that the scores tell, three images a patient."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 2)) < 0.4).astype(float)
    return rng.normal(size=(n, 2)) + targets * [1.0, 2.0], targets, np.arange(n) // 3


def test_weights_are_counts_of_patients():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    weights = np.concatenate(list(patient_weights(patients, replicates=120)))
    assert weights.shape == (120, 6) and weights.dtype == np.float32
    np.testing.assert_array_equal(weights[:, [0, 1]], weights[:, [2, 4]])  # images of one patient move together
    np.testing.assert_array_equal(weights[:, 0], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(1), 3)  # as many patients as there are
    assert len(np.unique(weights, axis=0)) == 10  # every multiset of three patients is drawn
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.25)


@pytest.mark.parametrize("replicates", [1, 50, 51, 130])
def test_chunks_add_up_to_the_replicates(replicates):
    chunks = [len(chunk) for chunk in patient_weights(np.arange(4), replicates)]
    assert sum(chunks) == replicates and max(chunks) <= 50


def test_the_draw_is_seeded():
    scores, targets, patients = easy()
    first, again, other = (auroc_intervals(scores, targets, patients, 100, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_equal(first, again)
    assert (first["labels"] != other["labels"]).all()


def test_intervals_hold_the_point_and_their_quantiles():
    scores, targets, patients = easy()
    result = auroc_intervals(scores, targets, patients, 400)
    points = [auroc(scores[:, i], targets[:, i]) for i in range(2)]
    for point, (low, high) in [
        *zip(points, result["labels"], strict=True),
        (macro_auroc(scores, targets), result["macro"]),
        (micro_auroc(scores, targets), result["micro"]),
    ]:
        assert low < point < high
        assert 0.02 < high - low < 0.2
    assert result["skipped"] == 0
    weights = np.concatenate(list(patient_weights(patients, 400)))
    replicates = np.array([[auroc(scores[:, i], targets[:, i], w) for i in range(2)] for w in weights])
    np.testing.assert_allclose(result["labels"], np.quantile(replicates, [0.025, 0.975], axis=0).T, rtol=1e-6)
    np.testing.assert_allclose(result["macro"], np.quantile(replicates.mean(1), [0.025, 0.975]), rtol=1e-6)
    narrow = auroc_intervals(scores, targets, patients, 400, level=0.5)
    np.testing.assert_allclose(narrow["macro"], np.quantile(replicates.mean(1), [0.25, 0.75]), rtol=1e-6)


def test_micro_pools_the_labels_of_each_replicate():
    scores, targets, patients = easy(60)
    targets[::5, 0] = NAN
    weights = np.concatenate(list(patient_weights(patients, 80)))
    replicates = [micro_auroc(np.repeat(scores, w, axis=0), np.repeat(targets, w, axis=0)) for w in weights.astype(int)]
    result = auroc_intervals(scores, targets, patients, 80)
    np.testing.assert_allclose(result["micro"], np.quantile(replicates, [0.025, 0.975]), rtol=1e-5)


def test_images_of_one_patient_make_the_interval_wider():
    scores, targets, _ = easy(60)
    scores, targets = np.repeat(scores, 5, axis=0), np.repeat(targets, 5, axis=0)
    alone, together = np.arange(300), np.repeat(np.arange(60), 5)
    widths = [np.ptp(auroc_intervals(scores, targets, patients, 200)["macro"]) for patients in (alone, together)]
    assert widths[1] > 1.6 * widths[0]  # sqrt(5) = 2.2


def test_degenerate_replicates_are_counted_and_left_out():
    scores, targets, patients = easy(90)
    targets[:, 1] = 0
    targets[:3, 1] = 1  # one patient's images are the only positives
    result = auroc_intervals(scores, targets, patients, 500)
    without = np.concatenate([w[:, 0] == 0 for w in patient_weights(patients, 500)])
    assert result["skipped"] == without.sum()
    assert 0.3 < without.mean() < 0.45  # 1/e
    assert not np.isnan(result["labels"]).any() and not np.isnan(result["macro"]).any()


@pytest.mark.parametrize("fill", [0.0, 1.0, NAN])
def test_an_undefined_label_stays_so_and_out_of_the_macro(fill):
    scores, targets, patients = easy()
    targets[:, 0] = fill
    result = auroc_intervals(scores, targets, patients, 100)
    assert np.isnan(result["labels"][0]).all()
    np.testing.assert_allclose(result["macro"], result["labels"][1])
    assert result["skipped"] == 0


def test_everything_undefined():
    result = auroc_intervals(np.zeros((4, 2)), np.zeros((4, 2)), np.arange(4), 30)
    assert np.isnan(result["labels"]).all() and np.isnan(result["macro"]).all() and np.isnan(result["micro"]).all()
    assert result["skipped"] == 30


def test_no_replicates_is_an_error():
    with pytest.raises(InputError, match="replicates must be at least 1, got 0"):
        auroc_intervals(*easy(), replicates=0)


def test_one_patient_gives_an_interval_without_width():
    scores, targets, _ = easy(30)
    result = auroc_intervals(scores, targets, np.zeros(30), 20)
    np.testing.assert_allclose(result["macro"], macro_auroc(scores, targets), rtol=1e-6)
    assert np.ptp(result["labels"], axis=1).max() < 1e-6
