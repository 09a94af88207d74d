"""``mxa bench scores``: what the rows hold, and that the peers compute the same."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mxa.commands.bench.config import BenchScoresConfig
from mxa.commands.bench.scores import _made, bench_scores
from mxa.evaluation.predictions import Arm
from mxa.evaluation.report.numbers import numbers
from mxa.utils.errors import InputError


def test_rows(tmp_path):
    rows = bench_scores(BenchScoresConfig((100, 200), 2, 60, 1, tmp_path / "scores.json"))
    assert [row["rows"] for row in rows] == [100, 200]
    assert all(row["report_s"] > 0 and row["sklearn_s"] > 0 for row in rows)
    assert (tmp_path / "scores.json").exists()


def test_the_report_is_of_the_scores_that_the_peers_see():
    scored = _made(300, 3)
    (model,) = numbers([Arm("made", (scored,), ())], 10)["models"]
    expected = [roc_auc_score(t, s) for t, s in zip(scored.targets.T, scored.logits.T, strict=True)]
    assert [label["auc"] for label in model["labels"].values()] == pytest.approx(expected, abs=1e-5)


def test_intervals_do_not_depend_on_the_cores(monkeypatch):
    """Chunks of replicates are computed side by side, and put together in their order."""
    scored, found = _made(300, 3), []
    for cores in (1, 3):
        monkeypatch.setattr(import_module(numbers.__module__), "core_count", lambda cores=cores: cores)
        found.append(numbers([Arm("made", (scored, scored), ())], 230))
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [{"rows": (10,)}, {"labels": 0}, {"peer_replicates": 0}])
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match="at least"):
        bench_scores(BenchScoresConfig(**wrong))


def test_made_scores_have_three_images_to_a_patient():
    cases = _made(300, 1).cases
    assert np.bincount(cases.groupby("patient").size()).tolist() == [0, 0, 0, 100]
