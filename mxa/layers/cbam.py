"""CBAM-style attention as the paper defines it (appendix E): channels first, then space."""

from __future__ import annotations

import torch
from timm.layers.cbam import ChannelAttn
from torch import nn
from torch.nn import functional as F

__all__ = ["CBAM", "CBAM3d", "ChannelAttention", "SpatialAttention", "SpatialAttention3d"]


class ChannelAttention(ChannelAttn):
    """Channel attention (paper, E.1): ``x * sigmoid(mlp(GAP(x)) + mlp(GMP(x)))``.

    Both pooled vectors go through the same MLP, two layers without bias and a ReLU between: timm's ``ChannelAttn``.

    Args:
        dim: Channels C.
        reduction: r of the paper; the hidden width is ``max(dim // reduction, 1)``.

    Shape: ``(B, C, H, W)`` to the same.
    """

    def __init__(
        self, dim: int, reduction: int = 16, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__(dim, rd_channels=max(dim // reduction, 1), device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad and x.device.type == "cpu":
            largest = F.adaptive_max_pool2d(x, 1)  # its backward pass is that of one cell; that of amax looks for ties
        else:
            largest = x.amax((2, 3), keepdim=True)
        pooled = torch.cat([x.mean((2, 3), keepdim=True), largest], dim=3)  # (B, C, 1, 2), one batch for the MLP
        return x * self.gate(self.fc2(self.act(self.fc1(pooled))).sum(3, keepdim=True))


class SpatialAttention(nn.Module):
    """Spatial attention (paper, E.2): ``x * sigmoid(conv([max over C; mean over C]))``.

    The convolution has no bias and no norm; timm's ``SpatialAttn`` has a norm.

    Args:
        kernel_size: Side of the convolution, odd.

    Shape: ``(B, C, H, W)`` to the same.
    """

    convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d

    def __init__(
        self, kernel_size: int = 7, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.conv = self.convolution(
            2, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype
        )

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the attention map in (0, 1): ``(B, C, H, W)`` to ``(B, 1, H, W)``."""
        largest = x.max(1, keepdim=True).values if x.requires_grad else x.amax(1, keepdim=True)
        pooled = torch.cat([largest, x.mean(1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return self.conv(pooled).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


class CBAM(nn.Module):
    """Channel, then spatial attention (paper, appendix E).

    Args:
        dim: Channels C.
        reduction: Reduction of the channel attention's MLP.
        kernel_size: Kernel of the spatial attention.

    Shape: ``(B, C, H, W)`` to the same.
    """

    spatial_attention: type[SpatialAttention] = SpatialAttention

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        kernel_size: int = 7,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.channel = ChannelAttention(dim, reduction, device=device, dtype=dtype)
        self.spatial = self.spatial_attention(kernel_size, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spatial(self.channel(x))


class SpatialAttention3d(SpatialAttention):
    """Spatial attention of volumes: ``(B, C, D, H, W)`` to the same."""

    convolution = nn.Conv3d


class CBAM3d(CBAM):
    """CBAM of volumes: channel attention, then spatial attention; arguments as ``CBAM``."""

    spatial_attention = SpatialAttention3d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.channel(x.flatten(3)).view_as(x)  # (B, C, D, H W): it pools over every position
        return self.spatial(x)
