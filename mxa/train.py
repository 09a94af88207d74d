"""The documented name of ``mxa.training.loop``."""

from .training.loop import (
    TrainConfig,
    build_model,
    fit,
    train,
)

__all__ = ["TrainConfig", "build_model", "fit", "train"]
