import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import mxa
import mxa.training.loop as job
from mxa.commands import output
from mxa.commands.convert import ConvertConfig, convert
from mxa.data import create_dataset, create_transform
from mxa.models.load import load_model
from mxa.models.weights import save_pretrained
from mxa.task import MultiLabelTask
from mxa.training.loop import TrainConfig, build_model, fit, train
from mxa.utils.errors import InputError


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_run_folder(run):
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml",
        "local.yaml",
        "log.csv",
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "model.safetensors",
        "config.json",
        "summary.json",
    }
    log = rows(run / "log.csv")
    assert [row["epoch"] for row in log] == [str(i) for i in range(6)]
    assert float(log[-1]["train_loss"]) < float(log[0]["train_loss"])
    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    assert mxa.label_names(model) == ("Edema", "Mass", "Bright")
    assert model.img_size == 64
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"] == "efficientvit_ml_m0_mxa"
    assert settings["epochs"] == 6


def test_arguments_of_the_model_are_kept_with_it(config, tmp_path):
    grafted = "{base: vit_tiny_patch16_224, depth: 2, grafted: {last: 1, init_values: 0.5}}"
    train(config(model="mxa_grafted", model_args=grafted, epochs=1))
    model = load_model(tmp_path / "run")
    assert model.patch_embed.img_size == (64, 64) and len(model.blocks) == 2
    assert sum(hasattr(block.attn, "mxa") for block in model.blocks) == 1
    with pytest.raises(InputError, match="--model-args cannot set img_size"):
        train(config(model_args="img_size: 64", output=tmp_path / "other"))
    with pytest.raises(InputError, match="has no argument roi"):
        train(config(model_args="roi: mean", output=tmp_path / "other"))


def test_keeps_the_best_epoch(run):
    log = rows(run / "log.csv")
    best = max(range(6), key=lambda i: (float(log[i]["eval_macro_auc"]), -i))
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert saved["best"]["epoch"] == best
    assert saved["best"]["macro_auc"] == pytest.approx(float(log[best]["eval_macro_auc"]))
    assert float(log[best]["eval_macro_auc"]) > 0.6


@pytest.mark.parametrize(
    ("metric", "losses", "aucs", "kept", "said"),
    [
        ("macro_auc", (0.3, 0.1, 0.2), (0.6, 0.5, 0.8), 2, "kept: epoch 3, validation macro AUC 0.8000"),
        ("loss", (0.3, 0.1, 0.2), (0.6, 0.5, 0.8), 1, "kept: epoch 2, validation loss 0.1000"),
        # no label in the validation split: the last
        ("loss", (math.nan,) * 3, (math.nan,) * 3, 2, "kept: epoch 3"),
    ],
)
def test_keeps_the_best_epoch_by_the_metric(config, monkeypatch, capsys, metric, losses, aucs, kept, said):
    scores = [{"loss": loss, "macro_auc": auc} for loss, auc in zip(losses, aucs, strict=True)]
    left = iter(scores)
    monkeypatch.setattr(job, "_validate", lambda *args: next(left))
    settings = config(epochs=3, eval_metric=metric)
    summary = train(settings)
    assert summary["epoch"] == kept
    output.train(settings, summary)
    assert said in capsys.readouterr().out.splitlines()
    np.testing.assert_equal({name: summary[name] for name in scores[kept]}, scores[kept])
    assert train(config(epochs=3, eval_metric=metric, resume="auto"))["epoch"] == kept


def test_convert_takes_out_the_last_epoch(run, tmp_path):
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    convert(ConvertConfig(run / "checkpoint.pt", tmp_path / "last", img_size=64))
    last = load_model(tmp_path / "last")
    assert mxa.label_names(last) == mxa.label_names(load_model(run))
    for name, value in last.state_dict().items():
        assert torch.equal(value, saved["model"][name]), name


def test_without_validation_labels_there_is_no_loss(config, table):
    blank = create_dataset("table", table, "val")
    blank.records.targets[:] = np.nan
    assert math.isnan(fit(config(epochs=1), create_dataset("table", table, "train"), blank)["loss"])


