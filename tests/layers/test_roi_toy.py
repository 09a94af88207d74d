"""The box learns to follow an object from the class loss alone.

Each map holds one bright square at a random place, of two classes: its fine stripes run along x or along y. After the
crop a low-pass filter with stride blurs them away unless the crop has zoomed in. Contrast differs from image to image:
strong stripes give the first gradient, faint ones keep rewarding a tighter box.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mxa.layers import ROIPool

SIDE, OBJECT, PERIOD, DIM = 48, 15, 4, 8


def draw(n, generator):
    """Maps ``(n, DIM, SIDE, SIDE)``, classes ``(n,)`` and the squares' boxes ``(n, 4)``."""
    corner = torch.randint(0, SIDE - OBJECT + 1, (n, 2), generator=generator)  # x, y
    label = torch.randint(0, 2, (n,), generator=generator)
    phase = torch.randint(0, PERIOD, (n, 1), generator=generator)
    contrast = torch.exp(3 * torch.rand(n, 1, 1, generator=generator) - 1.5)
    at = torch.arange(SIDE)
    inside = ((at >= corner[..., None]) & (at < corner[..., None] + OBJECT)).float()  # (n, 2, SIDE)
    square = inside[:, 0, None, :] * inside[:, 1, :, None]
    wave = torch.cos(2 * torch.pi * (at + phase) / PERIOD)
    stripes = torch.where(label[:, None, None] == 0, wave[:, None, :], wave[:, :, None]) * square * contrast
    x = torch.randn(n, DIM, SIDE, SIDE, generator=generator)
    x[:, : DIM // 2] += 2 * square[:, None]
    x[:, DIM // 2 :] += stripes[:, None]
    return x, label, torch.cat([corner, corner + OBJECT], dim=1) / SIDE


def train(roi_head, seed, steps):
    """Trains on fresh images, scores on others: accuracy, mean IoU, mean distance of the centres in sides."""
    torch.manual_seed(seed)
    pool = ROIPool(DIM, roi_head)
    coarse = nn.Sequential(nn.AvgPool2d(3, 1), nn.AvgPool2d(3, 1), nn.AvgPool2d(3, 4))
    classifier = nn.Sequential(
        nn.Conv2d(DIM, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    )
    model = nn.Sequential(pool, coarse, classifier)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, label, _ = draw(32, generator)
        loss = F.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        x, label, truth = draw(256, torch.Generator().manual_seed(10_000 + seed))
        boxes, accuracy = pool.head(x), (model(x).argmax(1) == label).float().mean().item()
    distance = ((boxes[:, :2] + boxes[:, 2:]) / 2 - (truth[:, :2] + truth[:, 2:]) / 2).norm(dim=1).mean().item()
    overlap = (torch.minimum(boxes, truth)[:, 2:] - torch.maximum(boxes, truth)[:, :2]).clamp(min=0).prod(1)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, truth)]
    iou = (overlap / (areas[0] + areas[1] - overlap)).mean().item()
    print(f"{roi_head} seed {seed}: accuracy {accuracy:.3f}, IoU {iou:.3f}, centre error {distance:.3f}")
    return accuracy, iou, distance


def test_softmax_head_finds_the_object_and_the_mean_head_does_not():
    softmax, mean = (train(roi_head, seed=0, steps=70) for roi_head in ("softmax", "mean"))
    assert softmax[2] < mean[2] / 2
    assert softmax[0] > mean[0]


@pytest.mark.slow
def test_softmax_head_finds_the_object_from_three_seeds():
    runs = [train("softmax", seed, steps=300) for seed in range(3)]
    assert math.fsum(iou for _, iou, _ in runs) / 3 >= 0.4
    assert math.fsum(distance for _, _, distance in runs) / 3 <= 0.06
