"""Temperatures and thresholds of a model's labels; needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..metrics.operating import OPERATING_POINTS, TEMPERATURES, sigmoid
from ..utils.errors import InputError

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """Temperatures and thresholds of a model's labels, and where they come from.

    Attributes:
        temperatures: Label to T: the probability is ``sigmoid(logit / T)``.
        thresholds: Operating point (``mxa.metrics.OPERATING_POINTS``) to label to the smallest *calibrated* probability
            that is called positive. A label that was not calibrated is in neither.
        provenance: Collection, split, images, patients, positives, hash of the weights, date.

    Raises:
        InputError: a temperature is not a number of 0.05 to 20, a threshold not one of 0 to 1, or an operating point is
            missing or unknown; the message names the label.
    """

    temperatures: dict[str, float]
    thresholds: dict[str, dict[str, float]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_numbers("temperature", self.temperatures, *TEMPERATURES)
        if not isinstance(self.thresholds, Mapping) or set(self.thresholds) != set(OPERATING_POINTS):
            raise InputError(f"thresholds must be given for {', '.join(OPERATING_POINTS)}")
        for point, chosen in self.thresholds.items():
            _check_numbers(f"threshold ({point})", chosen, 0, 1)
        if not isinstance(self.provenance, Mapping):
            raise InputError("provenance must be an object")

    def probability(self, label: str, logit: float) -> float:
        """Returns the calibrated probability; of a label that was not calibrated the model's own."""
        return float(sigmoid(np.array(logit / self.temperatures.get(label, 1.0))))

    def probabilities(self, labels: Sequence[str], logits: np.ndarray) -> np.ndarray:
        """Returns the calibrated probabilities of logits ``(N, L)`` of L labels, as ``probability`` of each."""
        return sigmoid(logits / np.array([self.temperatures.get(label, 1.0) for label in labels]))


def _check_numbers(what: str, values: Any, low: float, high: float) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f"each {what} must be given by the name of its label")
    for label, value in values.items():
        if type(value) not in (int, float) or not (math.isfinite(value) and low <= value <= high):
            raise InputError(f"the {what} of {label} must be a number of {low} to {high}")