def test_same_seed_same_weights_with_workers(config, tmp_path):
    train(config(output=tmp_path / "a", epochs=1))
    train(config(output=tmp_path / "b", epochs=1, workers=2))
    train(config(output=tmp_path / "c", epochs=1, seed=1))
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_resume_needs_the_same_settings(config, run):
    with pytest.raises(InputError, match=r"holds checkpoint\.pt: add --resume auto"):
        train(config(output=run))
    with pytest.raises(InputError, match=r"epochs was 6"):
        train(config(output=run, resume="auto", epochs=7))


def test_resume_needs_the_same_rows(config, run, table, tmp_path):
    renamed = shutil.copytree(table.parent, tmp_path / "renamed") / table.name
    renamed.write_text(table.read_text().replace("Mass", "Nodule", 1))
    shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(InputError, match="--resume: other label names than the run had"):
        train(config(output=tmp_path / "copy", root=renamed, epochs=6, resume="auto"))


def test_nothing_to_learn_is_refused(config, table, tmp_path):
    blank = tmp_path / "blank.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    blank.write_text("\n".join(",".join(row[:4] + ([row[4]] if i == 0 else [""])) for i, row in enumerate(lines)))
    with pytest.raises(InputError, match="nothing to learn"):
        train(config(root=blank))


def test_a_missing_validation_image_is_said_before_the_first_epoch(config, table, tmp_path):
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text(table.read_text())
    with pytest.raises(InputError, match="a validation image"):
        train(config(root=elsewhere))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "efficientvit_ml_m9"}, "unknown model 'efficientvit_ml_m9'"),
        ({"labels": "Edema,Nonsense"}, "Nonsense"),
        ({"freeze": "backbone"}, "needs --init"),
        ({"init": "efficientvit_ml_m0_mxa"}, "no weights are published"),
        ({"init": "nowhere.pt"}, "nowhere.pt"),
        ({"epochs": 0}, "--epochs must be between 1 and"),
        ({"opt": "nothing"}, "unknown optimizer 'nothing'"),
        ({"model": "efficientvit_ml_m0.r224_in1k"}, "give --init efficientvit_ml_m0.r224_in1k"),
        ({"lr": -1.0}, "--lr must be between"),
        ({"scale": (2.0, 3.0)}, "--scale must be between"),
        ({"scale": (1.0, 0.5)}, r"--scale must be a range, the lower end first, got \(1\.0, 0\.5\)"),
        ({"ratio": (1.1, 0.9)}, r"--ratio must be a range, the lower end first, got \(1\.1, 0\.9\)"),
        ({"labels": "Fracture"}, "none of the labels Fracture; the collection has"),
        ({"device": "nowhere"}, "--device nowhere"),
        ({"root": None}, "needs --root"),
    ],
)
def test_bad_input_writes_nothing(config, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        train(config(**fields))
    assert not (tmp_path / "run").exists()


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(config, tmp_path, monkeypatch):
    from mxa.task import MultiLabelTask

    forward, calls = MultiLabelTask.forward, []

    def broken(self, *args):
        calls.append(1)
        result = forward(self, *args)
        return {**result, "loss": result["loss"] * (float("nan") if len(calls) > 3 else 1)}

    monkeypatch.setattr(MultiLabelTask, "forward", broken)
    with pytest.raises(InputError, match="loss became nan in epoch 2"):
        train(config())
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 1


def test_fine_tuning_keeps_head_rows_by_name(config, run):
    labels = ("Bright", "Hernia", "Edema")
    model = build_model(config(), labels)
    from mxa.models.load import init_weights

    init_weights(model, str(run))
    origin = load_model(run)
    assert torch.equal(model.head.linear.weight[0], origin.head.linear.weight[2])
    assert torch.equal(model.head.linear.weight[2], origin.head.linear.weight[0])
    assert not torch.equal(model.head.linear.weight[1], origin.head.linear.weight[1])
    assert torch.equal(model.stages[0].blocks[0].mixer.mxa.ls.gamma, origin.stages[0].blocks[0].mixer.mxa.ls.gamma)


def test_frozen_backbone_does_not_move(config, run, tmp_path):
    train(config(init=str(run), freeze="backbone", labels="Bright,Edema", epochs=1, lr=0.1))
    before, after = load_model(run).state_dict(), load_model(tmp_path / "run").state_dict()
    changed = {k for k in before if before[k].shape != after[k].shape or not torch.equal(before[k], after[k])}
    assert changed
    assert all(k.startswith("head.") for k in changed)


def test_frozen_plain_backbone_trains_mxa(config, tmp_path):
    train(config(model="efficientvit_ml_m0", epochs=1, output=tmp_path / "plain"))
    train(config(init=str(tmp_path / "plain"), freeze="backbone", epochs=1))
    before, after = load_model(tmp_path / "plain").state_dict(), load_model(tmp_path / "run").state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith("head."))
    fresh = timm.create_model("efficientvit_ml_m0_mxa", num_classes=3, img_size=64).state_dict()
    gamma = "stages.0.blocks.0.mixer.mxa.ls.gamma"
    assert not torch.equal(after[gamma], fresh[gamma])


