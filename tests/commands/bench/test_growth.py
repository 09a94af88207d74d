"""``mxa bench growth``: what the rows hold. No assertion is on a time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from mxa.commands.bench import growth
from mxa.commands.bench.config import BenchGrowthConfig
from mxa.utils.errors import InputError


def test_rows_files_and_exponents(tmp_path):
    config = BenchGrowthConfig(("efficientvit_ml_m0_mxa",), (1, 2), (64, 128), (1,), 1, tmp_path / "out")
    rows = growth.bench_growth(config)
    assert [(row["batch"], row["px"]) for row in rows] == [(1, 224), (2, 224), (8, 64), (8, 128)]
    for row in rows:
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["ms"] * 1e3)
    assert [row["time_exponent"] == "-" for row in rows] == [True, False, True, False]
    one, two = rows[2:]
    assert two["time_exponent"] == pytest.approx(math.log(two["ms"] / one["ms"]) / math.log(2))
    assert json.loads((tmp_path / "out" / "growth.json").read_text())["rows"] == rows
    with Image.open(tmp_path / "out" / "growth.png") as image:
        assert np.ptp(np.asarray(image.convert("L"))) > 100


def test_the_peak_is_that_of_the_function():
    held = growth._peak(lambda: np.ones(30_000_000).sum())  # 240 MB
    assert held == "-" or 200 < held < 400
    again = growth._peak(lambda: np.ones(10_000_000).sum())
    assert again == "-" or 60 < again < 200


@pytest.mark.parametrize("wrong", [{"threads": (0,)}, {"batch_sizes": (-1,)}, {"repeats": 0}])
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match="at least 1"):
        growth.bench_growth(BenchGrowthConfig(**wrong))
