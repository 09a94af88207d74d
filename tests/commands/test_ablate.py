"""The table of arms, seeds and folds, made of the scores that are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import yaml
from matplotlib.figure import Figure
from PIL import Image

import mxa.commands.ablate as job
from mxa.commands.ablate import AblateConfig, ablate
from mxa.commands.teach import TeachConfig, teach
from mxa.data import create_dataset
from mxa.evaluation.evaluate import EvaluateConfig, evaluate
from mxa.evaluation.runs import Run, read_runs, write_runs
from mxa.utils.errors import InputError

TINY = {"model": "efficientvit_ml_m0_mxa", "img_size": 64, "epochs": 1, "batch_size": 8, "workers": 0}
TWO = {**TINY, "data": "table", "seeds": (0,), "arms": ("baseline", "mxa"), "replicates": 20, "augment": "crop"}


def draw_little(monkeypatch) -> None:
    monkeypatch.setattr("mxa.evaluation.report.plots.encode", lambda figure: "")
    for figure in ("learning_figure", "boxes_figure"):
        monkeypatch.setattr(job, figure, lambda *args: Figure(figsize=(1, 1)))


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    draw_little(monkeypatch)


@pytest.fixture
def config(table, tmp_path):
    def build(**fields) -> AblateConfig:
        return AblateConfig(**{**TWO, "root": table, "output": tmp_path / "table", **fields})

    return build


@pytest.fixture(scope="module")
def both(table, tmp_path_factory):
    """A table of the baseline and MXA."""
    output = tmp_path_factory.mktemp("both") / "table"
    with pytest.MonkeyPatch.context() as patch:
        draw_little(patch)
        ablate(AblateConfig(**TWO, root=table, output=output))
    return output


@pytest.fixture
def begun(both, tmp_path):
    """A copy of that table, where ``config`` goes on."""
    return shutil.copytree(both, tmp_path / "table")


def cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_are_added_and_never_trained_again(config, begun, run, tmp_path, monkeypatch):
    folder = tmp_path / "table"
    result = ablate(config())
    text = (folder / "table.md").read_text()
    assert cells(text, "+ KD")[2] == cells(text, "+ MXA + KD")[2] == "not run"
    assert "numbers" not in result["rows"]["kd"] and len(result["paired"]) == 1
    before = read_runs(folder / "scores.parquet")
    assert [one.name for one in before] == ["baseline-seed0", "mxa-seed0"]
    times = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/model.safetensors")}
    result = ablate(config(arms=("mxa+kd",), teacher=str(run), seeds=(0, 1)))
    assert len(times) == 2 and all(path.stat().st_mtime_ns == time for path, time in times.items())
    after = read_runs(folder / "scores.parquet")
    assert [one.name for one in after] == [*(one.name for one in before), "mxa+kd-seed0", "mxa+kd-seed1"]
    for one, scores in before.items():
        assert np.array_equal(after[one].logits, scores.logits) and after[one].metadata == scores.metadata
    assert result["rows"]["mxa+kd"]["seeds"] == [0, 1] and result["rows"]["baseline"]["seeds"] == [0]
    text = (folder / "table.md").read_text()
    assert cells(text, "+ KD")[2] == "not run" and cells(text, "+ MXA + KD")[1] == "0, 1"
    settings = yaml.safe_load((folder / "runs" / "baseline-seed0" / "config.yaml").read_text())
    assert settings["model"] == "efficientvit_ml_m0" and settings["teacher"] is None
    assert (folder / "runs" / "mxa+kd-seed1" / "teacher.json").is_file()
    monkeypatch.undo()  # the pictures are drawn
    assert ablate(config(arms=("baseline",)))["rows"]["mxa+kd"]["seeds"] == [0, 1]  # without a teacher at hand
    assert {"report.html", "learning.png", "boxes.png", "metrics.json"} <= {p.name for p in folder.iterdir()}
    assert all(Image.open(folder / name).size[0] > 500 for name in ("learning.png", "boxes.png"))
    with pytest.raises(InputError, match="epochs was 1"):
        ablate(config(epochs=2))


def test_the_numbers_are_those_of_evaluate(config, begun, table, tmp_path):
    ours = ablate(config())["rows"]
    runs = tuple(str(tmp_path / "table" / "runs" / f"{arm}-seed0") for arm in ("baseline", "mxa"))
    where = {"data": "table", "root": table, "workers": 0, "replicates": 20}
    theirs = evaluate(EvaluateConfig(runs, tmp_path / "evaluated", **where))
    for arm, model in zip(("baseline", "mxa"), theirs["models"], strict=True):
        numbers = ours[arm]["numbers"]
        for name in ("macro_auc", "micro_auc", "macro_auc_interval", "loss", "f1"):
            assert numbers[name] == pytest.approx(model[name], rel=1e-5), name
        assert numbers["labels"]["Bright"]["temperature"] == pytest.approx(model["labels"]["Bright"]["temperature"])


def test_every_image_is_tested_in_its_fold(config, table, tmp_path):
    result = ablate(config(folds=3, arms=("baseline",), seeds=(4,)))
    numbers = result["rows"]["baseline"]["numbers"]
    assert (numbers["images"], numbers["patients"]) == (48, 24) and "chosen_on" not in numbers
    seen = []
    for fold in range(3):
        scores = pd.read_parquet(tmp_path / "table" / "scores.parquet", filters=[("fold", "==", fold)])
        assert set(scores["arm"]) == {"baseline"} and set(scores["seed"]) == {4}
        test, val = (set(scores["patient"][scores["split"] == split]) for split in ("test", "val"))
        train = set(create_dataset("table", table, "train", fold=(fold, 3)).records.patients.tolist())
        assert test and val and train and not (test & val or test & train or val & train)
        seen += list(test)
    assert len(seen) == len(set(seen)) == 24
    runs = read_runs(tmp_path / "table" / "scores.parquet")
    write_runs(tmp_path / "table" / "scores.parquet", {one: scores for one, scores in runs.items() if one.fold != 1})
    job._tables(config(folds=3))
    assert cells((tmp_path / "table" / "table.md").read_text(), "baseline")[2] == "not run"


def test_sigterm_stops_between_and_the_same_command_goes_on(config, tmp_path, monkeypatch):
    fit, calls = job.fit, []

    def interrupted(*args):
        calls.append(args[0].output.name)
        if len(calls) == 2:
            return {"stopped": "SIGTERM"}
        return fit(*args)

    monkeypatch.setattr(job, "fit", interrupted)
    result = ablate(config())
    assert result["stopped"] and "numbers" not in result["rows"]["mxa"] and "numbers" in result["rows"]["baseline"]
    result = ablate(config())
    assert not result["stopped"] and "numbers" in result["rows"]["mxa"]
    assert calls == ["baseline-seed0", "mxa-seed0", "mxa-seed0"]


def test_the_table_needs_no_run_folders(config, begun, tmp_path):
    first = ablate(config())
    before = {name: (tmp_path / "table" / name).read_bytes() for name in ("table.md", "learning.png", "boxes.png")}
    shutil.rmtree(tmp_path / "table" / "runs")
    again = ablate(config())
    assert json.dumps(first["rows"]) == json.dumps(again["rows"])
    assert before == {name: (tmp_path / "table" / name).read_bytes() for name in before}
    assert "| baseline-seed0 | 1 |" in before["table.md"].decode()  # its epoch is known without its folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "efficientvit_ml_m0"}, "has no MXA"),
        ({"arms": ("mxa+kd",)}, "need --teacher"),
        ({"seed": 3}, "leave --seed"),
        ({"folds": 1}, "--folds must be at least 2"),
        ({"seeds": ()}, "at least one"),
        ({"lr": -1.0}, "--lr must be between"),
        ({"opt": "nothing"}, "unknown optimizer"),
        ({"arms": ("mxa+kd",), "teacher": "nowhere"}, "unknown model 'nowhere'"),
        ({"arms": ("mxa+kd",), "teacher": "nowhere.parquet"}, r"nowhere\.parquet"),
        ({"folds": 60}, "no test split"),
        ({"arms": ("mxa2",)}, "'mxa2' is not one of baseline, mxa, kd, mxa\\+kd: give NAME"),
        ({"arms": ("mxa: {lr: 1}",)}, "'mxa' is the paper's"),
        ({"arms": ("a: {seed: 1}",)}, "cannot change seed"),
        ({"arms": ("a: {learning_rate: 1}",)}, "no field learning_rate"),
        ({"arms": ("a: {lr: much}",)}, "the arm 'a': lr must be a number, got 'much'"),
        ({"arms": ("a: {lr: -1}",)}, "--lr must be between"),
        ({"arms": ("a: {}", "a: {lr: 1}")}, "'a' is given twice"),
        ({"arms": ("a/b: {}",)}, "names files"),
        ({"arms": ("a: 3",)}, "must be NAME or NAME: {field: value}"),
        ({"arms": ("a: {",)}, "must be NAME or NAME: {field: value}"),
        ({"arms": ("a: {model_args: nothing}",)}, "--model-args must be like"),
        ({"arms": ("a: {model_args: {checkpoint_path: x.pt}}",)}, "--model-args cannot set checkpoint_path"),
        ({"arms": ("a: {augment: nonsense}",)}, "augment must be one of crop, paper, better, got 'nonsense'"),
        ({"arms": ("a: {scale: 0.8}",)}, "scale must be a list of 2, got 0.8"),
        ({"arms": ("a: {lr: null}",)}, "lr must be a number, got None"),
        ({"arms": ("a: {channels_last: 'no'}",)}, "channels_last must be true or false"),
        ({"arms": ("a: {epochs: 2.7}",)}, "epochs must be a whole number, got 2.7"),
        ({"arms": ("a: {model: nosuchmodel}",)}, "unknown model 'nosuchmodel'"),
        ({"arms": ("a: {model_args: {nosuch: 1}}",)}, "nosuch"),
        ({"arms": ("a: {init: nosuchfile.pt}",)}, "nosuchfile"),
        ({"arms": ("$a$: {}",)}, "names files"),
        ({"arms": ("'a, b': {}",)}, "names files"),
        ({"arms": ("+ mxa: {}",)}, "what a row of the paper's is called"),
        ({"arms": ("a: {}", "A: {}")}, "given twice"),
        ({"arms": ("mxa",), "model": "resnet10t"}, "has no MXA"),
        ({"arms": ("mxa",), "split": "val", "folds": 3}, "leave --split val out"),
    ],
)
def test_bad_input_writes_nothing(config, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        ablate(config(**fields))
    assert not (tmp_path / "table").exists()


def test_another_folder_is_not_taken(config, tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no table"):
        ablate(config())


def test_folds_are_stratified_and_do_not_depend_on_the_order(table):
    from mxa.data.create import read_collection
    from mxa.data.splits import fold_splits

    records = read_collection("table", table)
    shares = []
    for fold in range(4):
        splits = fold_splits(records, fold, 4).splits
        order = np.random.default_rng(fold).permutation(len(records))
        assert (fold_splits(records.subset(order), fold, 4).splits == splits[order]).all()
        shares.append((records.targets[splits == "test"] == 1).sum(0))
    assert np.ptp(np.array(shares)[:, 2]) <= 6  # Bright, in images; patients have two
    with pytest.raises(InputError, match="no fold 4 of 4"):
        fold_splits(records, 4, 4)


def test_folds_do_not_leak_through_a_teacher(config, run, tmp_path):
    options = {"arms": ("kd",), "folds": 2}
    message = "was trained on table, whose training patients test in other folds"
    with pytest.raises(InputError, match=f"--teacher .* {message}"):
        ablate(config(**options, teacher=str(run)))
    with pytest.raises(InputError, match=f"--init .* {message}"):
        ablate(config(arms=("mxa",), folds=2, init=str(run)))
    output = tmp_path / "teacher.parquet"
    teach(TeachConfig(str(run), output, data="table", root=config().root, split="all", workers=0))
    with pytest.raises(InputError, match=message):
        ablate(config(**options, teacher=str(output)))
    assert not (tmp_path / "table").exists()


def test_logits_of_too_few_images_are_refused_before_the_first_run(config, run, tmp_path):
    content = {"image": ["0.png", "1.png"], "logit:Bright": [0.5, -0.5]}
    pd.DataFrame(content).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(InputError, match="has no score of"):
        ablate(config(arms=("baseline", "kd"), teacher=str(tmp_path / "few.parquet")))
    assert not (tmp_path / "table").exists()


def test_a_teacher_that_has_changed_starts_another_table(config, begun, run, tmp_path):
    teacher = shutil.copytree(run, tmp_path / "teacher")
    ablate(config(arms=("baseline", "kd"), teacher=str(teacher)))
    ablate(config(arms=("baseline",)))  # without it at hand
    ablate(config(arms=("kd",), teacher=str(teacher)))
    weights = safetensors.torch.load_file(teacher / "model.safetensors")
    safetensors.torch.save_file({k: v + 1 for k, v in weights.items()}, teacher / "model.safetensors")
    with pytest.raises(InputError, match=r"holds runs of another .*teacher, which has changed since"):
        ablate(config(arms=("kd",), teacher=str(teacher), seeds=(0, 1)))


def test_what_the_teacher_adds_to_mxa_is_told(config, begun, run):
    result = ablate(config(arms=("baseline", "mxa", "mxa+kd"), teacher=str(run)))
    assert [(p["name"], p["minus"]) for p in result["paired"]] == [
        ("+ MXA", "baseline"),
        ("+ MXA + KD", "baseline"),
        ("+ MXA + KD", "+ MXA"),
    ]


GATE = {"gate at 0": {"model_args": {"mxa_init_values": 0.0}, "lr": "2e-3"}}


def test_arms_of_ones_own_stand_beside_the_papers(config, tmp_path):
    folder = tmp_path / "table"
    result = ablate(config(arms=("mxa", '"gate at 0": {model_args: {mxa_init_values: 0.0}, lr: 2e-3}')))
    assert [p["name"] for p in result["paired"]] == ["gate at 0"] and result["rows"]["mxa"]["seeds"] == [0]
    settings = yaml.safe_load((folder / "runs" / "gate at 0-seed0" / "config.yaml").read_text())
    assert settings["lr"] == 2e-3 and settings["model"] == "efficientvit_ml_m0_mxa"
    saved = json.loads((folder / "runs" / "gate at 0-seed0" / "config.json").read_text())
    assert saved["model_args"]["mxa_init_values"] == 0.0
    text = (folder / "table.md").read_text()
    assert '- gate at 0: model_args {"mxa_init_values": 0.0}, lr 0.002' in text and cells(text, "gate at 0")[1] == "0"
    again = ablate(config(arms=(GATE,)))  # the same arm as a dict; nothing is trained
    assert json.dumps(again["rows"]) == json.dumps(result["rows"])
    with pytest.raises(InputError, match="holds the arm 'gate at 0' with other fields"):
        ablate(config(arms=({"gate at 0": {"lr": 1e-3}},)))


def test_a_table_of_ones_own_arms_alone_needs_no_mxa(config, tmp_path):
    arms = ({"plain": {"model": "test_resnet"}}, {"longer": {"model": "test_resnet", "epochs": 2}})
    result = ablate(config(model="resnet14t", arms=arms))
    assert list(result["rows"]) == ["plain", "longer"]
    text = (tmp_path / "table" / "table.md").read_text()
    assert "not run" not in text and "resnet14t" not in text  # which no arm has


def test_choosing_on_validation_patients_never_reads_the_test_part(config, table, tmp_path, monkeypatch):
    asked = []

    def watched(data, root, split, *args, **kwargs):
        asked.append(split)
        return create_dataset(data, root, split, *args, **kwargs)

    monkeypatch.setattr("mxa.data.create.create_dataset", watched)
    result = ablate(config(split="val"))
    assert set(asked) == {"train", "val"}
    val = create_dataset("table", table, "val")
    assert result["rows"]["mxa"]["numbers"]["images"] == len(val)
    assert "chosen_on" not in result["rows"]["mxa"]["numbers"]
    scores = pd.read_parquet(tmp_path / "table" / "scores.parquet", filters=[("arm", "==", "mxa")])
    assert set(scores["split"]) == {"val"} and len(scores) == len(val)
    assert "validation split: to choose, not to report" in (tmp_path / "table" / "table.md").read_text()
    with pytest.raises(InputError, match="split was 'val'"):
        ablate(config())


def test_an_arm_is_the_same_however_it_is_written(config):
    first = '"x": {scale: [0.5, 1.0], model_args: {mxa_init_values: 1e-5, mxa_roi_head: mean}}'
    second = {"x": {"scale": (0.5, 1.0), "model_args": "{mxa_roi_head: mean, mxa_init_values: 0.00001}"}}
    result = ablate(config(arms=(first,)))
    assert json.dumps(ablate(config(arms=(second,)))["rows"]) == json.dumps(result["rows"])


def test_folds_do_not_leak_through_an_arm(config, run, tmp_path):
    for field in ("teacher", "init"):
        arm = {"x": {"model": "efficientvit_ml_m0_mxa", field: str(run)}}
        with pytest.raises(InputError, match=f"--{field} .* whose training patients test in other folds"):
            ablate(config(arms=(arm,), folds=2))
    assert not (tmp_path / "table").exists()


def test_two_processes_fill_one_table(config, tmp_path):
    """Each adds an arm of its own; neither loses the other's."""
    code = """
import sys
from pathlib import Path
import mxa.commands.ablate as job
from mxa.commands.ablate import AblateConfig, ablate
from mxa.evaluation.report import plots
plots.encode, job._pictures = lambda figure: "", lambda *args: None
root, output, arm = sys.argv[1:]
shared = {"data": "table", "root": root, "output": Path(output), "replicates": 20, "augment": "crop", "workers": 0}
small = {"model": "test_resnet", "img_size": 64, "epochs": 1, "batch_size": 8}
ablate(AblateConfig(seeds=(0, 1), arms=({arm: {}},), **small, **shared))
"""
    arguments = [str(config().root), str(tmp_path / "table")]
    both = [subprocess.Popen([sys.executable, "-c", code, *arguments, arm], stderr=subprocess.PIPE) for arm in "pq"]
    errors = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    text = (tmp_path / "table" / "table.md").read_text()
    assert cells(text, "p")[1] == cells(text, "q")[1] == "0, 1"


