"""A benchmark says where its noise is larger than the difference that it found."""

from __future__ import annotations

import pytest

from mxa.commands.bench.config import BenchDataConfig, BenchModelsConfig, BenchRuntimesConfig, BenchScoresConfig
from mxa.commands.output import bench

REFERENCE = {"model": "plain", "latency_ms": 10.0, "latency_ms_ratio": 1.0, "latency_ms_ratio_iqr": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("ratio", "quartiles", "unclear"),
    [
        (1.05, [1.04, 1.06], False),
        (1.05, [1.02, 1.08], True),
        (0.90, [0.86, 0.94], False),
        (0.90, [0.80, 0.95], True),
        (1.00, [1.00, 1.00], False),
    ],
)
def test_a_ratio_within_its_noise_is_marked(ratio, quartiles, unclear, capsys):
    other = {"model": "other", "latency_ms": 10 * ratio, "latency_ms_ratio": ratio, "latency_ms_ratio_iqr": quartiles}
    bench(None, [REFERENCE, other])
    shown = capsys.readouterr().out
    assert ("no difference was seen" in shown) == unclear
    assert (f"{ratio:.2f}x ?" in shown) == unclear and "1.00x" in shown and "1.00x ?" not in shown


def test_what_is_counted_has_no_noise(capsys):
    bench(
        None,
        [
            {"model": "a", "params_m": 1.0, "params_m_ratio": 1.0},
            {"model": "b", "params_m": 2.0, "params_m_ratio": 2.0},
        ],
    )
    assert "?" not in capsys.readouterr().out


@pytest.mark.parametrize("config", [BenchModelsConfig, BenchRuntimesConfig, BenchDataConfig, BenchScoresConfig])
def test_goals_stand_beside_the_figures(config, capsys):
    bench(config(), [REFERENCE])
    assert "goal" in capsys.readouterr().out