def test_another_image_size_and_layer_decay(config, run, tmp_path):
    train(config(init=str(run), img_size=96, layer_decay=0.7, epochs=1))
    assert load_model(tmp_path / "run").img_size == 96


def test_another_architecture_is_refused(config, run):
    with pytest.raises(InputError, match=r"weights are not those of efficientvit_ml_m1_mxa.*of another shape"):
        train(config(model="efficientvit_ml_m1_mxa", init=str(run)))


def test_any_timm_model(config, tmp_path):
    train(config(model="resnet10t", epochs=1, img_size=None))
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert mxa.label_names(model) == ("Edema", "Mass", "Bright")
    assert model.pretrained_cfg["crop_pct"] == 1.0
    assert model.pretrained_cfg["crop_mode"] == "squash"


@pytest.fixture
def many(tmp_path) -> Path:
    """A table of 200 training and 10 validation images, of which the first is broken."""
    rows = ["path,patient,split,Edema"]
    pixels = np.random.default_rng(0).integers(0, 256, (210, 24, 24), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,p{i},{'train' if i < 200 else 'val'},{i % 2}")
    (tmp_path / "many.csv").write_text("\n".join(rows))
    (tmp_path / "0.png").write_bytes(b"not an image")
    return tmp_path / "many.csv"


def test_bad_training_image_is_replaced_and_named(config, many, tmp_path):
    small = {"root": many, "img_size": 32, "batch_size": 50, "model": "resnet10t", "epochs": 1}
    summary = train(config(**small, workers=1))
    assert summary["bad_images"] == [str(tmp_path / "0.png")]
    (tmp_path / "204.png").write_bytes(b"not an image")  # a validation image
    with pytest.raises(InputError, match=r"204\.png does not decode"):
        train(config(**small, output=tmp_path / "run2"))


def test_more_than_one_in_a_hundred_bad_images_end_the_training(config, many, tmp_path):
    small = {"root": many, "img_size": 32, "batch_size": 50, "model": "resnet10t", "epochs": 1}
    (tmp_path / "5.png").unlink()  # two of 200 are just one in a hundred
    assert len(train(config(**small))["bad_images"]) == 2
    (tmp_path / "7.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3 of 200 images do not read, more than 1 %.*0\.png, .*5\.png, .*7\.png\)"):
        train(config(**small, output=tmp_path / "run2"))
    assert not (tmp_path / "run2" / "model.safetensors").exists()


def test_fit_without_validation_keeps_the_last_epoch(config, table, tmp_path):
    summary = fit(replace(config(), epochs=3), create_dataset("table", table, "train"))
    assert summary["epoch"] == 2
    assert np.isnan(summary["macro_auc"])
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(kept[k], saved[k]) for k in kept)


def test_config_defaults_are_the_phantom():
    assert TrainConfig(output="x").resolved().data == "phantom"


