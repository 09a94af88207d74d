"""``mxa bench models``: what the rows hold. No assertion is on a time."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch

from mxa.commands import output
from mxa.commands.bench.layers import BenchLayersConfig, _grid_resize, bench_layers
from mxa.commands.bench.models import BenchModelsConfig, bench_models
from mxa.layers import roi_resize
from mxa.utils.errors import InputError

COUNTED = ("params_m", "macs_g", "train_memory_mb")
TIMED = ("latency_b1_ms", "latency_ms", "images_per_s", "train_ms")


def tiny(**kwargs) -> BenchModelsConfig:
    small = {"models": ("efficientvit_ml_m0",), "peers": ("efficientvit_m0",), "batch_size": 2}
    return BenchModelsConfig(**{**small, "repeats": 2, "threads": 1, **kwargs})


def parameters(model: torch.nn.Module) -> int:
    return sum(math.prod(p.shape) for p in model.parameters())


def test_models_against_the_stock_one(tmp_path, capsys):
    threads = torch.get_num_threads()
    rows = bench_models(tiny(output=tmp_path / "bench.json"))
    assert torch.get_num_threads() == threads
    assert [row["model"] for row in rows] == ["efficientvit_m0", "efficientvit_ml_m0"]
    for row in rows:
        for key in COUNTED + TIMED:
            assert row[key] > 0 and math.isfinite(row[key])
            assert row[f"{key}_ratio"] > 0 and math.isfinite(row[f"{key}_ratio"])
        for key in TIMED:
            low, high = row[f"{key}_ratio_iqr"]
            assert low <= row[f"{key}_ratio"] <= high
        assert row["params_m"] * 1e6 == pytest.approx(parameters(timm.create_model(row["model"], num_classes=14)))
    stock, ours = rows
    assert all(stock[f"{key}_ratio"] == 1 for key in COUNTED + TIMED)
    assert ours["macs_g"] == pytest.approx(stock["macs_g"], rel=0.01)
    assert ours["macs_g"] == pytest.approx(0.079, rel=0.05)  # timm's published count
    assert ours["train_memory_mb"] == pytest.approx(stock["train_memory_mb"], rel=0.05)

    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["rows"] == rows
    assert record["config"]["batch_size"] == 2 and record["environment"]["threads"] == 1

    output.bench(None, rows)
    assert "efficientvit_ml_m0" in capsys.readouterr().out


def test_a_grafted_model_against_its_base():
    grafted = "mxa_grafted: {base: vit_tiny_patch16_224, depth: 2, grafted: {}}"
    plain, with_mxa = bench_models(tiny(models=(grafted,), peers=("vit_tiny_patch16_224: {depth: 2}",), img_size=64))
    assert with_mxa["model"] == grafted
    assert 1 < with_mxa["params_m_ratio"] < 1.1
    assert with_mxa["macs_g"] > plain["macs_g"]


def test_a_model_against_itself_in_another_size_and_layout():
    config = tiny(models=("efficientvit_ml_m0_mxa",) * 2, peers=(), img_size=128, repeats=1, channels_last=True)
    first, second = bench_models(config)
    for key in TIMED:
        assert second[f"{key}_ratio"] > 0 and math.isfinite(second[f"{key}_ratio"])
    for key in COUNTED:
        assert second[f"{key}_ratio"] == 1
    assert first["macs_g"] < 0.08


def test_saved_memory_grows_with_the_batch():
    small, large = (bench_models(tiny(peers=(), batch_size=n, repeats=1))[0]["train_memory_mb"] for n in (2, 4))
    assert large == pytest.approx(2 * small, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("efficientvit_ml_m9",)}, "unknown model 'efficientvit_ml_m9'.*timm.list_models"),
        ({"peers": ("nothing",)}, "unknown model 'nothing'.*timm.list_models"),
        ({"models": (), "peers": ()}, "at least one"),
        ({"batch_size": 1}, "batch_size"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_wrong_configurations_are_named(change, message):
    with pytest.raises(InputError, match=message):
        bench_models(tiny(**change))


def test_layers(tmp_path, capsys):
    rows = bench_layers(BenchLayersConfig(batch_sizes=(1, 2), repeats=2, threads=1, output=tmp_path / "layers.json"))
    assert len(rows) == 3 * 2 * 2
    assert {row["maps"] for row in rows} == {"192x14x14", "288x7x7", "384x4x4"}
    assert {row["pass"] for row in rows} == {"forward", "forward+backward"}
    for row in rows:
        assert row["grid_sample_ms"] > 0 and row["roi_resize_ms"] > 0 and math.isfinite(row["roi_resize_ms_ratio"])
    assert json.loads((tmp_path / "layers.json").read_text())["rows"] == rows
    output.bench(None, rows)
    assert "192x14x14" in capsys.readouterr().out


def test_the_peer_of_roi_resize_computes_the_same():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, 9, dtype=torch.float64)
    boxes = torch.tensor([[0.1, 0.2, 0.9, 0.7], [0.0, 0.0, 1.0, 1.0], [0.4, 0.3, 0.5, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(_grid_resize(x, boxes), roi_resize(x, boxes))


def test_mxa_stays_within_its_budget():
    model = timm.create_model("efficientvit_ml_m5_mxa", num_classes=14).eval()
    assert parameters(model) <= 12.6e6
    with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 <= 0.58e9
