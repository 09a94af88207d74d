"""Losses of places against slow references."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn
from torchvision.ops import generalized_box_iou

from mxa.layers import FindingOutput, ROIHead
from mxa.task import MultiLabelTask, box_coverage, box_loss, enclosing_boxes, heat_map_loss, place_loss, roi_place_loss

NONE = [-1.0] * 5
BOXES = torch.tensor(
    [
        [[0.1, 0.2, 0.5, 0.7, 0], [0.6, 0.6, 1.0, 0.9, 0], [0.3, 0.3, 0.35, 0.36, 2]],
        [[0.0, 0.0, 1.0, 1.0, 1], NONE, NONE],
        [NONE, NONE, NONE],
    ],
    dtype=torch.float64,
)


def test_coverage_by_counting_points():
    size, fine = (5, 4), 200
    y = (torch.arange(5 * fine) + 0.5) / (5 * fine)
    x = (torch.arange(4 * fine) + 0.5) / (4 * fine)
    covered = box_coverage(BOXES, 3, size)
    assert covered.shape == (3, 3, 5, 4)
    for b, rows in enumerate(BOXES):
        for label in range(3):
            expected = torch.zeros(5, 4, dtype=torch.float64)
            for x1, y1, x2, y2, of in rows.tolist():
                if of == label:
                    inside = ((y >= y1) & (y <= y2))[:, None] & ((x >= x1) & (x <= x2))[None]
                    share = inside.double().view(5, fine, 4, fine).mean((1, 3))
                    expected = torch.maximum(expected, share)
            torch.testing.assert_close(covered[b, label], expected, atol=0.02, rtol=0)


def test_heat_map_loss_one_label_after_another():
    torch.manual_seed(0)
    scores = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    covered, values = box_coverage(BOXES, 3, (6, 6)), []
    for b in range(3):
        for label in range(3):
            if (BOXES[b, :, 4] == label).any():
                target = covered[b, label] / covered[b, label].sum()
                heat = scores[b, label].exp() / scores[b, label].exp().sum()
                values.append(-(target * heat.log()).sum())
    assert len(values) == 3
    torch.testing.assert_close(heat_map_loss(scores, BOXES), torch.stack(values).mean())


def test_the_best_heat_map_is_even_over_the_box():
    boxes = torch.tensor([[[0.25, 0.25, 0.75, 0.5, 0]]])
    best = torch.full((1, 1, 8, 8), -100.0)
    best[0, 0, 2:4, 2:6] = 0.0
    assert heat_map_loss(best, boxes).item() == pytest.approx(math.log(8))
    for other in (best.roll(1, 3), torch.zeros(1, 1, 8, 8)):
        assert heat_map_loss(other, boxes) > math.log(8) + 0.1


def test_box_loss_one_label_after_another():
    torch.manual_seed(0)
    low = torch.rand(3, 3, 2, dtype=torch.float64) * 0.5
    predicted = torch.cat([low, low + 0.1 + torch.rand_like(low) * 0.4], dim=2)
    around = {(0, 0): [0.1, 0.2, 1.0, 0.9], (0, 2): [0.3, 0.3, 0.35, 0.36], (1, 1): [0.0, 0.0, 1.0, 1.0]}
    values = []
    for (b, label), box in around.items():
        target = torch.tensor([box], dtype=torch.float64)
        values.append(1 - generalized_box_iou(predicted[b, label][None], target)[0, 0])
    torch.testing.assert_close(box_loss(predicted, BOXES), torch.stack(values).mean(), atol=1e-6, rtol=0)
    boxes, present = enclosing_boxes(BOXES, 3)
    assert [tuple(i) for i in present.nonzero().tolist()] == sorted(around)
    torch.testing.assert_close(boxes[0, 0], torch.tensor(around[0, 0], dtype=torch.float64))


def test_gradients_and_what_has_none():
    torch.manual_seed(0)
    scores = torch.randn(3, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    low = torch.rand(3, 3, 2, dtype=torch.float64) * 0.5
    predicted = torch.cat([low, low + 0.1 + torch.rand_like(low) * 0.4], dim=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: heat_map_loss(s, BOXES), scores)
    assert torch.autograd.gradcheck(lambda p: box_loss(p, BOXES), predicted)
    place_loss(FindingOutput(None, scores, predicted), BOXES).backward()
    boxed = {(0, 0), (0, 2), (1, 1)}
    for part in (scores, predicted):
        for b in range(3):
            for label in range(3):
                assert part.grad[b, label].any() == ((b, label) in boxed)


def test_rows_without_a_box_change_nothing():
    torch.manual_seed(0)
    scores, predicted = torch.randn(3, 3, 4, 4), torch.rand(3, 3, 2).repeat(1, 1, 2) + torch.tensor([0, 0, 0.2, 0.2])
    found, boxes = FindingOutput(None, scores, predicted), BOXES.float()
    expected = place_loss(found, boxes)
    padded = torch.cat([torch.tensor(NONE).expand(3, 2, 5), boxes.flip(1)], dim=1)
    torch.testing.assert_close(place_loss(found, padded), expected)
    kept = FindingOutput(None, scores[:2], predicted[:2])  # the third image has no box
    torch.testing.assert_close(place_loss(kept, boxes[:2]), expected)
    assert place_loss(found, torch.tensor(NONE).expand(3, 4, 5)) == 0


def test_boxes_of_the_papers_blocks():
    torch.manual_seed(0)
    model = timm.create_model("efficientvit_ml_m0_mxa", num_classes=2, img_size=96).train()
    x, boxes = torch.randn(3, 3, 96, 96), BOXES.float()
    loss, logits = roi_place_loss(model, x, boxes)
    expected, maps = [], {}
    handles = [
        m.register_forward_hook(lambda m, inputs, output: maps.update({m: (inputs[0], output)}))
        for m in model.modules()
        if isinstance(m, ROIHead)
    ]
    torch.testing.assert_close(model(x), logits)  # nothing was changed by looking
    for handle in handles:
        handle.remove()
    for head, (x, box) in maps.items():
        cells = x.shape[-1]
        stride = {6: 16, 3: 32, 2: 64}[cells]
        here = boxes.clone()
        here[..., :4] = (((boxes[..., :4] * 96 - 0.5) / stride + 0.5) / cells).clamp(0, 1)
        here[..., 4].clamp_(max=0)
        found = FindingOutput(None, head.score(x), box[:, None])
        expected.append(place_loss(found, here))
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert len(expected) == 6
    assert all(head.score[-1].weight.grad.any() and head.log_scale.grad.any() for head in maps)


class Model(nn.Module):
    """Gives logits, and findings where they are asked for."""

    def __init__(self):
        super().__init__()
        self.finding_head = nn.Identity()
        self.scores = nn.Parameter(torch.zeros(1, 3, 4, 4))
        self.logits = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x, return_findings=False):
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(x), 3, 4)
        found = FindingOutput(None, self.scores.expand(len(x), -1, -1, -1), whole)
        logits = self.logits.expand(len(x), -1)
        return (logits, found) if return_findings else logits


def test_boxes_say_nothing_about_labels():
    task = MultiLabelTask(Model(), box_weight=3.0)
    x, boxes = torch.zeros(3, 1, 8, 8), BOXES.float()
    result = task(x, boxes)
    result["loss"].backward()
    found = task.trainable_module(x, return_findings=True)[1]
    torch.testing.assert_close(result["loss"], 3 * place_loss(found, boxes))
    assert task.trainable_module.logits.grad is None and task.trainable_module.scores.grad.any()
    assert result["output"].shape == (3, 3)
