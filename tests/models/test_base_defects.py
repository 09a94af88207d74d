"""Three defects of timm 1.0.31's ``EfficientVitMsra`` that ours must not have.

Each test shows the defect on the stock model first: when that fails, timm has put it right.
"""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.efficientvit_msra import CascadedGroupAttention

from ..contracts import images, randomise

STOCK = "efficientvit_m0"
OURS = pytest.mark.parametrize("name", ["efficientvit_ml_m0", "efficientvit_ml_m0_mxa"])


def create(name):
    return randomise(timm.create_model(name, num_classes=14)).eval()


def two_gradients(model):
    """Gradients of two logits in eval mode, one backward pass each, as Grad-CAM per label takes them."""
    gradients = []
    for label in (0, 0):
        model.zero_grad()
        model(images())[:, label].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    return gradients


@OURS
def test_second_backward_pass_in_eval_mode(name):
    with pytest.raises(RuntimeError, match="a second time"):
        two_gradients(create(STOCK))
    first, second = two_gradients(create(name))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@torch.no_grad()
def load_after_forward(name):
    """Logits of a model that loads weights after a forward in eval mode, and those expected."""
    model, other = create(name), create(name)
    other.load_state_dict(model.state_dict())
    other.load_state_dict(model.state_dict())
    for key, value in other.named_parameters():
        if key.endswith("attention_biases"):
            value.add_(torch.arange(value.numel()).view_as(value) % 5)
    before = model(images())
    model.load_state_dict(other.state_dict())
    return before, model(images()), other(images())


@OURS
def test_loading_after_a_forward_in_eval_mode(name):
    before, found, expected = load_after_forward(STOCK)
    assert torch.equal(found, before)
    assert not torch.equal(found, expected)
    before, found, expected = load_after_forward(name)
    assert not torch.equal(found, before)
    assert torch.equal(found, expected)


@OURS
def test_train_returns_the_module(name):
    attention = [m for m in create(STOCK).modules() if isinstance(m, CascadedGroupAttention)]
    assert [m.train() for m in attention] == [None] * 6
    for module in create(name).modules():
        for mode in (True, False):
            assert module.train(mode) is module
            assert module.training == mode
        assert module.eval() is module


@OURS
def test_nothing_is_kept_from_a_forward(name):
    model = create(name)
    kept = {k: set(vars(m)) for k, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model(images())
    assert {k: set(vars(m)) for k, m in model.named_modules()} == kept
    assert not any(m.attention_bias_cache for m in model.modules() if isinstance(m, CascadedGroupAttention))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
