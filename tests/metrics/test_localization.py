"""Scores against boxes: cases worked by hand, plain loops beside them, and the baselines on real boxes."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from mxa.data.boxes import read_boxed
from mxa.metrics.localization import (
    CENTRE,
    box_from_map,
    commonest_point,
    energy_inside,
    iou,
    mean_box,
    pointing,
    score_box,
    score_map,
    score_point,
)
from mxa.utils.errors import InputError

NAN = float("nan")
LEFT = np.array([[0, 0, 0.5, 1.0]])


def some_boxes(rng: np.random.Generator, count: int, lattice: int | None = None) -> np.ndarray:
    """``(count, 4)`` boxes of some extent, on a lattice where one is given."""
    if lattice is None:
        start = rng.uniform(0, 0.8, (count, 2))
        return np.concatenate([start, start + rng.uniform(0.05, 0.2, (count, 2))], axis=1)
    start = rng.integers(0, lattice - 1, (count, 2))
    return np.concatenate([start, rng.integers(start + 1, lattice + 1)], axis=1) / lattice


def cells_inside(boxes: np.ndarray, height: int, width: int) -> set[tuple[int, int]]:
    """Cells whose centre is in a box, by plain loops."""
    return {
        (i, j)
        for i, j in itertools.product(range(height), range(width))
        if any(x1 <= (j + 0.5) / width <= x2 and y1 <= (i + 0.5) / height <= y2 for x1, y1, x2, y2 in boxes.tolist())
    }


def flip(boxes: np.ndarray) -> np.ndarray:
    return np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], axis=-1)


@pytest.mark.parametrize(
    ("heat_map", "expected"),
    [
        ([[9, 0], [0, 0]], 1),
        ([[0, 9], [0, 0]], 0),
        ([[9, 9], [0, 0]], 1 / 2),
        ([[9, 9], [9, 0]], 2 / 3),
        ([[5, 5], [5, 5]], 1 / 2),  # a constant map: the area of the box
        ([[-1, -2], [-2, -2]], 1),  # the peak may be negative
        ([[1, 2, 3, 4]], 0),
        ([[0, 1, 0, 0]], 1),  # not square: the cell's centre is at x = 3/8
    ],
)
def test_pointing_by_hand(heat_map, expected):
    assert pointing(np.array(heat_map), LEFT) == pytest.approx(expected)


def test_a_cell_stands_for_its_centre():
    peak = np.zeros((4, 4))
    peak[1, 2] = 1  # x from 0.5 to 0.75 with its centre at 0.625; y from 0.25 to 0.5 with its centre at 0.375
    assert pointing(peak, np.array([[0.5, 0.25, 0.75, 0.5]])) == 1
    assert pointing(peak, np.array([[0.625, 0.375, 1, 1]])) == 1  # the edge belongs to the box
    assert pointing(peak, np.array([[0.626, 0.25, 0.75, 0.5]])) == 0
    assert pointing(peak, np.array([[0.25, 0.5, 0.5, 0.75]])) == 0  # x and y changed about


@pytest.mark.parametrize(
    ("heat_map", "expected"),
    [
        ([[3, 1], [0, 0]], 3 / 4),
        ([[3, 1], [2, -7]], 5 / 6),
        ([[0, 0], [0, 0]], 0),
        ([[-1, -1], [-1, -1]], 0),
        ([[1e-320, 0], [1e-320, 0]], 1),  # too small to be summed as it is
        ([[1e308, 1e308], [1e308, 1e308]], 1 / 2),
    ],
)
def test_energy_by_hand(heat_map, expected):
    assert energy_inside(np.array(heat_map, dtype=float), LEFT) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("heat_map", "expected"),
    [
        ([[0, 0, 0, 0], [0, 8, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], (0.25, 0.25, 0.5, 0.5)),
        ([[9, 0, 0, 0], [0, 0, 0, 0], [0, 0, 6, 5], [0, 0, 0, 0]], (0.5, 0.5, 1, 0.75)),  # the larger, not the higher
        ([[9, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], (0, 0, 0.25, 0.25)),  # 4 is below half of 9
        ([[8, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], (0, 0, 0.5, 0.5)),  # half is enough, and a corner
        ([[5, 0, 0, 6], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], (0.75, 0, 1, 0.25)),  # one size: the larger sum
        ([[6, 0, 0, 6], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], (0, 0, 0.25, 0.25)),  # one sum: the first
        (np.full((4, 4), 3), (0, 0, 1, 1)),
        (np.zeros((4, 4)), (0, 0, 0, 0)),
        (np.full((4, 4), -1), (0, 0, 0, 0)),
    ],
)
def test_box_from_map_by_hand(heat_map, expected):
    np.testing.assert_array_equal(box_from_map(np.array(heat_map)), expected)


def test_box_from_map_is_what_a_flood_fill_finds():
    rng = np.random.default_rng(0)
    for _ in range(40):
        heat = rng.random((7, 9))
        over = {(i, j) for i, j in itertools.product(range(7), range(9)) if heat[i, j] >= 0.7 * heat.max()}
        parts = []
        while over:
            part, front = set(), [over.pop()]
            while front:
                i, j = front.pop()
                part.add((i, j))
                near = {(a, b) for a in (i - 1, i, i + 1) for b in (j - 1, j, j + 1)} & over
                over -= near
                front += near
            parts.append(part)
        largest = max(parts, key=lambda part: (len(part), sum(heat[c] for c in part)))
        rows, columns = zip(*largest, strict=True)
        expected = min(columns) / 9, min(rows) / 7, (max(columns) + 1) / 9, (max(rows) + 1) / 7
        np.testing.assert_allclose(box_from_map(heat, 0.7), expected)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[0, 0, 0.5, 0.5]], 1),
        ([[0.25, 0, 0.75, 0.5]], 1 / 3),
        ([[0.5, 0, 1, 0.5]], 0),  # they touch
        ([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.25]], 1),  # the union counts each place once
        ([[0, 0, 0.25, 0.5], [0.25, 0, 0.5, 0.5]], 1),
        ([[0, 0, 0.25, 0.5], [0.75, 0, 1, 0.5]], 1 / 3),
        ([[0.1, 0.1, 0.1, 0.1]], 0),
    ],
)
def test_iou_by_hand(boxes, expected):
    assert iou(np.array([0, 0, 0.5, 0.5]), np.array(boxes)) == pytest.approx(expected)


def test_iou_of_nothing_with_nothing_is_zero():
    assert iou(np.full(4, 0.5), np.full((1, 4), 0.5)) == 0


def test_iou_is_torchvisions_for_one_box():
    one, other = some_boxes(np.random.default_rng(0), 60), some_boxes(np.random.default_rng(1), 60)
    expected = box_iou(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    ours = [[iou(a, b[None]) for b in other] for a in one]
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    assert (expected > 0).sum() > 20


def test_scores_are_what_counting_cells_gives():
    rng = np.random.default_rng(2)
    for _ in range(60):
        boxes, box = some_boxes(rng, int(rng.integers(1, 4)), 12), some_boxes(rng, 1, 12)
        heat = rng.integers(-2, 4, (12, 12)).astype(float)
        inside, own = cells_inside(boxes, 12, 12), cells_inside(box, 12, 12)
        assert iou(box[0], boxes) == pytest.approx(len(inside & own) / len(inside | own))
        assert score_box(box[0], boxes).energy == pytest.approx(len(inside & own) / len(own))
        peaks = [tuple(c) for c in np.argwhere(heat == heat.max())]
        assert pointing(heat, boxes) == pytest.approx(np.mean([c in inside for c in peaks]))
        mass = np.maximum(heat, 0)
        assert energy_inside(heat, boxes) == pytest.approx(sum(mass[c] for c in inside) / mass.sum())


def test_a_box_scores_as_the_map_that_is_constant_in_it():
    rng = np.random.default_rng(3)
    for _ in range(30):
        box, boxes = some_boxes(rng, 1, 16)[0], some_boxes(rng, 2, 16)
        heat = np.zeros((16, 16))
        for cell in cells_inside(box[None], 16, 16):
            heat[cell] = 1
        assert score_map(heat, boxes)[1:] == pytest.approx(score_box(box, boxes)[1:])
    assert score_box(np.array([0.2, 0, 0.6, 1]), LEFT) == pytest.approx((1, 0.75, 0.5))  # its centre is at x = 0.4
    assert np.isnan(score_box(np.full(4, NAN), LEFT)).all()


def test_a_point_has_neither_energy_nor_extent():
    assert score_point(0.5, 0.9, LEFT)[0] == 1 and score_point(0.51, 0.9, LEFT)[0] == 0
    assert np.isnan(score_point(*CENTRE, LEFT)[1:]).all()


@pytest.mark.parametrize("seed", range(10))
def test_properties(seed):
    rng = np.random.default_rng(seed)
    heat, boxes = rng.normal(size=(15, 11)), some_boxes(rng, 3)
    scores = score_map(heat, boxes)
    for monotone in (np.exp, np.arctan, lambda x: 5 * x - 3):
        assert pointing(monotone(heat), boxes) == scores.pointing
    assert score_map(3 * heat, boxes) == pytest.approx(scores)
    assert score_map(heat[:, ::-1], flip(boxes)) == pytest.approx(scores)
    assert score_map(heat.T, boxes[:, [1, 0, 3, 2]]) == pytest.approx(scores)
    assert score_map(heat, np.concatenate([boxes, boxes])) == pytest.approx(scores)
    assert all(0 <= s <= 1 for s in scores)
    box = some_boxes(rng, 1)[0]
    assert score_box(flip(box), flip(boxes)) == pytest.approx(score_box(box, boxes))
    assert iou(box, boxes[:1]) == pytest.approx(iou(boxes[0], box[None]))


def test_wrong_input_is_named():
    with pytest.raises(InputError, match=r"\(H, W\), got \(1, 2, 2\)"):
        pointing(np.zeros((1, 2, 2)), LEFT)
    with pytest.raises(InputError, match="not finite"):
        score_map(np.array([[NAN, 1]]), LEFT)
    with pytest.raises(InputError, match=r"K at least 1, got \(0, 4\)"):
        energy_inside(np.ones((2, 2)), np.zeros((0, 4)))
    with pytest.raises(InputError, match="x1 <= x2"):
        iou(np.array([0.5, 0, 0.1, 1]), LEFT)
    with pytest.raises(InputError, match="threshold"):
        box_from_map(np.ones((2, 2)), 0)


def test_mean_box_by_hand():
    boxes = [np.array([[0, 0, 0.2, 0.2]]), np.array([[0.2, 0, 0.4, 0.2], [0.4, 0, 0.6, 0.2]]), np.array([[1, 1, 1, 1]])]
    found = mean_box(boxes, ["a", "b", "a"])
    np.testing.assert_allclose(found, [[0.3, 0, 0.5, 0.2], [0.5, 0.5, 0.6, 0.6], [0.3, 0, 0.5, 0.2]])
    assert np.isnan(mean_box(boxes, ["a", "a", "a"])).all()


def test_commonest_point_is_where_most_of_the_others_boxes_are():
    rng = np.random.default_rng(4)
    boxes, patients = [some_boxes(rng, 2, 10) for _ in range(9)], [str(i // 2) for i in range(9)]
    found = dict(commonest_point(boxes, patients, side=10))
    assert sorted(found) == list(range(9))
    for i, cover in found.items():
        expected = np.zeros((10, 10))
        for other, patient in zip(boxes, patients, strict=True):
            if patient != patients[i]:
                for cell in cells_inside(other, 10, 10):
                    expected[cell] += 1
        np.testing.assert_array_equal(cover, expected)
    assert list(commonest_point(boxes, ["a"] * 9)) == []


def test_baselines_on_real_boxes(nih_boxes):
    _, images = read_boxed("nih", nih_boxes)
    by_finding = defaultdict(list)
    for image in images:
        for finding, boxes in image.boxes.items():
            by_finding[finding].append((image.patient, boxes))
    centre, mean, commonest = defaultdict(list), [], []
    for finding, cases in by_finding.items():
        patients, boxes = zip(*cases, strict=True)
        centre[finding] = [score_point(*CENTRE, b).pointing for b in boxes]
        mean += [score_box(m, b).pointing for m, b in zip(mean_box(boxes, patients), boxes, strict=True)]
        commonest += [pointing(cover, boxes[i]) for i, cover in commonest_point(boxes, patients)]
    every = [*itertools.chain(*centre.values())]
    assert len(images) == 594 and len(every) == len(mean) == len(commonest) == 661 and len(by_finding) == 8
    assert np.mean(every) == pytest.approx(0.236, abs=5e-4)
    assert np.mean(centre["Cardiomegaly"]) == pytest.approx(107 / 108) and np.mean(centre["Nodule"]) == 0
    assert np.mean(mean) == pytest.approx(0.251, abs=5e-4)
    assert np.mean(commonest) == pytest.approx(0.405, abs=5e-4)