def test_validation_outputs_that_are_not_finite_are_not_kept(config, tmp_path, monkeypatch):
    monkeypatch.setattr("mxa.training.loop.predict_logits", lambda *args: np.full((12, 3), np.nan, dtype=np.float32))
    with pytest.raises(InputError, match="validation split are not finite"):
        train(config())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_input_size_of_a_model_that_takes_any_is_kept(config):
    summary = train(config(model="resnet10t", img_size=96, epochs=1))
    model = load_model(summary["output"])
    assert create_transform(model)(Image.new("L", (40, 50))).shape == (3, 96, 96)


def test_an_average_of_the_weights_is_kept(config, tmp_path, monkeypatch):
    seen = []

    class Task(MultiLabelTask):
        def update_ema(self, step=None):
            super().update_ema(step)
            seen.append({k: v.clone() for k, v in self.trainable_module.state_dict().items()})

    monkeypatch.setattr("mxa.training.start.MultiLabelTask", Task)
    model = "efficientvit_ml_m0"
    fit(config(model=model, ema=0.9, epochs=2), create_dataset("table", config().root, "train"))
    average = dict(seen[0])
    for step, weights in enumerate(seen):
        decay = min(0.9, 1 - step ** (-2 / 3)) if step > 1 else 0.0  # timm's warm-up
        average = {
            k: torch.lerp(weights[k], average[k], decay) if v.is_floating_point() else weights[k]
            for k, v in average.items()
        }
    kept = load_file(tmp_path / "run" / "model.safetensors")
    moved = sum((kept[k] - seen[-1][k]).abs().max().item() for k in kept if kept[k].is_floating_point())
    assert moved > 1e-3
    for key, value in kept.items():
        torch.testing.assert_close(value, average[key], rtol=1e-3, atol=1e-4)


def test_a_resumed_average_is_that_of_an_uninterrupted_run(config, tmp_path, monkeypatch):
    options = {"model": "efficientvit_ml_m0", "ema": 0.95, "epochs": 3, "agc": 0.02}
    train(config(**options))
    save, count = job.save_checkpoint, []

    def stop(state, run):
        save(state, run)
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(job, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(**options, output=tmp_path / "cut"))
    monkeypatch.setattr(job, "save_checkpoint", save)
    train(config(**options, output=tmp_path / "cut", resume="auto"))
    one, other = (torch.load(tmp_path / r / "checkpoint.pt", weights_only=True)["ema"] for r in ("run", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_adaptive_clipping_holds_the_body_and_not_the_head(config, tmp_path):
    start = build_model(config(), ("Edema", "Mass", "Bright"))
    save_pretrained(start, tmp_path / "start")
    moved = {}
    for agc in (None, 1e-6):
        train(
            config(
                init=str(tmp_path / "start"),
                agc=agc,
                epochs=1,
                opt="sgd",
                lr=1.0,
                weight_decay=0,
                output=tmp_path / f"run-{agc}",
            )
        )
        end = load_file(tmp_path / f"run-{agc}" / "model.safetensors")
        before = start.state_dict()
        moved[agc] = {
            k: (end[k] - before[k]).abs().max().item()
            for k in ("stages.0.blocks.0.ffn0.m.pw1.conv.weight", "head.linear.weight")
        }
    body, head = moved[None]
    assert moved[1e-6][body] < 0.01 * moved[None][body] and moved[1e-6][head] > 0.1 * moved[None][head]


def test_the_last_epochs_cool_down(config, tmp_path):
    train(config(epochs=5, cooldown_epochs=2, warmup_epochs=1, lr=1e-2, min_lr=1e-4))
    rates = [float(row["lr"]) for row in rows(tmp_path / "run" / "log.csv")]
    assert rates[3] == rates[4] == pytest.approx(1e-4) and rates[1] > 1e-3
    with pytest.raises(InputError, match="--cooldown-epochs must be fewer than --epochs"):
        train(config(epochs=2, cooldown_epochs=2, output=tmp_path / "other"))


def test_a_run_without_the_newer_settings_is_resumed(config, tmp_path):
    train(config(epochs=1))
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["config"]["ema"], state["config"]["augment"]
    torch.save(state, path)
    train(config(epochs=1, resume="auto"))
    with pytest.raises(InputError, match="augment was 'crop'"):
        train(config(epochs=1, resume="auto", augment="better"))
