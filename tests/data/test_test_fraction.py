"""A test split of one's own: cut by patient, and never of patients whom a run was trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mxa.data import DataConfig, create_dataset
from mxa.utils.errors import InputError


@pytest.fixture
def many(tmp_path):
    """A table of 400 rows of 200 patients whose rarest label is in 5 %, without images."""
    rng = np.random.default_rng(0)
    rows = [
        {"path": f"{i}.png", "patient": f"p{i // 2}", "Edema": int(rng.random() < 0.4), "Mass": int(i // 2 % 20 == 0)}
        for i in range(400)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "many.csv", index=False)
    return tmp_path / "many.csv"


def test_a_test_split_is_cut_by_patient_and_stratified(many):
    split = {s: create_dataset("table", many, s, test_fraction=0.2).records for s in ("train", "val", "test")}
    people = {s: set(records.patients.tolist()) for s, records in split.items()}
    assert not people["train"] & people["test"] and not people["val"] & people["test"]
    assert sum(map(len, split.values())) == 400 and 36 <= len(people["test"]) <= 44
    for column, rate in enumerate((0.4, 0.05)):
        assert np.mean(split["test"].targets[:, column]) == pytest.approx(rate, abs=0.06)
    again = create_dataset("table", many, test_fraction=0.2).records  # the test split is what is scored
    assert again.split == "test" and again.paths.tolist() == split["test"].paths.tolist()


def test_the_order_of_the_rows_changes_nothing(many, tmp_path):
    pd.read_csv(many).sample(frac=1, random_state=1).to_csv(tmp_path / "other.csv", index=False)
    one, other = (create_dataset("table", t, "test", test_fraction=0.3).records for t in (many, tmp_path / "other.csv"))
    assert set(one.paths.tolist()) == set(other.paths.tolist())


@pytest.mark.parametrize("share", [0, 1, -0.2, 20, float("nan")])
def test_a_share_is_between_0_and_1(many, share):
    with pytest.raises(InputError, match="--test-fraction is a share of the patients, between 0 and 1"):
        create_dataset("table", many, test_fraction=share)


def test_a_test_split_that_is_there_is_not_cut_again(made_table, made_nih, made_chexpert):
    for collection, root in (("table", made_table()), ("nih", made_nih(lists=True))):
        with pytest.raises(InputError, match="has a test split of its own: leave --test-fraction out"):
            create_dataset(collection, root, "train", test_fraction=0.2)
    with pytest.raises(InputError, match="chexpert has official sets to report: leave --test-fraction out"):
        create_dataset("chexpert", made_chexpert(), "train", test_fraction=0.2)


def test_folds_and_a_fraction_exclude_each_other(many):
    with pytest.raises(InputError, match="--test-fraction and --folds both say what tests"):
        create_dataset("table", many, "test", fold=(0, 5), test_fraction=0.2)


@pytest.mark.parametrize(("trained", "asked", "refused"), [(None, 0.2, True), (0.1, 0.2, True), (0.2, 0.2, False)])
def test_no_patient_of_training_is_cut_for_a_test(many, tmp_path, trained, asked, refused):
    run = tmp_path / "run"
    run.mkdir()
    said = f"test_fraction: {trained}\n" if trained else ""
    (run / "config.yaml").write_text(f"data: table\nroot: {many}\n{said}")
    for config in (DataConfig(test_fraction=asked), DataConfig(data="table", root=str(many), test_fraction=asked)):
        if refused:
            with pytest.raises(InputError, match=r"run was trained without --test-fraction 0\.2"):
                config.resolved(run)
        else:
            assert config.resolved(run).test_fraction == asked
    if trained:
        assert DataConfig().resolved(run).test_fraction == trained
        other = DataConfig(data="folder", root=str(tmp_path)).resolved(run)
        assert other.test_fraction is None


def test_a_run_on_other_data_may_be_tested_on_a_fraction_of_these(many, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("data: nih\nroot: elsewhere\n")
    assert DataConfig(data="table", root=str(many), test_fraction=0.2).resolved(run).test_fraction == 0.2


@pytest.mark.parametrize(
    ("said", "asked", "trained"),
    [
        ("data: table\nroot: /a/my.csv\n", {"data": "table", "root": "/moved/my.csv"}, True),
        ("data: table\nroot: /a/my.csv\n", {"data": "table", "root": "/a/theirs.csv"}, False),
        ("data: table\nroot: /a/my.csv\n", {}, True),
        ("data: table\n", {"data": "table", "root": "/a/my.csv"}, True),
        ("data: nih\nroot: /a/NIH\n", {"data": "nih", "root": "/b/other"}, True),
        ("data: nih\nroot: /a/NIH\n", {"data": "vindr", "root": "/a/NIH"}, False),
        ("epochs: 3\n", {"data": "nih", "root": "/a/NIH"}, False),
        (None, {"data": "nih", "root": "/a/NIH"}, False),
    ],
)
def test_which_collection_a_run_was_trained_on(tmp_path, said, asked, trained):
    if said is not None:
        (tmp_path / "config.yaml").write_text(said)
    assert DataConfig(**asked).trained(tmp_path) is trained
