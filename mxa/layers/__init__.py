"""Layers of the paper, for anyone's network: ``(B, C, H, W)`` in and out."""

from .cbam import CBAM, ChannelAttention, SpatialAttention
from .kd_adapter import KDAdapter
from .mxa_block import MXABlock
from .roi import MeanROIHead, ROIHead, ROIPool, roi_resize

__all__ = [
    "CBAM",
    "ChannelAttention",
    "KDAdapter",
    "MXABlock",
    "MeanROIHead",
    "ROIHead",
    "ROIPool",
    "SpatialAttention",
    "roi_resize",
]
