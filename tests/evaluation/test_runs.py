"""The scores of many runs in one file: there and back, and one of them for an evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mxa.data import create_dataset
from mxa.evaluation.evaluate import EvaluateConfig, evaluate, with_validation
from mxa.evaluation.model_arguments import read_models
from mxa.evaluation.predictions import Predictions, of_records, read_predictions
from mxa.evaluation.runs import Run, add_run, read_runs, runs_metadata, write_runs
from mxa.utils.errors import InputError


@pytest.fixture
def scored(made_table):
    """Makes the scores of one run: test rows, then validation rows."""

    def build(seed: int) -> Predictions:
        rng = np.random.default_rng(seed)
        splits = [create_dataset("table", made_table(), split, views="all").records for split in ("test", "val")]
        test, val = (of_records(one, rng.normal(size=(len(one), 3)).astype(np.float32), {}) for one in splits)
        return replace(with_validation(test, "test", val), metadata={"model": f"m{seed}", "split": "test"})

    return build


def test_runs_come_back_as_they_were(scored, tmp_path):
    runs = {Run("a", 0): scored(0), Run("a: 1 + b", 3): scored(1)}
    write_runs(tmp_path / "s.parquet", runs)
    found = read_runs(tmp_path / "s.parquet")
    assert list(found) == list(runs) and runs_metadata(tmp_path / "s.parquet")[Run("a", 0)]["model"] == "m0"
    for run, one in runs.items():
        assert found[run].labels == one.labels and np.array_equal(found[run].logits, one.logits)
        assert np.array_equal(found[run].targets, one.targets, equal_nan=True)
        assert found[run].cases["image"].tolist() == one.cases["image"].tolist()
        assert found[run].cases["split"].tolist() == one.cases["split"].tolist()
        assert found[run].metadata == {"scores": "s.parquet", **one.metadata}
    frame = pd.read_parquet(tmp_path / "s.parquet")
    assert list(frame)[:2] == ["arm", "seed"] and "fold" not in frame
    assert {str(frame[name].dtype) for name in frame if name.startswith("logit:")} == {"float32"}


def test_a_run_takes_the_place_of_its_old_scores(scored, tmp_path):
    path = tmp_path / "s.parquet"
    assert read_runs(path) == runs_metadata(path) == {}
    for fold, seed in ((0, 0), (1, 1), (0, 2)):
        add_run(path, Run("a", 7, fold), scored(seed))
    found = read_runs(path)
    assert list(found) == [Run("a", 7, 0), Run("a", 7, 1)] and found[Run("a", 7, 0)].metadata["model"] == "m2"
    assert np.array_equal(found[Run("a", 7, 0)].logits, scored(2).logits)


def test_the_runs_of_an_arm_are_the_seeds_of_a_model(scored, tmp_path):
    path = tmp_path / "s.parquet"
    write_runs(path, {Run("a b", 0): scored(0), Run("a b", 1): scored(1), Run("c", 0): scored(2)})
    both = {"a b-seed0": f"{path}:a b-seed0", "a b-seed1": f"{path}:a b-seed1"}
    assert read_models([f"{path}:a b", f"{path}:c-seed0"]) == {
        "a b (2 seeds)": {argument: name for name, argument in both.items()},
        "c-seed0": {f"{path}:c-seed0": "c-seed0"},
    }
    options = {"replicates": 5, "workers": 0}
    ours = evaluate(EvaluateConfig((f"{path}:a b", f"{path}:c"), tmp_path / "ours", **options))
    for seed in range(3):
        scored(seed).save(tmp_path / f"{seed}.parquet")
    files = (f"{tmp_path}/0.parquet,{tmp_path}/1.parquet", f"{tmp_path}/2.parquet")
    theirs = evaluate(EvaluateConfig(files, tmp_path / "theirs", **options))
    for one, other in zip(ours["models"], theirs["models"], strict=True):
        assert one["labels"] == other["labels"] and one["chosen_on"] == other["chosen_on"]
    assert {p.name for p in (tmp_path / "ours" / "predictions").iterdir()} == {
        f"{name}.parquet" for name in ("a b-seed0", "a b-seed1", "c-seed0")
    }


def test_what_is_not_there_is_named(scored, tmp_path):
    path = tmp_path / "s.parquet"
    with pytest.raises(InputError, match=r"s\.parquet:c: the file has no arm or run 'c'; it has no run"):
        read_models([f"{path}:c"])
    write_runs(path, {Run("a", 0): scored(0)})
    with pytest.raises(InputError, match=r"has no arm or run 'c'; it has a$"):
        read_models([f"{path}:c"])
    with pytest.raises(InputError, match=r"holds several runs: name those of one arm as .*s\.parquet:ARM"):
        read_predictions(path)
    scored(0).save(tmp_path / "one.parquet")
    with pytest.raises(InputError, match=r"one\.parquet does not hold the runs of a comparison"):
        read_models([f"{tmp_path / 'one.parquet'}:a"])
