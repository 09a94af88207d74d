"""What a model looks at: boxes, gates, attention and attributions as tensors, and pictures of them."""

from .attention import attention_maps, attention_weights, mean_attention
from .attribution import grad_cam, integrated_gradients
from .findings import Findings, predict_findings
from .panels import FindingAt, draw_comparison, draw_findings, draw_gallery, draw_panel, draw_rois
from .rois import gate_maps, predict_rois, roi_heat_maps
from .sanity import rank_correlation, shuffled

__all__ = [
    "FindingAt",
    "Findings",
    "attention_maps",
    "attention_weights",
    "draw_comparison",
    "draw_findings",
    "draw_gallery",
    "draw_panel",
    "draw_rois",
    "gate_maps",
    "grad_cam",
    "integrated_gradients",
    "mean_attention",
    "predict_findings",
    "predict_rois",
    "rank_correlation",
    "roi_heat_maps",
    "shuffled",
]
