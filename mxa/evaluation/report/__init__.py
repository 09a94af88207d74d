"""The report of an evaluation: numbers from scores, and the files that show them."""

from ..predictions import Arm
from .numbers import numbers

__all__ = ["Arm", "numbers"]
