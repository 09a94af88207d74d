"""The documented name of ``mxa.evaluation.predictions``."""

from .evaluation.predictions import (
    CASE_COLUMNS,
    Arm,
    MissingScores,
    Predictions,
    by_study,
    has_targets,
    of_records,
    read_metadata,
    read_predictions,
    stack,
)

__all__ = [
    "Arm",
    "CASE_COLUMNS",
    "MissingScores",
    "Predictions",
    "by_study",
    "has_targets",
    "of_records",
    "read_metadata",
    "read_predictions",
    "stack",
]
