"""The report of an evaluation: numbers from scores, and the files that show them."""

from .numbers import Arm, numbers

__all__ = ["Arm", "numbers"]
