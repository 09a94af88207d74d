"""Names of models and of their seeds, as commands are given them."""

from __future__ import annotations

import pytest

from mxa.evaluation.model_arguments import read_models
from mxa.utils.errors import InputError


def test_seeds_are_named_after_what_they_share():
    assert read_models(["runs/a-seed0, runs/a-seed1", "scores/b.csv.gz", "efficientvit_ml_m0.x"]) == {
        "a (2 seeds)": {"runs/a-seed0": "a-seed0", "runs/a-seed1": "a-seed1"},
        "b": {"scores/b.csv.gz": "b"},
        "efficientvit_ml_m0.x": {"efficientvit_ml_m0.x": "efficientvit_ml_m0.x"},
    }
    assert [*read_models(["linseed0,linseed1", "x,y", "mxa+kd-seed3,mxa+kd-seed4"])] == [
        "linseed (2 seeds)",
        "x (2 seeds)",
        "mxa+kd (2 seeds)",
    ]


def test_no_two_have_one_name():
    assert read_models(["one/a", "two/a", "two/a.csv"]) == {
        "a": {"one/a": "a"},
        "two-a": {"two/a": "two-a"},
        "two-a+": {"two/a.csv": "two-a+"},
    }
    assert [*read_models(["a-0,a-1", "a-2,a-3"])] == ["a (2 seeds)", "a (2 seeds)+"]


@pytest.mark.parametrize("models", [[], [""], ["a", " ,"]])
def test_no_model_is_an_error(models):
    with pytest.raises(InputError, match="name at least one model"):
        read_models(models)


def test_a_source_is_there_once(tmp_path):
    with pytest.raises(InputError, match="b is named twice"):
        read_models(["a,b", "b"])
    with pytest.raises(InputError, match="is named twice"):
        read_models([f"{tmp_path},{tmp_path}/."])
