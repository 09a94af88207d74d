"""The documented name of ``mxa.evaluation.evaluate``."""

from .evaluation.evaluate import (
    EvaluateConfig,
    evaluate,
    score,
    score_images,
    separate_validation,
    weights_sha256,
    with_validation,
    write_report,
)

__all__ = [
    "EvaluateConfig",
    "evaluate",
    "score",
    "score_images",
    "separate_validation",
    "weights_sha256",
    "with_validation",
    "write_report",
]
