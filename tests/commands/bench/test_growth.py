"""``mxa bench growth``: what the rows hold. No assertion is on a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys

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
    """In a process of its own, since another test's freed memory would be used again."""
    code = (
        "from mxa.utils.allocator import keep_memory; keep_memory(); from mxa.commands.bench.growth import _peak\n"
        "import numpy; print(*(_peak(lambda: numpy.ones(count)) for count in (3 * 10**7, 10**7)))"
    )
    held = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    for megabytes, right in zip(held, (240, 80), strict=True):  # the second pass does not use the memory of the first
        assert megabytes == "-" or 0.9 * right < float(megabytes) < 1.3 * right


@pytest.mark.parametrize("wrong", [{"threads": (0,)}, {"batch_sizes": (-1,)}, {"repeats": 0}])
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match="at least 1"):
        growth.bench_growth(BenchGrowthConfig(**wrong))
