"""Layers of the paper, for anyone's network: maps, tokens and volumes."""

import timm  # noqa: F401  first: with timm the models are registered, and they import the modules below

from .attach import attach_finding_head, detach_finding_head
from .cbam import CBAM, CBAM3d, ChannelAttention, SpatialAttention
from .finding import FindingHead, FindingOutput
from .graft import graft, ungraft
from .kd_adapter import KDAdapter
from .mxa_block import MXABlock, MXABlock3d
from .roi import MeanROIHead, ROIHead, ROIHead3d, ROIPool, ROIPool3d, roi_resize, roi_resize3d

__all__ = [
    "CBAM",
    "CBAM3d",
    "ChannelAttention",
    "FindingHead",
    "FindingOutput",
    "KDAdapter",
    "MXABlock",
    "MXABlock3d",
    "MeanROIHead",
    "ROIHead",
    "ROIHead3d",
    "ROIPool",
    "ROIPool3d",
    "SpatialAttention",
    "attach_finding_head",
    "detach_finding_head",
    "graft",
    "roi_resize",
    "roi_resize3d",
    "ungraft",
]
