"""The table of localisation scores: means, intervals and what is refused."""

from __future__ import annotations

import csv
from collections import defaultdict

import numpy as np
import pytest

from mxa.evaluation.report.localization import localization_markdown, write_csv
from mxa.metrics.bootstrap import seed_weights
from mxa.metrics.localization_table import THIRDS, CaseScore, localization_table
from mxa.utils.errors import InputError

NAN = float("nan")


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
