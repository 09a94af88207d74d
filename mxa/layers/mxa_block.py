"""The Medical X-ray Attention block (paper, section 2.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerScale2d, register_notrace_module
from torch import nn

from .cbam import CBAM, CBAM3d
from .roi import ROIPool, ROIPool3d, roi_resize

__all__ = ["MXABlock", "MXABlock3d"]


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
        input_fmt: One of timm's ``Format`` names: ``"NCHW"``, ``"NHWC"``, or ``"NLC"`` for tokens, row by row.
        num_prefix_tokens: For ``"NLC"``, tokens before those of the map (class, registers): MXA does not see them and
            gives zeros there.
        grid_size: For ``"NLC"``, the map's (H, W). Another number of tokens is taken as a map of the same aspect ratio;
            square by default.
        source_dim: Channels of a finer map of the same image, the second argument of ``forward``. The box is predicted
            from ``x`` and cut from the finer map; a 1x1 convolution brings the crop to C channels. The crop then holds
            detail that ``x`` has lost, while the paper's crop only enlarges ``x``. docs/results.md says what that is
            worth.

    Shape: ``(B, C, H, W)``, ``(B, H, W, C)`` or ``(B, P + H W, C)`` to the same, any H and W; a finer map is
    ``(B, source_dim, H', W')``, any H' and W'.

    Raises:
        ValueError: an unknown format, prefix tokens or a grid for a format other than tokens; in ``forward`` an input
            of another format or width, tokens that do not fill a grid, or a finer map that is missing or not expected.

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
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        grid_size: tuple[int, int] | None = None,
        source_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if input_fmt not in ("NCHW", "NHWC", "NLC"):
            raise ValueError(f"unknown input_fmt {input_fmt!r}: give NCHW, NHWC or NLC")
        if input_fmt != "NLC" and (num_prefix_tokens or grid_size):
            raise ValueError(f"num_prefix_tokens and grid_size are for tokens (NLC), not for {input_fmt}")
        self.dim = dim
        self.input_fmt = input_fmt
        self.num_prefix_tokens = num_prefix_tokens
        self.grid_size = (1, 1) if grid_size is None else tuple(grid_size)  # (H, W), or any size of that aspect ratio
        self.roi = ROIPool(dim, roi_head, min_size, **dd)
        self.cbam = CBAM(dim, reduction, kernel_size, **dd)
        self.ls = LayerScale2d(dim, init_values, **dd)
        self.project = None
        if source_dim is not None:
            convolution = nn.Conv2d(source_dim, dim, 1, bias=False, **dd)
            self.project = nn.Sequential(convolution, nn.BatchNorm2d(dim, **dd))

    def to_map(self, x: torch.Tensor) -> torch.Tensor:
        """Takes the map out of an input: any of the formats to ``(B, C, H, W)``."""
        axes, channels = (3, 2) if self.input_fmt == "NLC" else (4, 1 if self.input_fmt == "NCHW" else 3)
        if x.dim() != axes or x.shape[channels] != self.dim:
            raise ValueError(
                f"a block for {self.input_fmt} with C = {self.dim} got an input of {list(x.shape)}: give the input_fmt "
                "(NCHW, NHWC or NLC) and the dim of what it sees"
            )
        if self.input_fmt == "NCHW":
            return x
        if self.input_fmt == "NHWC":
            return x.permute(0, 3, 1, 2)
        tokens = x[:, self.num_prefix_tokens :]  # (B, H W, C)
        height, width = self._grid(tokens.shape[1])
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)

    def _crop(self, x: torch.Tensor, source: torch.Tensor | None) -> torch.Tensor:
        """The box of ``x``, from it or from a finer map, ``(B, C, H, W)``."""
        if self.project is None:
            if source is not None:
                raise ValueError("give source_dim to a block that takes a finer map beside x")
            return self.roi(x)
        else:
            if source is None:
                raise ValueError("a block with source_dim takes a finer map beside x")
            return self.project(roi_resize(source, self.roi.head(x), (x.shape[2], x.shape[3])))

    def forward(self, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        y = self.ls(self.cbam(self._crop(self.to_map(x), source)))  # (B, C, H, W)
        if self.input_fmt == "NCHW":
            return y
        if self.input_fmt == "NHWC":
            return y.permute(0, 2, 3, 1)
        return F.pad(y.flatten(2).transpose(1, 2), (0, 0, self.num_prefix_tokens, 0))  # (B, P + H W, C)

    def _grid(self, tokens: int) -> tuple[int, int]:
        """The (H, W) of so many tokens."""
        height, width = self.grid_size
        if tokens != height * width:
            rows = int(round(math.sqrt(tokens * height / width)))  # noqa: RUF046  TorchScript's round gives a float
            if rows == 0 or tokens % rows or rows * width != tokens // rows * height:
                raise ValueError(
                    f"{tokens} tokens do not fill a map shaped like {height} x {width}: give grid_size=(H, W), and "
                    "num_prefix_tokens"
                )
            height, width = rows, tokens // rows
        return height, width


@register_notrace_module
class MXABlock3d(nn.Module):
    """Medical X-ray Attention for volumes (CT, MRI): the same block, one axis more (the paper's outlook, section 4).

    Args:
        dim: Channels C.
        reduction: Reduction of CBAM's channel attention.
        kernel_size: Kernel of CBAM's spatial attention.
        min_size: Smallest side of a box, in (0, 1).
        init_values: First value of the gate, as in ``MXABlock``.

    Shape: ``(B, C, D, H, W)`` to the same, any D, H and W.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        kernel_size: int = 7,
        min_size: float = 0.1,
        init_values: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.roi = ROIPool3d(dim, min_size, **dd)
        self.cbam = CBAM3d(dim, reduction, kernel_size, **dd)
        self.ls = LayerScale2d(dim, init_values, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cbam(self.roi(x))
        return self.ls(y.flatten(3)).view_as(y)  # (B, C, D, H W) is a map to it
