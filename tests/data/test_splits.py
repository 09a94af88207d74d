"""Splits are whole patients: cut by a hash, stratified by label; overlaps and duplicates are errors."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest

from mxa.data import Records, create_dataset
from mxa.data.records import text_column
from mxa.data.splits import check_disjoint, check_unique, cut, divide
from mxa.utils.errors import InputError

from .helpers import edit


def collection(patients: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two images a patient; labels of 40, 10, 2 and 0.3 %."""
    rng = np.random.default_rng(seed)
    names = text_column(f"p{i}" for i in np.repeat(rng.permutation(patients), 2))
    targets = (rng.random((2 * patients, 4)) < (0.4, 0.1, 0.02, 0.003)).astype(np.float32)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    return names, targets


def test_a_cut_is_a_share_of_the_patients_and_whole():
    patients, targets = collection()
    chosen = cut(patients, targets, 10)
    assert set(patients[chosen]).isdisjoint(patients[~chosen])
    assert len(set(patients[chosen])) == pytest.approx(300, abs=3)


def test_a_cut_holds_its_share_of_every_label():
    patients, targets = collection()
    chosen = cut(patients, targets, 10)
    for label, slack in ((0, 20), (1, 3), (2, 2), (3, 1)):  # the rarer, the closer
        of_label = set(patients[targets[:, label] == 1])
        assert len(of_label & set(patients[chosen])) == pytest.approx(0.1 * len(of_label), abs=slack), label
    rng, names = np.random.default_rng(1), np.unique(patients)  # by lot alone, to show that the bound means something
    lots = [len(set(rng.permutation(names)[:300]) & set(patients[targets[:, 1] == 1])) for _ in range(20)]
    assert max(lots) - min(lots) > 10


def test_a_rare_label_reaches_the_cut():
    patients = text_column(f"p{i}" for i in range(1000))
    targets = np.zeros((1000, 2), np.float32)
    targets[:3, 0] = 1
    chosen = cut(patients, targets, 10)
    assert targets[chosen, 0].sum() == 1
    assert cut(patients[:2], targets[:2], 10).sum() == 1  # two patients: one trains, one validates
    assert cut(patients[:1], targets[:1], 10).sum() == 0


def test_a_cut_depends_on_neither_order_nor_process():
    patients, targets = collection(400)
    chosen = cut(patients, targets, 10)
    order = np.random.default_rng(3).permutation(len(patients))
    np.testing.assert_array_equal(cut(patients[order], targets[order], 10), chosen[order])
    code = (
        "import sys, numpy as np; from mxa.data.splits import cut; rng = np.random.default_rng(0);"
        "t = (rng.random((200, 2)) < .3).astype('f4'); p = np.array([f'p{i}' for i in range(200)]);"
        "print(cut(p, t, 10).nonzero())"
    )
    seed = {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}  # another one than here
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=seed).stdout
    here = io.StringIO()
    with redirect_stdout(here):
        exec(code, {})
    assert there == here.getvalue() != ""
    other = cut(patients, targets, 10, salt="test-")
    assert (other != chosen).any()


def records(patients: str, splits: list[str]) -> Records:
    n = len(patients)
    return Records(("Edema",), (f"{i}.png" for i in range(n)), np.zeros((n, 1)), list(patients), splits=splits)


def test_only_what_a_collection_does_not_divide_is_cut():
    everyone = [chr(65 + i) for i in range(20)]
    mine = divide(records(everyone, ["train"] * 20), test_percent=20)
    assert sorted(set(mine.splits)) == ["test", "train", "val"]
    assert (mine.splits == "test").sum() == 4 and (mine.splits == "val").sum() == 2
    official = ["test"] * 5 + [""] * 5 + ["train"] * 10
    theirs = divide(records(everyone, official), test_percent=20)
    assert (theirs.splits[:10] == np.array(official[:10])).all()
    assert (theirs.splits[10:] == "val").sum() == 1
    given = ["test", "val"] * 10
    assert divide(records(everyone, given)).splits.tolist() == given


def test_a_patient_in_two_parts_is_an_error_that_names_files_only():
    check_disjoint(records("AABBCC", ["train", "train", "val", "val", "test", ""]), "here")
    with pytest.raises(InputError, match=r"here: 1 patient\(s\).*of 1.png and 3.png") as error:
        check_disjoint(records("BZBZ", ["train", "train", "train", "test"]), "here")
    assert "Z" not in str(error.value)


def test_an_image_named_twice_is_an_error():
    check_unique(records("AAB", ["train"] * 3), "here")
    twice = Records(("Edema",), ["a.png", "b.png", "a.png"], np.zeros((3, 1)), ["1", "2", "3"])
    with pytest.raises(InputError, match=r"here: 1 image\(s\) have more than one row, such as a\.png"):
        check_unique(twice, "here")


def test_overlaps_and_duplicates_reach_the_user(made_nih, made_table, made_chexpert):
    root = made_nih(lists=True)
    edit(root / "test_list.txt", "00000006_000.png\n", "")
    with (root / "train_val_list.txt").open("a") as file:
        file.write("\n00000006_000.png")
    with pytest.raises(InputError, match=r"nih .*1 patient\(s\) are in more than one split.*00000006_000"):
        create_dataset("nih", root, "train")
    table = made_table()
    edit(table, "files/1.png", "files/0.png")
    with pytest.raises(InputError, match=r"table .*1 image\(s\) have more than one row, such as files/0\.png"):
        create_dataset("table", table, "train")
    root = made_chexpert()
    edit(root / "valid.csv", "patient64541", "patient00002")
    with pytest.raises(
        InputError, match=r"train\.csv has patients of .*valid\.csv, such as the one of .*patient00002/study1"
    ):
        create_dataset("chexpert", root, "train")


@pytest.mark.parametrize("seed", range(30))
def test_every_label_whose_share_is_a_patient_reaches_the_cut(seed):
    rng = np.random.default_rng(seed)
    patients = text_column(f"p{i}" for i in range(60))
    targets = (rng.random((60, 6)) < rng.uniform(0.05, 0.5, 6)).astype(np.float32)
    chosen = cut(patients, targets, 10)
    enough = targets.sum(0) >= 10
    assert targets[chosen].any(0)[enough].all() and chosen.sum() <= 15


def test_the_order_of_the_labels_does_not_move_the_cut(made_table):
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 3)) < 0.2).astype(np.float32)
    patients, paths = [f"p{i}" for i in range(300)], [f"{i}.png" for i in range(300)]
    forward = divide(Records(("Edema", "Mass", "Hernia"), paths, targets, patients))
    backward = divide(Records(("Hernia", "Mass", "Edema"), paths, targets[:, ::-1], patients))
    assert forward.splits.tolist() == backward.splits.tolist()


@pytest.mark.parametrize("labels", ["Edema", "Mass,Effusion", ["Effusion", "Edema", "Hernia"]])
def test_the_labels_wanted_do_not_move_the_cut(made_table, labels):
    path = made_table(without=("split",))
    for split in ("train", "val"):
        wanted = create_dataset("table", path, split, labels=labels, views="all")
        assert wanted.filenames() == create_dataset("table", path, split, views="all").filenames()
