import json
import shutil
from pathlib import Path

import pytest
import yaml

import mxa
from mxa import cli
from mxa.commands.ablate import AblateConfig
from mxa.training.loop import TrainConfig


def run_cli(capsys, *arguments):
    cli.main([str(a) for a in arguments])
    return capsys.readouterr()


def test_the_four_commands_as_the_readme_has_them(table, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    data = ("--data", "table", "--root", table)
    small = ("--img-size", 64, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    shown = run_cli(capsys, "train", *data, "--model", "efficientvit_ml_m0_mxa", *small, "--seed", 1, "--output", run)
    assert "kept: epoch 1, validation macro AUC" in shown.out
    shown = run_cli(capsys, "evaluate", run, *data, "--output", out, "--replicates", 20, "--skip-bad", "--workers", 0)
    assert "macro AUC" in shown.out
    assert "12 images of 6 patients" in shown.out
    assert "undefined" in shown.out
    assert json.loads((out / "metrics.json").read_text())["models"][0]["images"] == 12
    assert "called" not in run_cli(capsys, "predict", table.parent / "0.png", "--model", run).out
    shown = run_cli(capsys, "calibrate", run, *data, "--workers", 0)
    assert "left as the model gives them, for want of validation cases: Edema, Mass\n" in shown.out
    shown = run_cli(capsys, "predict", table.parent / "0.png", "--model", run, "--calibrated", "youden")
    assert "called" in shown.out and "calibrated, called at the threshold of youden" in shown.err
    picture = tmp_path / "rois.png"
    image = table.parent / "0.png"
    shown = run_cli(capsys, "predict", image, "--model", run, "--format", "json", "--rois", picture)
    assert set(json.loads(shown.out)[0]["probabilities"]) == {"Edema", "Mass", "Bright"}
    assert picture.exists()
    shown = run_cli(capsys, "predict", "--model", run, image, table.parent / "1.png")
    assert "Bright" in shown.out


def test_config_file_with_overrides(table, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: table\nroot: {table}\nmodel: efficientvit_ml_m0\nimg_size: 64\nepochs: 3\nbatch_size: 8\n"
        "workers: 0\nscale: [0.9, 1.0]\n"
    )
    run_cli(capsys, "train", "--config", recipe, "--epochs", 1, "--output", tmp_path / "run")
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert "epochs: 1\n" in written
    assert "- 0.9\n" in written
    recipe.write_text("lr: 1e-3\nratio: [9e-1, 1.1]\nlabels: [Edema, Bright]\n" + recipe.read_text())
    run_cli(capsys, "train", f"--config={recipe}", "--epochs", 1, "--output", tmp_path / "second")
    written = (tmp_path / "second" / "config.yaml").read_text()
    assert "lr: 0.001\n" in written and "ratio:\n- 0.9\n" in written
    recipe.write_text("epochs: 3\n  lr: 1\n")
    with pytest.raises(SystemExit, match=r"cannot read .*recipe\.yaml: line 2: [^\n]*$"):
        run_cli(capsys, "train", "--config", recipe, "--output", tmp_path / "other")
    recipe.write_text("[epochs, 3]\n")
    with pytest.raises(SystemExit, match=r"recipe\.yaml must hold lines of name: value"):
        run_cli(capsys, "train", "--config", recipe, "--output", tmp_path / "other")
    recipe.write_text("epochs: two\n")
    with pytest.raises(SystemExit, match="epochs must be a whole number, got 'two'"):
        run_cli(capsys, "train", "--config", recipe, "--output", tmp_path / "other")
    for wrong in ("epochs: 2.7", "epochs: true", "amp: fp8", "scale: [0.9]", "augment: 3"):
        recipe.write_text(wrong)
        with pytest.raises(SystemExit, match=f"recipe.yaml: {wrong.partition(':')[0]} must be"):
            run_cli(capsys, "train", "--config", recipe, "--output", tmp_path / "other")
    recipe.write_text("epoch: 3\n")
    with pytest.raises(SystemExit, match=r"no field epoch \(perhaps epochs\)"):
        run_cli(capsys, "train", "--config", recipe, "--output", tmp_path / "other")


def test_run_config_is_a_recipe(run, tmp_path, capsys):
    run_cli(capsys, "train", "--config", run / "config.yaml", "--epochs", 1, "--output", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--data", "nih", "--output", "x"), "mxa train: collection 'nih' needs --root"),
        (("train", "--data", "nih", "--root", "/nowhere", "--output", "x"), "no such folder or file: /nowhere"),
        (("train", "--model", "vit_nothing", "--output", "x"), "unknown model 'vit_nothing'"),
        (("evaluate", "nowhere", "--output", "x"), "unknown model 'nowhere'"),
        (("evaluate", "efficientvit_ml_m0", "--output", "x"), "no weights are published"),
        (("predict", "none.png", "--model", "efficientvit_ml_m0"), "no weights are published"),
        (("bench", "models", "--models", "nothing"), "nothing"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        cli.main(list(arguments))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line_once(table, tmp_path, capsys):
    table = shutil.copytree(table.parent, tmp_path / "data") / "table.csv"
    table.write_text(table.read_text().replace("patient", "person"))
    where = ("--model", "efficientvit_ml_m0", "--data", "table", "--root", table, "--labels", "Bright")
    small = ("--img-size", 64, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    said = run_cli(capsys, "train", *where, *small, "--output", tmp_path / "run").err
    lines = [line for line in said.splitlines() if "patient of its own" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: ")
    assert ".py" not in said


def test_missing_extra_is_named(table, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit, match=r'pyarrow is not installed: run pip install "mxa\[data\]"'):
        cli.main(["predict", str(table.parent / "0.png"), "--output", str(tmp_path / "x.parquet")])
    assert not (tmp_path / "x.parquet.parts").exists()


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["nothing"])
    assert error.value.code == 2
    with pytest.raises(SystemExit) as error:
        cli.main(["--help"])
    assert error.value.code == 0
    shown = capsys.readouterr()
    for command in ("train", "evaluate", "predict", "bench models"):
        assert f"mxa {command}" in shown.out
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("mxa 0.")
    with pytest.raises(SystemExit) as error:
        cli.main(["train", "--help"])
    assert error.value.code == 0
    assert "--layer-decay" in capsys.readouterr().out


RECIPES = sorted(p.stem for p in (Path(mxa.__file__).parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_delta_with_a_header(name):
    text = (Path(mxa.__file__).parent / "recipes" / f"{name}.yaml").read_text()
    ablation = name == "paper_ablation"
    for word in (
        f"# Command:   mxa {'ablate' if ablation else 'train'} --recipe {name}",
        "# Hardware:",
        "# Duration:",
        "# Expected:",
    ):
        assert word in text
    values = yaml.safe_load(text)
    defaults = (AblateConfig if ablation else TrainConfig)("x")
    assert all(getattr(defaults, k) != v for k, v in values.items() if k not in ("min_lr", "lr", "uncertain"))


def test_a_recipe_is_read_and_overridden(table, tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("mxa.training.loop.train", seen.append)
    with pytest.raises(TypeError):
        run_cli(
            capsys,
            "train",
            "--recipe",
            "paper_mxa",
            "--epochs",
            15,
            "--data",
            "table",
            "--root",
            table,
            "--output",
            tmp_path / "r",
        )
    assert (seen[0].model, seen[0].epochs, seen[0].weight_decay, seen[0].ema) == (
        "efficientvit_ml_m5_mxa",
        15,
        0.025,
        0.99996,
    )
    names = "fast, nih8k_m0_mxa, paper_ablation, paper_baseline, paper_mxa, paper_mxa_kd"
    with pytest.raises(SystemExit, match=f"no recipe 'best': give one of {names}"):
        run_cli(capsys, "train", "--recipe=best", "--output", tmp_path / "r")
    with pytest.raises(SystemExit, match=r"give one --config FILE\.yaml or one --recipe NAME"):
        run_cli(capsys, "train", "--recipe", "fast", "--config", "x.yaml", "--output", tmp_path / "r")
