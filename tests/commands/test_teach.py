"""A teacher in a training run: live, computed once, or as the first weights."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mxa.commands.teach import TeachConfig, teach
from mxa.data import create_dataset
from mxa.evaluation.evaluate import weights_sha256
from mxa.labels import XRV
from mxa.models.load import load_model
from mxa.task import Teacher
from mxa.training.loop import train
from mxa.utils.errors import InputError

STUDENT = {"model": "test_vit", "img_size": 64, "labels": "Bright,Edema,No Finding"}
UNCHANGED = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "rotation": 0.0}  # the student sees the whole image too


def losses(path) -> list[float]:
    with (path / "log.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def cached(table, run, tmp_path_factory):
    output = tmp_path_factory.mktemp("teach") / "teacher.parquet"
    teach(TeachConfig(str(run), output, data="table", root=table, labels=STUDENT["labels"], workers=0))
    return output


def test_the_file_is_keyed_by_image(cached, table, run):
    content = pd.read_parquet(cached)
    dataset = create_dataset("table", table, "train", labels=STUDENT["labels"])
    assert list(content) == ["image", "logit:Bright", "logit:Edema", "logit:No Finding"]
    assert content["image"].tolist() == dataset.records.paths.tolist()
    assert np.isfinite(content.drop(columns="image")).all(None)
    bright = dataset.records.targets[:, 0] == 1
    assert content["logit:Bright"][bright].mean() > content["logit:Bright"][~bright].mean()


def test_computed_once_is_the_live_teacher(config, cached, run, tmp_path):
    options = {**STUDENT, **UNCHANGED, "alpha": 0.7, "temperature": 2.0}
    train(config(**options, teacher=str(run)))
    train(config(**options, teacher=str(cached), workers=1, output=tmp_path / "cached"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "cached"), rel=1e-4)
    train(config(**options, output=tmp_path / "alone"))
    assert losses(tmp_path / "run") != pytest.approx(losses(tmp_path / "alone"), rel=1e-2)
    live, once = (json.loads((tmp_path / r / "teacher.json").read_text()) for r in ("run", "cached"))
    assert live["sha256"] == once["sha256"] == weights_sha256(str(run), None)
    assert live["alpha"] == 0.7 and once["temperature"] == 2.0
    assert not (tmp_path / "alone" / "teacher.json").exists()
    assert not any("teacher" in key for key in torch.load(tmp_path / "run" / "checkpoint.pt")["model"])


def test_alpha_0_is_training_without_a_teacher(config, cached, tmp_path):
    train(config(**STUDENT, teacher=str(cached), alpha=0.0))
    train(config(**STUDENT, output=tmp_path / "alone"))
    a, b = (load_file(tmp_path / r / "model.safetensors") for r in ("run", "alone"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_logits_are_found_by_image_whatever_else_the_file_holds(config, cached, table, tmp_path):
    """In another order, and with targets of its own, as `mxa evaluate` writes."""
    content = pd.read_parquet(cached).sample(frac=1, random_state=0)
    content["target:Bright"] = 0.0
    content.to_parquet(tmp_path / "mixed.parquet")
    train(config(**STUDENT, teacher=str(cached)))
    train(config(**STUDENT, teacher=str(tmp_path / "mixed.parquet"), output=tmp_path / "mixed"))
    assert losses(tmp_path / "run") == losses(tmp_path / "mixed")


def test_a_teacher_that_says_nothing_is_an_error(config, cached, tmp_path):
    content = pd.read_parquet(cached)
    content.assign(**{c: np.nan for c in content if c != "image"}).to_parquet(tmp_path / "blank.parquet")
    with pytest.raises(InputError, match=r"blank\.parquet has no logit of Bright, Edema, No Finding"):
        train(config(**STUDENT, teacher=str(tmp_path / "blank.parquet")))
    content[["image", "logit:Bright"]].to_parquet(tmp_path / "bright.parquet")
    with pytest.raises(InputError, match=r"bright\.parquet has Bright, and none of Edema"):
        train(config(**{**STUDENT, "labels": "Edema"}, teacher=str(tmp_path / "bright.parquet")))


def test_an_image_without_logits_is_an_error(config, cached, tmp_path):
    content = pd.read_parquet(cached)
    content.iloc[1:].to_parquet(tmp_path / "part.parquet")
    with pytest.raises(InputError, match=r"has no score of 1 of 24 images"):
        train(config(**STUDENT, teacher=str(tmp_path / "part.parquet")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "nowhere"}, "unknown model 'nowhere'"),
        ({"teacher": "xrv:nowhere.pt"}, r"nowhere\.pt is neither a file nor weights"),
        ({"teacher": "t.parquet", "teacher_sha256": "0" * 64}, "that of a file of weights"),
        ({"teacher_sha256": "0" * 64}, "give it with --teacher"),
        ({"alpha": 1.5}, "--alpha must be between 0 and 1"),
    ],
)
def test_bad_input_writes_nothing(config, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        train(config(**STUDENT, **fields))
    assert not (tmp_path / "run").exists()


def test_the_teachers_digest_is_held(config, run, tmp_path):
    digest = weights_sha256(str(run), None)
    train(config(**STUDENT, epochs=1, teacher=str(run), teacher_sha256=digest.upper()))
    with pytest.raises(InputError, match="has SHA-256"):
        train(config(**STUDENT, teacher=str(run), teacher_sha256="0" * 64, output=tmp_path / "other"))


def test_several_teachers_are_averaged_by_label(table, run, tmp_path, config):
    """Each label's mean is over the teachers that know it; one that nobody knows has no column."""
    other = tmp_path / "run"
    train(config(model="test_vit", labels="Edema,Bright", epochs=1, seed=3))
    options = {"data": "table", "root": table, "labels": "Bright,Mass,Edema,Hernia", "workers": 0}
    one, two, both = (tmp_path / f"{name}.parquet" for name in ("one", "two", "both"))
    teach(TeachConfig(str(run), one, **options))
    teach(TeachConfig((str(other),), two, **options))
    found = teach(TeachConfig((str(run), str(other)), both, **options))
    one, two, both = map(pd.read_parquet, (one, two, both))
    assert list(one) == list(both) == ["image", "logit:Bright", "logit:Mass", "logit:Edema"]
    assert list(two) == ["image", "logit:Bright", "logit:Edema"]
    for label in ("Bright", "Edema"):
        np.testing.assert_allclose(
            both[f"logit:{label}"], (one[f"logit:{label}"] + two[f"logit:{label}"]) / 2, rtol=1e-5
        )
    np.testing.assert_allclose(both["logit:Mass"], one["logit:Mass"], rtol=1e-5)
    assert found.metadata["sha256"] == [weights_sha256(str(path), None) for path in (run, other)]
    train(config(**STUDENT, teacher=str(tmp_path / "both.parquet"), epochs=1, output=tmp_path / "student"))
    said = json.loads((tmp_path / "student" / "teacher.json").read_text())
    assert said["sha256"] == found.metadata["sha256"]
    with pytest.raises(InputError, match="--teacher-sha256 is that of one file, and there are 2 teachers"):
        teach(TeachConfig((str(run), str(other)), tmp_path / "x.parquet", teacher_sha256="0" * 64, **options))


