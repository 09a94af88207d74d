"""Scores against boxes: cases worked by hand, plain loops beside them, and the baselines on real boxes."""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from mxa.data.boxes import read_boxed
from mxa.evaluation.report.localization import localization_markdown, write_csv
from mxa.metrics.bootstrap import seed_weights
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
from mxa.metrics.localization_table import THIRDS, CaseScore, localization_table
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


def case(image: str, patient: str, finding: str, value: float, method: str = "m", overlap: float = 0.3) -> CaseScore:
    return CaseScore(image, patient, finding, method, value, overlap, value / 2)


def some_cases(count: int = 60, seed: int = 0) -> list[CaseScore]:
    rng = np.random.default_rng(seed)
    return [case(f"{i}", f"p{i // 2}", ("Mass", "Edema")[i % 3 > 0], rng.random()) for i in range(count)]


def test_table_by_hand():
    rows = [case("1", "a", "Mass", 1), case("2", "b", "Mass", 0), case("2", "b", "Edema", 1, overlap=0.31)]
    rows += [CaseScore("1", "a", "Mass", "point", 1, NAN, NAN)]
    table = {(r["method"], r["finding"]): r for r in localization_table(rows, 50)}
    assert list(table) == [
        *(("m", f) for f in ("Mass", "Edema", "all", "all cases")),
        *(("point", f) for f in ("Mass", "all", "all cases")),
    ]
    assert [table["m", f]["pointing"] for f in ("Mass", "Edema", "all", "all cases")] == [0.5, 1, 0.75, 0.666667]
    assert [table["m", f]["n"] for f in ("Mass", "Edema", "all")] == [2, 1, 3]
    assert table["m", "all"]["patients"] == 2 and table["m", "all"]["energy"] == 0.375
    hits = ("hit_0.1", "hit_0.3", "hit_0.5")
    assert [table["m", "Mass"][h] for h in hits] == [1, 0, 0]  # 0.3 is not above 0.3
    assert [table["m", "all"][h] for h in hits] == [1, 0.5, 0]
    assert table["point", "all"]["pointing"] == 1
    assert (
        table["point", "all"]["iou"]
        is table["point", "all"]["iou_interval"]
        is table["point", "all"]["hit_0.1"]
        is None
    )


def test_intervals_are_quantiles_of_means_over_drawn_patients():
    rows = [r._replace(finding="Mass") for r in some_cases()]
    result = localization_table(rows, 1000)[0]
    patients = defaultdict(list)
    for row in rows:
        patients[row.patient].append(row.pointing)
    rng, values = np.random.default_rng(5), list(patients.values())
    means = [np.mean(np.concatenate([values[i] for i in rng.integers(0, 30, 30)])) for _ in range(4000)]
    np.testing.assert_allclose(result["pointing_interval"], np.quantile(means, [0.025, 0.975]), atol=0.01)
    assert result["pointing"] == pytest.approx(np.mean([r.pointing for r in rows]), abs=1e-6)


def test_a_patients_images_move_together():
    rows = some_cases()
    copies = [r._replace(image=f"{r.image}-{i}") for r in rows for i in range(5)]
    one, five = localization_table(rows, 200), localization_table(copies, 200)
    for a, b in zip(one, five, strict=True):
        assert a["pointing_interval"] == pytest.approx(b["pointing_interval"]) and b["n"] == 5 * a["n"]
    assert localization_table(rows, 200) == one
    assert localization_table(rows, 200, seed=1)[0]["pointing_interval"] != one[0]["pointing_interval"]


def test_methods_see_the_same_draws():
    rows = some_cases()
    table = localization_table([*rows, *(r._replace(method="twin") for r in rows)], 100)
    half = len(table) // 2
    assert [{**r, "method": "twin"} for r in table[:half]] == table[half:]


def test_a_replicate_without_a_finding_is_skipped():
    rows = [case("1", "a", "Mass", 1), case("2", "b", "Edema", 0)]
    table = {r["finding"]: r for r in localization_table(rows, 100)}
    assert table["Mass"]["pointing_interval"] == [1, 1] and table["all"]["pointing_interval"] == [0.5, 0.5]
    assert table["all cases"]["pointing_interval"] == [0, 1]