def test_scores_of_no_arm_are_named(config, begun, tmp_path):
    path = tmp_path / "table" / "scores.parquet"
    write_runs(path, {Run("other", 0): one for one in read_runs(path).values()})
    with pytest.raises(InputError, match=r"scores\.parquet holds 'other-seed0', a run of no arm of this table"):
        ablate(config(arms=("baseline",)))


def test_a_kill_while_scores_are_written_loses_no_finished_run(config, tmp_path, monkeypatch):
    ablate(config(arms=("baseline",)))
    path = tmp_path / "table" / "scores.parquet"
    before = path.read_bytes()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pyarrow.parquet.write_table", killed)
        ablate(config())
    assert path.read_bytes() == before
    assert [one.name for one in read_runs(path)] == ["baseline-seed0"]
    result = ablate(config())
    assert result["rows"]["baseline"]["seeds"] == result["rows"]["mxa"]["seeds"] == [0]


def test_the_table_of_the_scores_and_settings_alone(config, begun, tmp_path):
    """A copy of ablation.yaml and scores.parquet gives the same table, and goes on."""
    first = ablate(config())
    (tmp_path / "copy").mkdir()
    for name in ("ablation.yaml", "scores.parquet"):
        shutil.copy(tmp_path / "table" / name, tmp_path / "copy")
    settings = tmp_path / "copy" / "ablation.yaml"
    older, dropped = re.subn(r"^(eval_metric|mixup):.*\n", "", settings.read_text(), flags=re.M)  # were no settings yet
    assert dropped == 2
    settings.write_text(older)
    again = ablate(config(output=tmp_path / "copy"))
    assert json.dumps(again["rows"]) == json.dumps(first["rows"])
    assert (tmp_path / "copy" / "table.md").read_text() == (tmp_path / "table" / "table.md").read_text()
    assert ablate(config(output=tmp_path / "copy", seeds=(0, 1)))["rows"]["mxa"]["seeds"] == [0, 1]


@pytest.mark.parametrize("damaged", ["arms: [a]", "arms: {a: 1}", "teachers: [a]", "arms: a", "&a [*a]", "- a"])
def test_a_damaged_table_is_one_line(table, tmp_path, damaged):
    (tmp_path / "ablation.yaml").write_text(damaged)
    with pytest.raises(InputError, match=r"ablation\.yaml") as error:
        ablate(AblateConfig(tmp_path, data="table", root=str(table), img_size=64, arms=("baseline",)))
    assert "\n" not in str(error.value)
