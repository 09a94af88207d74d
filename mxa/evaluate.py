"""The documented name of ``mxa.evaluation.evaluate``."""

from .evaluation.evaluate import *  # noqa: F403
from .evaluation.evaluate import __all__  # noqa: F401
