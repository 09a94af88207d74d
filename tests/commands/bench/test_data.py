"""``mxa bench data``: what the rows hold. No assertion is on a time."""

from __future__ import annotations

import json
import math
import os

import pandas as pd
import pytest
import torch

from mxa.commands import output
from mxa.commands.bench.data import BenchDataConfig, _exhaust, _our_loader, _subset, _xrv_loader, bench_data
from mxa.data.collections.xrv import shipped_table
from mxa.utils.errors import InputError


@pytest.fixture(params=[2_000, pytest.param(None, marks=pytest.mark.slow)])
def real_table(request, tmp_path, monkeypatch):
    """CheXpert's table: its first rows, or all."""
    if request.param is not None:
        path = tmp_path / "chexpert_train.csv.gz"
        pd.read_csv(shipped_table(path.name), nrows=request.param, dtype=str).to_csv(path, index=False)
        monkeypatch.setattr("mxa.commands.bench.data.shipped_table", lambda name: path)


@pytest.mark.filterwarnings("ignore")
def test_rows(real_table, tmp_path, capsys):
    root = tmp_path / "drawn"
    folder = _subset(BenchDataConfig(images=33), root)
    assert len(list(folder.rglob("*.jpg"))) == 33
    rows = bench_data(BenchDataConfig(str(folder), images=33, img_size=64, repeats=1, output=tmp_path / "bench.json"))
    assert [row["loader"] for row in rows] == ["torchxrayvision", "mxa, files", "mxa, shards", "libjpeg-turbo"]
    for row in rows:
        assert row["images_per_s"] > 0 and math.isfinite(row["images_per_s_ratio"])
    assert rows[0]["images_per_s_ratio"] == 1
    for row in rows[:2]:
        assert row["startup_s"] > 0
        if os.path.exists("/proc/self/smaps_rollup"):
            assert 0 < row["startup_mb"] < 2000 and abs(row["worker_growth_mb"]) < 500
    assert rows[2]["startup_s"] == "-"
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == rows
    output.bench(None, rows)
    assert "torchxrayvision" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_both_load_the_same_images(tmp_path):
    folder = _subset(BenchDataConfig(images=33), tmp_path / "drawn")
    theirs, ours = _xrv_loader(folder, 64), _our_loader("chexpert", folder, 64)
    assert _exhaust(theirs) == _exhaust(ours) == 33
    one = torch.cat([batch["img"] for batch in theirs]) / 1024  # TorchXRayVision's range is [-1024, 1024]
    other = torch.cat([images[:, :1] for images, _ in ours])  # here (x - 0.5) / 0.5
    assert (one - other).abs().mean() < 0.03


def test_too_few_images():
    with pytest.raises(InputError, match="--images must be at least 32"):
        bench_data(BenchDataConfig(images=3))
