"""The Medical X-ray Attention block (paper, section 2.2)."""

from __future__ import annotations

import torch
from timm.layers import LayerScale2d, register_notrace_module
from torch import nn

from .cbam import CBAM
from .roi import ROIPool

__all__ = ["MXABlock"]


@register_notrace_module  # FX cannot trace code that depends on the size of the map
class MXABlock(nn.Module):
    """Medical X-ray Attention: ROI pooling, then CBAM, gated (paper, section 2.2 and appendices D and E).

    Gives ``F_MXA = gamma * CBAM(ROIPool(x))``; the caller adds it beside self-attention, ``x + MHSA(x) + MXA(x)``.

    Args:
        dim: Channels C.
        reduction: Reduction of CBAM's channel attention.
        kernel_size: Kernel of CBAM's spatial attention.
        roi_head: Box head, ``"softmax"`` or ``"mean"`` (see ``ROIPool``).
        min_size: Smallest side of a box, in (0, 1).
        init_values: First value of the gate ``gamma``, one per channel. 1.0 is the paper's plain sum; with 0.0 an
            untrained block adds exactly nothing.

    Shape: ``(B, C, H, W)`` to the same, any H and W.

    >>> block = MXABlock(32, init_values=0.0).eval()
    >>> block(torch.ones(1, 32, 7, 9)).abs().max().item()
    0.0
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        kernel_size: int = 7,
        roi_head: str = "softmax",
        min_size: float = 0.1,
        init_values: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.roi = ROIPool(dim, roi_head, min_size, **dd)
        self.cbam = CBAM(dim, reduction, kernel_size, **dd)
        self.ls = LayerScale2d(dim, init_values, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ls(self.cbam(self.roi(x)))