def test_teach_wants_parquet(run, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.parquet"):
        teach(TeachConfig(str(run), tmp_path / "x.csv"))


def test_an_image_that_does_not_read_has_no_logits(config, run, table, tmp_path):
    for i in range(48):
        (tmp_path / f"{i}.png").write_bytes((table.parent / f"{i}.png").read_bytes())
    (tmp_path / "table.csv").write_text(table.read_text())
    first = create_dataset("table", tmp_path / "table.csv", "train").records.paths[0]
    (tmp_path / first).write_bytes(b"no image")
    output = tmp_path / "teacher.parquet"
    found = teach(TeachConfig(str(run), output, data="table", root=str(tmp_path / "table.csv"), workers=0))
    assert np.isnan(found.logits[0]).all() and np.isfinite(found.logits[1:]).all()
    for i in range(48):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(InputError, match="none of the 24 images reads, such as"):
        teach(TeachConfig(str(run), output, data="table", root=str(tmp_path / "table.csv"), workers=0))


def test_start_from_torchxrayvision(config, tmp_path, caplog):
    """The fine-tuned teacher of appendix P: before the first step it gives TorchXRayVision's own logits."""
    import warnings

    with warnings.catch_warnings():
        import torchxrayvision
    torch.manual_seed(0)
    network = torchxrayvision.models.DenseNet()
    torch.nn.init.normal_(network.classifier.weight, std=0.1)
    network.pathologies = list(network.targets)  # as in its published files
    torch.save(network, tmp_path / "densenet.pt")
    source = f"xrv:{tmp_path / 'densenet.pt'}"
    options = {"model": "densenet121", "img_size": 64, "init": source, "epochs": 1, "batch_size": 12}
    caplog.set_level("INFO", "mxa")
    train(config(**options, labels="Edema,Mass", opt="sgd", lr=1e-12, min_lr=0.0, weight_decay=0.0))
    assert "the head keeps Edema, Mass" in caplog.text
    model = load_model(tmp_path / "run")
    assert (*model.pretrained_cfg["mean"], *model.pretrained_cfg["std"]) == (0.5, 1 / 2048)
    images = 1024 * (2 * torch.rand(2, 1, 64, 64) - 1)
    model.train(), network.train()  # training has moved the statistics, so those of the batch
    theirs = network.classifier(torch.nn.functional.relu(network.features(images)).mean((2, 3)))
    with torch.no_grad():
        ours = model(images)
    columns = [network.targets.index(name) for name in ("Edema", "Mass")]
    torch.testing.assert_close(ours, theirs[:, columns], rtol=1e-3, atol=1e-3)
    teacher = Teacher(str(tmp_path / "run"), XRV, model)
    assert int(teacher.adapter.mask.sum()) == 2
    with pytest.raises(InputError, match="weights are not those of resnet18"):
        train(config(**{**options, "model": "resnet18"}, output=tmp_path / "other"))
