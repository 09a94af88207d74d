"""Our models inside the libraries that people build with."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from timm.task import MultiLabelClassificationTask

import mxa
from mxa.data import create_dataset, create_transform

from ..running import run_example

pytestmark = pytest.mark.clients


def test_segmentation_models(monkeypatch, capsys):
    out = run_example("segmentation_unet.py", monkeypatch, capsys, "--steps", "40", "--size", "64")
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", out))
    assert after > before + 0.05


@pytest.mark.parametrize("size", [224, 256])
def test_a_unet_gives_masks_of_its_input(size):
    import segmentation_models_pytorch as smp

    model = smp.Unet("tu-efficientvit_ml_m0_mxa", encoder_weights=None, in_channels=1, classes=2)
    out = model(torch.randn(2, 1, size, size))
    assert out.shape == (2, 2, size, size)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="downsampling"):  # what ours is better than
        smp.Unet("tu-efficientvit_m0", encoder_weights=None)


def test_fastai(monkeypatch, capsys):
    out = run_example("finetune_fastai.py", monkeypatch, capsys, "--images", "64", "--epochs", "1", "--size", "96")
    assert re.search(r"validation loss [\d.]+ before, [\d.]+ after 1 epoch", out)


def test_fastai_reads_the_configuration():
    from fastai.vision.learner import _timm_norm, create_timm_model

    model, cfg = create_timm_model("efficientvit_ml_m0_mxa", 14, pretrained=False)
    assert model(torch.randn(2, 3, 224, 224)).shape == (2, 14)
    assert cfg["mean"] == model[0].model.pretrained_cfg["mean"] and cfg["pool_size"] == (4, 4)
    assert _timm_norm is not None


def test_lightning(monkeypatch, capsys):
    out = run_example("finetune_lightning.py", monkeypatch, capsys, "--images", "48", "--epochs", "1", "--size", "64")
    assert re.search(r"macro AUC 0\.\d+ on \d+ phantoms", out)


def test_graft_example(monkeypatch, capsys):
    out = run_example("graft_vit.py", monkeypatch, capsys, "--steps", "3", "--name", "test_vit")
    assert "moved by 0.0 when MXA" in out and "the same logits, True" in out


def test_monai(tmp_path):
    """MONAI's transforms and loader feed our model, and its loss trains it."""
    from monai.data import DataLoader, Dataset
    from monai.losses import FocalLoss
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RepeatChanneld, Resized, ScaleIntensityRanged

    records = create_dataset("phantom", split="train").records
    rows = []
    for i in range(12):
        records.image(i).save(tmp_path / f"{i}.png")
        rows.append({"image": str(tmp_path / f"{i}.png"), "target": records.targets[i]})
    model = timm.create_model("efficientvit_ml_m0_mxa", num_classes=14, img_size=96)
    keys = ["image"]
    steps = [
        LoadImaged(keys, reader="PILReader"),
        EnsureChannelFirstd(keys),
        ScaleIntensityRanged(keys, 0, 255, -2.1, 2.4),
        Resized(keys, (96, 96)),
        RepeatChanneld(keys, 3),
    ]
    loader = DataLoader(Dataset(rows, Compose(steps)), batch_size=6)
    loss, optimizer = FocalLoss(), torch.optim.AdamW(model.parameters(), 1e-3)
    values = []
    for _ in range(3):
        for batch in loader:
            value = loss(model(batch["image"].as_tensor()), batch["target"])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
    assert values[-1] < values[0]
    image = records.image(0)
    ours = create_transform({"input_size": (3, 96, 96), "mean": (0.0,), "std": (1.0,)})(image)
    theirs = Compose(steps[:2])(rows[0])["image"].as_tensor()
    np.testing.assert_array_equal(theirs[0].T.numpy(), np.asarray(image))  # MONAI's arrays are (W, H)
    assert ours.shape == (3, 96, 96)


def test_timms_multi_label_task():
    """timm's own task and loop, unmasked labels."""
    torch.manual_seed(0)
    dataset = create_dataset("phantom", split="train")
    model = timm.create_model("efficientvit_ml_m0_mxa", num_classes=14, img_size=96)
    mxa.set_label_names(model, dataset.labels)
    dataset.transform = create_transform(model)
    images, targets = map(torch.stack, zip(*[dataset[i] for i in range(12)], strict=True))
    task = MultiLabelClassificationTask(model, verbose=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    values = []
    for _ in range(5):
        value = task.train()(images, targets)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
