"""timm's task interface, with NaN targets masked."""

from __future__ import annotations

import math

import pytest
import torch
from timm.task import TrainingTask
from torch import nn

from mxa.task import MultiLabelTask, masked_bce_with_logits


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


def batch(masked: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, 3, 2, 2, generator=generator)
    target = (torch.rand(5, 4, generator=generator) < 0.5).float()
    if masked:
        target[0] = target[1:, 2] = math.nan
    return images, target


def test_loss_and_output(model):
    images, target = batch()
    task = MultiLabelTask(model)
    assert isinstance(task, TrainingTask)
    result = task(images, target)
    assert set(result) == {"loss", "output"}
    torch.testing.assert_close(result["output"], model(images))
    torch.testing.assert_close(result["loss"], masked_bce_with_logits(model(images), target))
    result["loss"].backward()
    weight = model[1].weight.grad
    assert weight.isfinite().all() and (weight[2] == 0).all() and (weight[[0, 1, 3]] != 0).any(1).all()


def test_the_mask_is_made_once_and_by_the_task(model):
    calls = []

    def spy(logits, target, mask=None, pos_weight=None):
        calls.append(mask)
        return masked_bce_with_logits(logits, target, mask, pos_weight)

    images, target = batch()
    MultiLabelTask(model, criterion=spy)(images, target)
    assert len(calls) == 1 and torch.equal(calls[0], ~target.isnan())


def test_a_batch_without_labels_moves_nothing(model):
    images, target = batch()
    loss = MultiLabelTask(model)(images, torch.full_like(target, math.nan))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_pos_weight(model):
    images, target = batch()
    pos_weight = torch.tensor([1.0, 5.0, 1.0, 0.2])
    task = MultiLabelTask(model, pos_weight)
    expected = masked_bce_with_logits(model(images), target, pos_weight=pos_weight)
    assert expected != masked_bce_with_logits(model(images), target)
    torch.testing.assert_close(task(images, target)["loss"], expected)
    assert task.to(torch.float64).pos_weight.dtype == torch.float64
    assert set(task.state_dict()) == {f"trainable_module.{k}" for k in model.state_dict()}


def test_ema_follows_the_model(model):
    images, target = batch()
    task = MultiLabelTask(model)
    assert not task.has_ema()
    task.setup_ema(decay=0.75)
    before = model[1].weight.detach().clone()
    task(images, target)["loss"].backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    task.update_ema()
    after = model[1].weight.detach()
    assert not torch.equal(before, after)
    averaged = task.get_eval_model(ema=True)
    torch.testing.assert_close(averaged.module[1].weight, 0.75 * before + 0.25 * after)
    assert averaged(images).shape == (5, 4)
    torch.testing.assert_close(task(images, target)["output"], model(images))


def test_it_learns_around_the_mask(model):
    images, target = batch()
    task = MultiLabelTask(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    losses = []
    for _ in range(40):
        loss = task(images, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    known = ~target.isnan()
    assert ((model(images) > 0) == (target == 1))[known].all()
