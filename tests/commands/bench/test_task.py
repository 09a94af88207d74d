import json

import pytest
import torch

from mxa.commands.bench.task import BenchTaskConfig, bench_task
from mxa.utils.errors import InputError


def test_bench_task(tmp_path):
    output = tmp_path / "bench.json"
    before = torch.get_num_threads()
    rows = bench_task(
        BenchTaskConfig(models=("efficientvit_ml_m0",), batch_size=2, img_size=64, repeats=2, threads=1, output=output)
    )
    row = rows[0]
    assert row["kd_step_ms"] > row["teacher_ms"] > 0 and row["step_ms"] > 0
    low, high = row["kd_step_ms_ratio_iqr"]
    assert low <= row["kd_step_ms_ratio"] <= high
    assert row["images_per_s"] == pytest.approx(2000 / row["step_ms"])
    assert json.loads(output.read_text())["rows"] == rows
    assert torch.get_num_threads() == before


def test_bad_input():
    with pytest.raises(InputError, match="batch_size of at least 2"):
        bench_task(BenchTaskConfig(batch_size=1))
    with pytest.raises(InputError, match="unknown model"):
        bench_task(BenchTaskConfig(models=("nothing",), repeats=1))
