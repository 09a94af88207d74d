"""Resampling: patients are drawn, not images, and seeds where there are several."""

from __future__ import annotations

import numpy as np
import pytest

from mxa.metrics import interval, patient_weights
from mxa.metrics.bootstrap import seed_weights
from mxa.utils.errors import InputError

NAN = float("nan")


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


def test_the_draw_is_seeded_and_does_not_depend_on_the_order_of_the_images():
    patients = np.arange(30) // 2
    first, again, other = (np.concatenate(list(patient_weights(patients, 60, seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(np.concatenate(list(patient_weights(patients[order], 60))), first[:, order])


def test_no_replicates_is_an_error():
    with pytest.raises(InputError, match="replicates must be at least 1, got 0"):
        next(patient_weights(np.arange(3), 0))


def test_seeds_are_drawn_with_replacement():
    assert (seed_weights(1, 5, 0) == 1).all()
    shares = seed_weights(3, 2000, 0)
    assert shares.shape == (2000, 3)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares.mean(0), 1 / 3, atol=0.02)
    values = np.array([0.1, 0.5, 0.6])  # the mean of three has the variance s^2 / 3, with n - 1 in s^2
    assert (shares @ values).var() == pytest.approx(values.var(ddof=1) / 3, rel=0.1)


@pytest.mark.parametrize(
    ("seeds", "patients", "expected"),
    [(2, 0, 0.61), (3, 0, 0.81), (6, 0, 0.88), (10, 0, 0.91), (3, 1, 0.95), (6, 1, 0.95)],
)
def test_how_often_an_interval_holds_the_truth(seeds, patients, expected):  # docs/evaluation.md says so
    rng = np.random.default_rng(0)
    effects, shift = rng.normal(size=(4000, seeds)), patients * rng.normal(size=4000)
    replicates = seed_weights(seeds, 1000, 0) @ effects.T + shift + patients * rng.normal(size=(1000, 1))
    low, high = interval(replicates)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.filterwarnings("error")
def test_an_interval_is_its_quantiles_and_leaves_undefined_replicates_out():
    values = np.random.default_rng(0).normal(size=(400, 3))
    np.testing.assert_allclose(interval(values), np.quantile(values, [0.025, 0.975], axis=0))
    np.testing.assert_allclose(interval(values[:, 0], 0.5), np.quantile(values[:, 0], [0.25, 0.75]))
    values[::2, 1], values[:, 2] = NAN, NAN
    np.testing.assert_allclose(interval(values)[:, 1], np.quantile(values[1::2, 1], [0.025, 0.975]))
    assert np.isnan(interval(values)[:, 2]).all()
