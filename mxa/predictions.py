"""The documented name of ``mxa.evaluation.predictions``."""

from .evaluation.predictions import *  # noqa: F403
from .evaluation.predictions import __all__  # noqa: F401
