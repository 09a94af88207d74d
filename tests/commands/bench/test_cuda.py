"""``mxa bench cuda``: the same steps on the CPU; a test on a GPU runs where there is one."""

from __future__ import annotations

import pytest
import torch

from mxa.commands.bench.config import BenchCudaConfig
from mxa.commands.bench.cuda import _LiteralPool, bench_cuda
from mxa.layers import ROIPool
from mxa.utils.errors import InputError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_rows(device):
    rows = bench_cuda(BenchCudaConfig("efficientvit_ml_m0_mxa", 2, 64, 1, device))
    assert len(rows) == (5 if device == "cuda" else 4) and all(row["value"] >= 0 and row["goal"] for row in rows)


def test_the_paper_s_crop_in_a_loop_is_near_ours():
    """It rounds its boxes to whole cells, so a smooth map comes out nearly the same."""
    torch.manual_seed(0)
    pool = ROIPool(4).eval()
    line = torch.linspace(0, 1, 40)
    x = (line[:, None] + line).expand(2, 4, 40, 40).contiguous()
    ours = pool(x)
    pool.__class__ = _LiteralPool
    assert (pool(x) - ours).abs().max() < 0.1 and not torch.equal(ours, x)


@pytest.mark.parametrize("wrong", [{"model": "efficientvit_ml_m0"}, {"batch_size": 1}])
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match="_mxa"):
        bench_cuda(BenchCudaConfig(device="cpu", **wrong))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_remedy_is_named():
    with pytest.raises(InputError, match="--device cpu"):
        bench_cuda(BenchCudaConfig())
