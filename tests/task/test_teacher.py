"""Teachers of every kind: their input, their raw logits by name, their file, and that they do not change."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher
from torch import nn

from mxa.data.transforms import data_config
from mxa.labels import CHEXPERT
from mxa.models.weights import save_pretrained
from mxa.task import MultiLabelDistillationTask
from mxa.task.teacher import Teacher
from mxa.utils.errors import InputError

from .teachers import IMAGENET, TRAINED, batch, gray, named, xrv_input


@pytest.mark.parametrize(
    "cfg",
    [
        IMAGENET,
        IMAGENET | {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        {"input_size": (1, 224, 224), "mean": (0.45,), "std": (0.2,)},
    ],
)
def test_input_is_torchxrayvisions(chex, home, cfg):
    teacher = chex if cfg is IMAGENET else Teacher("xrv:chex", CHEXPERT, cfg)
    mapped = teacher.normalize_input(batch(gray(), cfg))
    torch.testing.assert_close(mapped, xrv_input(gray()), rtol=0, atol=1e-3)
    assert mapped.shape == (2, 1, 224, 224)
    assert mapped.amin() == pytest.approx(-1024, abs=1e-3)
    assert mapped.amax() == pytest.approx(1024, abs=1e-3)


@pytest.mark.parametrize("size", [96, 320])
def test_input_is_resized_in_its_range(chex, size):
    images = gray(size, 1)
    expected = F.interpolate(xrv_input(images), (224, 224), mode="bilinear", antialias=True)
    torch.testing.assert_close(chex.normalize_input(batch(images)), expected, rtol=0, atol=2e-3)
    assert chex.normalize_input(batch(images)[:, :, :70]).shape == (1, 1, 224, 224)


def test_input_of_another_student(chex):
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    images = (torch.from_numpy(gray())[:, None].float() / 255 - mean) / std
    torch.testing.assert_close(chex.normalize_input(images, mean, std), xrv_input(gray()), rtol=0, atol=1e-3)


def test_a_coloured_image_becomes_the_mean_of_its_channels(chex):
    channels = torch.from_numpy(np.random.default_rng(0).uniform(size=(2, 3, 224, 224)).astype(np.float32))
    mean, std = (torch.tensor(IMAGENET[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    expected = (channels[:, 0] + channels[:, 1] + channels[:, 2])[:, None] / 3 * 2048 - 1024
    torch.testing.assert_close(chex.normalize_input((channels - mean) / std), expected, rtol=0, atol=1e-2)


def test_logits_are_raw_and_by_name(chex, network, models):
    logits, mask = chex(batch(gray()))
    assert logits.shape == (2, 14)
    assert dict(zip(CHEXPERT, mask.tolist(), strict=True)) == {
        name: name in TRAINED or name == "No Finding" for name in CHEXPERT
    }
    with torch.no_grad():
        features = F.relu(network.features(xrv_input(gray()))).mean((2, 3))
        expected = network.classifier(features)
    assert (expected < 0).any()  # no probabilities
    assert expected.abs().amax() < 20
    names = models.model_urls["chex"]["labels"]
    for column, name in enumerate(CHEXPERT):
        if name in TRAINED:
            theirs = expected[:, names.index(TRAINED[name])]
            torch.testing.assert_close(logits[:, column], theirs, rtol=1e-4, atol=1e-4)
    trained = [i for i, name in enumerate(names) if name]
    assert len(trained) == 11
    p = (1 - expected[:, trained].double().sigmoid()).prod(1)
    torch.testing.assert_close(logits[:, 0], p.logit().float(), rtol=1e-3, atol=1e-3)
    assert (logits[:, ~mask] == 0).all()


def test_torchxrayvisions_own_outputs_differ(chex, home, models):
    """Its forward, of the same file, gives warped probabilities."""
    own = models.DenseNet(weights="densenet121-res224-chex")
    with torch.no_grad():
        scores = own(xrv_input(gray()))
        raw = chex.model(xrv_input(gray()))
    assert ((scores >= 0) & (scores <= 1)).all()
    torch.testing.assert_close(models.op_norm(raw.sigmoid(), own.op_threshs), scores)
    given = Teacher(own, CHEXPERT, IMAGENET)
    for ours, theirs in zip(given(batch(gray())), chex(batch(gray())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert own.op_threshs is not None  # a copy was made
    assert all(p.requires_grad for p in own.parameters())


def test_run_folder(tmp_path):
    model = named()
    save_pretrained(model, tmp_path)
    labels = ("Effusion", "Hernia", "Edema")
    teacher = Teacher(tmp_path, labels, model)
    images = batch(gray(160), data_config(model))
    logits, mask = teacher(images)
    assert mask.tolist() == [True, False, True]
    with torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(logits[:, [0, 2]], expected[:, [2, 0]], rtol=0, atol=0)  # the batch as it is
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert teacher.sha256 == digest
    with pytest.raises(InputError, match=digest):
        Teacher(tmp_path, labels, model, sha256="1" * 64)


def test_timm_name_with_a_checkpoint(tmp_path):
    model = named(4)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    names = ["Edema", "Mass", "Pleural Effusion", "Fracture"]
    teacher = Teacher("test_convnext", CHEXPERT, IMAGENET, checkpoint=tmp_path / "weights.pt", names=names)
    cfg = data_config(model)
    assert teacher.input_size == tuple(cfg["input_size"]) != IMAGENET["input_size"]
    images = batch(gray(224))
    x = F.interpolate(
        torch.from_numpy(gray(224))[:, None] / 255, cfg["input_size"][1:], mode="bilinear", antialias=True
    )
    x = (x - torch.tensor(cfg["mean"]).view(1, 3, 1, 1)) / torch.tensor(cfg["std"]).view(1, 3, 1, 1)
    torch.testing.assert_close(teacher.normalize_input(images), x, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images)[0][:, CHEXPERT.index("Edema")], model(x)[:, 0])
    with pytest.raises(InputError, match="give names"):
        Teacher("test_convnext", CHEXPERT, IMAGENET, checkpoint=tmp_path / "weights.pt")
    with pytest.raises(InputError, match="test_convnext"):
        Teacher("test_convnext", CHEXPERT, IMAGENET, checkpoint=tmp_path / "weights.pt", names=names[:2])
    with pytest.raises(InputError, match="not the"):
        Teacher("test_convnext", CHEXPERT, IMAGENET, checkpoint=tmp_path / "weights.pt", names=names, sha256="0" * 64)
    with pytest.raises(InputError, match="does not read"):
        Teacher("test_convnext", CHEXPERT, IMAGENET, checkpoint=tmp_path / "none.pt", names=names)


def test_gray_student_and_teacher():
    """One channel to three and three to one."""
    student, teacher = named(in_chans=1), named(in_chans=3)
    wide = Teacher(teacher, ("Mass",), student)
    assert wide.normalize_input(batch(gray(160), data_config(student))).shape == (2, 3, 160, 160)
    narrow = Teacher(student, ("Mass",), teacher)
    mapped = narrow.normalize_input(batch(gray(160), data_config(teacher)))
    torch.testing.assert_close(mapped, batch(gray(160), data_config(student)), rtol=0, atol=1e-5)


def test_module_without_configuration_takes_the_students_input():
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    teacher = Teacher(module, CHEXPERT, IMAGENET, names=("Edema", "Mass"))
    images = batch(gray())
    assert teacher.normalize_input(images) is images
    with torch.no_grad():
        torch.testing.assert_close(teacher(images)[0][:, CHEXPERT.index("Edema")], module(images)[:, 0])
    module.label_names = ("Mass", "Edema")
    assert Teacher(module, CHEXPERT, IMAGENET).adapter.teacher_labels == ("Mass", "Edema")


@pytest.mark.parametrize(
    ("source", "kwargs", "message"),
    [
        ("no_such_model", {}, "unknown model"),
        ("/no/such/weights.pt", {}, "run folder"),
        ("test_convnext", {"sha256": "0" * 64}, "is a name"),
        (nn.Identity(), {}, "have no names"),
        (nn.Identity(), {"names": ("Edema",), "sha256": "0" * 64}, "the teacher is a module"),
        (nn.Identity(), {"names": ("Edema",), "checkpoint": "a.pt"}, "goes with a timm name"),
        (nn.Identity(), {"names": ("Emphysema",)}, "no label in common"),
        (nn.Identity(), {"names": ("Edema",), "no_finding": "some"}, "no_finding"),
    ],
)
def test_clear_errors(source, kwargs, message):
    with pytest.raises(InputError, match=message):
        Teacher(source, CHEXPERT, IMAGENET, **kwargs)


def test_frozen_by_itself():
    model = named().train()
    teacher = Teacher(model, ("Mass",), IMAGENET).train()
    assert not any(module.training for module in (teacher, *model.modules()))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not teacher(batch(gray()).requires_grad_())[0].requires_grad


def test_frozen_in_a_task(chex):
    student = timm.create_model("test_convnext", num_classes=14)
    task = MultiLabelDistillationTask(student, chex)
    assert isinstance(chex, DistillationTeacher)
    before = {key: value.clone() for key, value in chex.model.state_dict().items()}
    task.train()
    assert student.training
    assert not any(module.training for module in chex.modules())
    assert not any(parameter.requires_grad for parameter in chex.parameters())
    images = batch(gray(160)).requires_grad_()
    result = task(images, torch.rand(2, 14).round())
    assert result["kd_loss"] > 0
    result["loss"].backward()
    assert all(parameter.grad is None for parameter in chex.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in chex.model.state_dict().items())
    assert set(task.get_checkpoint_state()) == {"state_dict"}
    assert set(task.get_checkpoint_state()["state_dict"]) == set(student.state_dict())
    assert not chex(images)[0].requires_grad


def test_moves_with_the_task():
    teacher = Teacher(named(), ("Mass",), IMAGENET)
    task = MultiLabelDistillationTask(named(1), teacher).to("meta")
    assert {t.device.type for t in (*teacher.parameters(), *teacher.buffers())} == {"meta"}
    logits, mask = task.teacher(torch.empty(2, 3, 224, 224, device="meta"))
    assert logits.device.type == mask.device.type == "meta"
    assert next(Teacher(named(), ("Mass",), IMAGENET, device="meta").parameters()).device.type == "meta"


def test_half_precision():
    teacher = Teacher(named(), ("Mass",), IMAGENET).to(torch.bfloat16)
    assert teacher(batch(gray()).bfloat16())[0].dtype == torch.bfloat16


def test_random_numbers_are_not_drawn(home):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    Teacher("xrv:chex", CHEXPERT, IMAGENET)
    assert torch.equal(torch.rand(3), expected)


def test_imports_and_warnings(home):
    """Nothing imports TorchXRayVision before it is used; its silencing of warnings is undone."""
    code = f"""
import sys, warnings
import mxa, mxa.task.teacher
assert "torchxrayvision" not in sys.modules
filters, before = warnings.filters, list(warnings.filters)
mxa.task.teacher.Teacher("xrv:chex", mxa.labels.CHEXPERT, {IMAGENET})
assert "torchxrayvision" in sys.modules
assert warnings.filters is filters and filters == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
