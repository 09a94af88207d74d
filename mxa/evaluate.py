"""The documented name of ``mxa.evaluation.evaluate``."""

from .evaluation.evaluate import (
    EvaluateConfig,
    evaluate,
    score,
    score_images,
    split_parts,
    weights_sha256,
    with_validation,
    write_report,
)

__all__ = [
    "EvaluateConfig",
    "evaluate",
    "score",
    "score_images",
    "split_parts",
    "weights_sha256",
    "with_validation",
    "write_report",
]
