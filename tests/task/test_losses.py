"""The masked loss: plain BCE where every label is present, and no contribution from masked ones."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import MULTI_LABEL_LOSS_TYPES, create_classification_loss

from mxa.task import MaskedLoss, masked_bce_with_logits


def case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, soft targets, and a mask that leaves the third image without labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)).to(dtype)
    target = torch.rand(6, 5, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(6, 5, generator=generator) < 0.6
    mask[2] = False
    mask[0] = True
    return logits.requires_grad_(), target, mask


def reference(logits, target, mask, pos_weight=None) -> float:
    """Appendix C, one cell after the other."""
    images = []
    for b in range(len(logits)):
        terms = []
        for j in range(logits.shape[1]):
            if mask[b, j]:
                p = 1 / (1 + math.exp(-logits[b, j].item()))
                y, w = float(target[b, j]), 1.0 if pos_weight is None else float(pos_weight[j])
                terms.append(-w * y * math.log(p) - (1 - y) * math.log(1 - p))
        if terms:
            images.append(sum(terms) / len(terms))
    return sum(images) / len(images) if images else 0.0


@pytest.mark.parametrize("pos_weight", [None, torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64)])
def test_all_present_is_plain_bce(pos_weight):
    logits, target, _ = case()
    expected = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight)
    for mask in (None, torch.ones_like(target, dtype=torch.bool)):
        torch.testing.assert_close(masked_bce_with_logits(logits, target, mask, pos_weight), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_loop_reference(seed, weighted):
    logits, target, mask = case(seed)
    pos_weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64) if weighted else None
    loss = masked_bce_with_logits(logits, target, mask, pos_weight)
    assert loss.shape == () and loss.item() == pytest.approx(reference(logits, target, mask, pos_weight), rel=1e-12)
    hidden = target.masked_fill(~mask, math.nan)
    torch.testing.assert_close(masked_bce_with_logits(logits, hidden, pos_weight=pos_weight), loss, rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf, -math.inf, -1.0])
def test_masked_cells_count_nowhere(value):
    logits, target, mask = case()
    loss = masked_bce_with_logits(logits, target.masked_fill(~mask, value), mask)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and loss.item() == pytest.approx(reference(logits, target, mask), rel=1e-12)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("value", [1e4, -1e4, math.inf])
def test_an_extreme_logit_at_a_masked_cell_does_not_count(value):
    logits, target, mask = case()
    extreme = logits.detach().masked_fill(~mask, value).requires_grad_()
    loss = masked_bce_with_logits(extreme, target, mask)
    loss.backward()
    torch.testing.assert_close(loss, masked_bce_with_logits(logits, target, mask))
    assert (extreme.grad[~mask] == 0).all() and extreme.grad.isfinite().all()


def test_no_label_present_is_zero_with_zero_gradients():
    logits, target, _ = case()
    loss = masked_bce_with_logits(logits, torch.full_like(target, math.nan))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_images_without_labels_do_not_dilute_the_mean():
    logits, target, mask = case()
    rows = mask.any(1)
    assert not rows.all()
    loss = masked_bce_with_logits(logits, target, mask)
    torch.testing.assert_close(loss, masked_bce_with_logits(logits[rows], target[rows], mask[rows]))


def test_every_image_weighs_the_same_however_many_labels_it_has():
    logits = torch.zeros(2, 4)
    logits[0, 0] = 2.0
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    expected = (F.softplus(torch.tensor(2.0)) + math.log(2)) / 2
    torch.testing.assert_close(masked_bce_with_logits(logits, torch.zeros(2, 4), mask), expected)


def test_gradcheck():
    logits, target, mask = case()
    assert torch.autograd.gradcheck(lambda x: masked_bce_with_logits(x, target, mask), logits)
    pos_weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: masked_bce_with_logits(x, target, mask, pos_weight), logits)


def test_arguments_are_left_alone():
    logits, target, mask = case()
    hidden = target.masked_fill(~mask, math.nan)
    before = hidden.clone()
    masked_bce_with_logits(logits, hidden).backward()
    assert torch.equal(hidden.nan_to_num(-1), before.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_logits(dtype):
    exact, target, mask = case()
    logits = exact.detach().to(dtype).requires_grad_()
    hidden = target.masked_fill(~mask, math.nan).float()
    loss = masked_bce_with_logits(logits, hidden)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(reference(exact, target, mask), rel=0.02)
    assert logits.grad.isfinite().all() and (logits.grad[~mask] == 0).all()


def test_bfloat16_autocast():
    logits, target, mask = case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_bce_with_logits(logits.bfloat16(), target, mask)
    assert loss.item() == pytest.approx(reference(logits, target, mask), rel=0.02)


# timm's losses, with masks


COUNTS = torch.tensor([3.0, 1.0, 5.0])


def masked_loss(name: str) -> MaskedLoss:
    return MaskedLoss(name, COUNTS, 10) if name == "db" else MaskedLoss(name)


def timms(name: str) -> torch.nn.Module:
    options = {"class_counts": COUNTS, "num_samples": 10} if name == "db" else {}
    options |= {"asl_reduction": "mean"} if name == "asl" else {}
    return create_classification_loss(name, multi_label=True, **options)


@pytest.mark.parametrize("name", MULTI_LABEL_LOSS_TYPES)
def test_without_masks_it_is_timms(name):
    torch.manual_seed(0)
    logits, target = 3 * torch.randn(6, 3), (torch.rand(6, 3) < 0.5).float()
    torch.testing.assert_close(masked_loss(name)(logits, target), timms(name)(logits, target))


@pytest.mark.parametrize("name", [n for n in MULTI_LABEL_LOSS_TYPES if n != "db"])
def test_a_label_that_is_masked_everywhere_is_not_there(name):
    torch.manual_seed(1)
    logits, target = 3 * torch.randn(6, 3), (torch.rand(6, 3) < 0.5).float()
    target[:, 1] = math.nan
    kept = [0, 2]
    torch.testing.assert_close(masked_loss(name)(logits, target), timms(name)(logits[:, kept], target[:, kept]))


@pytest.mark.parametrize("name", MULTI_LABEL_LOSS_TYPES)
def test_what_is_masked_moves_nothing(name):
    torch.manual_seed(2)
    logits, target = (3 * torch.randn(6, 3)).requires_grad_(), (torch.rand(6, 3) < 0.5).float()
    target[torch.rand(6, 3) < 0.4] = math.nan
    target[4] = math.nan
    mask = ~target.isnan()
    loss = masked_loss(name)(logits, target)
    loss.backward()
    assert (logits.grad[~mask] == 0).all() and logits.grad.isfinite().all() and (logits.grad[mask] != 0).any()
    other = torch.where(mask, logits.detach(), 50 * torch.randn(6, 3))
    torch.testing.assert_close(masked_loss(name)(other, target), loss.detach())
    nothing = masked_loss(name)(logits, torch.full_like(target, math.nan))
    nothing.backward()
    assert nothing.item() == 0


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="unknown loss 'nothing': give one of bce, asl"):
        MaskedLoss("nothing")
    with pytest.raises(ValueError, match="pos_weight goes with the loss bce"):
        MaskedLoss("asl")(torch.zeros(1, 2), torch.zeros(1, 2), None, torch.ones(2))
