"""Metrics of multi-label scores: pure functions on arrays."""

from .bootstrap import interval, patient_weights
from .functional import (
    auroc,
    average_precision,
    brier,
    calibration_error,
    confusion,
    macro_auroc,
    micro_auroc,
    ranking,
    rates,
)
from .localization import box_from_map, energy_inside, iou, pointing
from .localization_table import localization_table
from .operating import OPERATING_POINTS, choose_threshold, choose_thresholds, fit_temperatures, sigmoid

__all__ = [
    "OPERATING_POINTS",
    "auroc",
    "average_precision",
    "box_from_map",
    "brier",
    "calibration_error",
    "choose_threshold",
    "choose_thresholds",
    "confusion",
    "energy_inside",
    "fit_temperatures",
    "interval",
    "iou",
    "localization_table",
    "macro_auroc",
    "micro_auroc",
    "patient_weights",
    "pointing",
    "ranking",
    "rates",
    "sigmoid",
]
