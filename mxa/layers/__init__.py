"""Layers of the paper, for anyone's network: maps, tokens and volumes."""

from .cbam import CBAM, CBAM3d, ChannelAttention, SpatialAttention
from .graft import graft, ungraft
from .kd_adapter import KDAdapter
from .mxa_block import MXABlock, MXABlock3d
from .roi import MeanROIHead, ROIHead, ROIHead3d, ROIPool, ROIPool3d, roi_resize, roi_resize3d

__all__ = [
    "CBAM",
    "CBAM3d",
    "ChannelAttention",
    "KDAdapter",
    "MXABlock",
    "MXABlock3d",
    "MeanROIHead",
    "ROIHead",
    "ROIHead3d",
    "ROIPool",
    "ROIPool3d",
    "SpatialAttention",
    "graft",
    "roi_resize",
    "roi_resize3d",
    "ungraft",
]
