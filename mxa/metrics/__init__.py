"""Metrics of multi-label scores: pure functions on arrays."""

from .bootstrap import auroc_intervals, patient_weights
from .functional import accuracy, auroc, f1, macro_auroc, micro_auroc
from .report import report, summary_line, write_report

__all__ = [
    "accuracy",
    "auroc",
    "auroc_intervals",
    "f1",
    "macro_auroc",
    "micro_auroc",
    "patient_weights",
    "report",
    "summary_line",
    "write_report",
]
