"""Pictures of why, as tensors first."""

from .rois import draw_rois, predict_rois

__all__ = ["draw_rois", "predict_rois"]
