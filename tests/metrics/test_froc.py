"""Free-response ROC against a slow count."""

from __future__ import annotations

import numpy as np
import pytest

from mxa.metrics.froc import RATES, MarkedBox, froc, froc_table
from mxa.utils.errors import InputError


def slow(scores, cases, right, rate):
    best = 0.0
    for threshold in [np.inf, *scores]:
        marked = scores >= threshold
        if (marked & ~right).sum() / len(scores) <= rate:
            best = max(best, (marked & right).sum() / cases.sum())
    return best


@pytest.mark.parametrize("seed", range(5))
def test_by_every_threshold(seed):
    rng = np.random.default_rng(seed)
    scores, cases = rng.integers(0, 12, 40) / 12, rng.random(40) < 0.4
    right = cases & (rng.random(40) < 0.6)
    found = froc(scores, cases, right, (0.0, *RATES, 1.0))
    np.testing.assert_allclose(found, [slow(scores, cases, right, rate) for rate in (0.0, *RATES, 1.0)])
    assert found[-1] == right.sum() / cases.sum() and (np.diff(found) >= 0).all()
    order = rng.permutation(40)
    np.testing.assert_allclose(froc(scores[order], cases[order], right[order], (0.0, *RATES, 1.0)), found)


def test_an_image_that_counts_twice_is_an_image_twice():
    rng = np.random.default_rng(0)
    scores, cases = rng.random(20), rng.random(20) < 0.5
    right, counts = cases & (rng.random(20) < 0.5), rng.integers(0, 3, 20)
    again = np.repeat(np.arange(20), counts)
    np.testing.assert_allclose(
        froc(scores, cases, right, weights=counts[None].astype(float))[0],
        froc(scores[again], cases[again], right[again]),
    )


def test_the_table():
    rng, boxes = np.random.default_rng(0), []
    for i in range(60):
        for finding, chance in (("Mass", 0.9), ("Nodule", 0.1)):
            case = i % 3 == 0
            boxes.append(MarkedBox(str(i), str(i // 2), finding, rng.random(), case, case and rng.random() < chance))
    rows = {row["finding"]: row for row in froc_table(boxes, 200)}
    assert list(rows) == ["Mass", "Nodule", "all"] and rows["Mass"]["n"] == 20 and rows["all"]["images"] == 60
    assert rows["Mass"]["froc_0.5"] > rows["Nodule"]["froc_0.5"]
    assert rows["all"]["froc_0.2"] == pytest.approx(
        (rows["Mass"]["froc_0.2"] + rows["Nodule"]["froc_0.2"]) / 2, abs=1e-5
    )
    low, high = rows["Mass"]["froc_0.5_interval"]
    assert 0 <= low <= rows["Mass"]["froc_0.5"] <= high <= 1
    twice = [*boxes, *(box._replace(seed=1) for box in boxes)]
    again = {row["finding"]: row for row in froc_table(twice, 200)}
    assert again["Mass"]["froc_0.2"] == rows["Mass"]["froc_0.2"] and again["Mass"]["n"] == 20
    with pytest.raises(InputError, match="one of each image"):
        froc_table([boxes[0], boxes[0]])