def test_seeds_are_averaged_and_drawn_with_the_patients():
    rows = [*some_cases(), *(r._replace(seed=1) for r in some_cases(seed=1))]
    both = localization_table(rows, 500)
    alone = [localization_table(some_cases(seed=s), 500) for s in (0, 1)]
    for row, *ones in zip(both, *alone, strict=True):
        assert row["pointing"] == pytest.approx(np.mean([one["pointing"] for one in ones]), abs=1e-6)
        assert [row[k] for k in ("finding", "n", "patients")] == [ones[0][k] for k in ("finding", "n", "patients")]
    assert localization_table(rows[::-1], 500)[-1] == both[-1]  # the order is nothing


def test_the_interval_over_seeds_is_that_of_their_spread():
    rows = [
        case(f"{i}", f"p{i}", "Mass", value)._replace(seed=s)
        for s, value in enumerate((0.4, 0.5, 0.9))
        for i in range(9)
    ]
    means = 0.6 + seed_weights(3, 1000, 0) @ (-0.2, -0.1, 0.3)  # no patient differs from another
    interval = localization_table(rows, 1000)[0]["pointing_interval"]
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-4) and interval[1] - interval[0] > 0.4
    wide = [r._replace(pointing=float(r.seed == 0)) for r in rows]
    low, high = localization_table(wide, 1000)[0]["pointing_interval"]
    assert low == 0 and high <= 1  # widened shares may be below 0, pointing may not


@pytest.mark.parametrize("other", [{"image": "x"}, {"finding": "Edema"}, {"method": "another"}, {"energy": NAN}])
def test_seeds_must_have_the_same_cases(other):
    rows = [case(f"{i}", "p", "Mass", 1) for i in range(3)]
    seeds = [*rows, *(r._replace(seed=1) for r in rows[:2]), rows[2]._replace(seed=1, **other)]
    with pytest.raises(InputError, match="not every seed has the same cases"):
        localization_table(seeds)


def test_table_refuses_what_it_cannot_average():
    with pytest.raises(InputError, match="at least one case"):
        localization_table([])
    with pytest.raises(InputError, match="one replicate"):
        localization_table(some_cases(), 0)
    with pytest.raises(InputError, match="scored twice"):
        localization_table([case("1", "a", "Mass", 1)] * 2)


def test_csv_and_markdown(tmp_path):
    rows = [*some_cases(), CaseScore("0", "p0", "Edema", "point", 1, NAN, NAN)]
    table = [{"model": "M0", **row} for row in localization_table(rows, 50)]
    write_csv(table, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [r["finding"] for r in read] == [r["finding"] for r in table] and {r["model"] for r in read} == {"M0"}
    assert float(read[0]["pointing_high"]) == table[0]["pointing_interval"][1] and read[-1]["iou_low"] == ""
    lines = localization_markdown(table).splitlines()
    assert lines[0] == "| model | method | pointing | energy | IoU | IoU > 0.1 | IoU > 0.25 | IoU > 0.3 | IoU > 0.5 |"
    low, high = table[2]["pointing_interval"]
    assert lines[2].startswith(f"| M0 | m | {table[2]['pointing']:.3f} ({low:.3f}-{high:.3f}) |")
    assert "| model | method | Mass (20) | Edema (40) | all cases (60) |" in lines
    assert "| M0 | point | - | 1.000 (1.000-1.000) | 1.000 (1.000-1.000) |" in lines


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


def test_thirds_by_the_area_of_the_boxes():
    rows = [
        CaseScore(str(i), f"p{i}", ("Mass", "Edema")[i % 2], method, float(i < 3), NAN, NAN, area=i / 10)
        for i in range(9)
        for method in ("one", "other")
    ]
    table = {(row["method"], row["finding"]): row for row in localization_table(rows, 20)}
    for method in ("one", "other"):
        assert [table[method, third]["pointing"] for third in THIRDS] == [1, 0, 0]
        assert [table[method, third]["n"] for third in THIRDS] == [3, 3, 3]
    without = localization_table([row._replace(area=NAN) for row in rows], 20)
    assert not {row["finding"] for row in without} & set(THIRDS)
