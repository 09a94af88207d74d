"""Computes a teacher's logits of a collection once, for all later training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..data import DataConfig, create_transform, make_loader
from ..evaluation.inference import check_finite, predict_logits
from ..evaluation.predictions import Predictions, read_metadata
from ..task import Teacher
from ..utils.config import read_yaml_file
from ..utils.distributed import pick_device
from ..utils.errors import InputError, name_some, require

__all__ = ["TeachConfig", "gray_teacher", "teach", "trained_on"]

_GRAY = {"input_size": (1, 224, 224), "mean": (0.0,), "std": (1.0,)}

_logger = logging.getLogger(__name__)


@dataclass
class TeachConfig(DataConfig):
    """Which teacher scores which images."""

    unused = ("uncertain", "blank", "boxes")

    teacher: str
    """xrv:NAME or xrv:FILE (TorchXRayVision), a timm name with weights, or a run folder."""
    output: Path
    """Parquet file to write, for mxa train --teacher."""
    split: Literal["all", "train", "val", "valid", "test"] = "train"
    """Split of the collection."""
    teacher_sha256: str | None = None
    """SHA-256 that the teacher's file must have."""
    batch_size: int = 64
    """Images at a time."""
    workers: int = 2
    """Worker processes that read images."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""
    amp: bool = False
    """bfloat16 autocast."""


def gray_teacher(teacher: str, labels: Sequence[str], sha256: str | None) -> Teacher:
    """Makes a teacher for gray images in [0, 1] of any size."""
    return Teacher(teacher, labels, _GRAY, sha256=sha256)


def trained_on(teacher: Path) -> str | None:
    """Returns the collection that a run folder, or the teacher of a file of logits, was trained on; None if unknown."""
    if (teacher / "config.yaml").is_file():
        return read_yaml_file(teacher / "config.yaml").get("data")
    if teacher.suffix == ".parquet" and teacher.is_file():
        return read_metadata(teacher).get("teacher_trained_on")
    return None


class _Logits(nn.Module):
    """The logits of the labels that a teacher knows."""

    def __init__(self, teacher: Teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits, mask = self.teacher(images)
        return logits.masked_fill(~mask, torch.nan)


def teach(config: TeachConfig) -> Predictions:
    """Writes a teacher's raw logits of whole images, resized to the teacher's own size, to a Parquet file.

    The file has one row for each image (column ``image``), and a column ``logit:LABEL`` for each of the student's
    labels that the teacher knows. Its metadata name the teacher. An image that does not read has blank cells.

    Raises:
        InputError: bad input, as of ``Teacher`` and ``create_dataset``.
    """
    require("pyarrow", "train")
    path = Path(config.output)
    if path.suffix != ".parquet":
        raise InputError(f"--output {path} must end in .parquet")
    if config.batch_size < 1 or config.workers < 0:
        raise InputError("--batch-size must be at least 1 and --workers at least 0")
    dataset = config.resolved(config.teacher).open(config.split)
    teacher = gray_teacher(config.teacher, dataset.labels, config.teacher_sha256)
    dataset.on_bad = "mask"
    transform = create_transform({**_GRAY, "input_size": (1, *teacher.input_size[1:])})
    device = pick_device(config.device)
    loader = make_loader(dataset, transform, config.batch_size, config.workers, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = _Logits(teacher).to(device)
    logits = predict_logits(model, loader, torch.bfloat16 if config.amp else None)
    logits[dataset.bad.numpy()] = np.nan
    bad = dataset.bad_paths()
    if len(bad) == len(dataset):
        raise InputError(f"none of the {len(bad)} images reads, such as {bad[0]}")
    known, good = teacher.adapter.mask.cpu().numpy(), ~dataset.bad.numpy()
    check_finite(logits[good], dataset.labels, dataset.records.paths[good], config.teacher)
    metadata = {"teacher": Path(config.teacher).name, "sha256": teacher.sha256, "input_size": list(teacher.input_size)}
    if collection := trained_on(Path(config.teacher)):
        metadata["teacher_trained_on"] = collection
    labels = tuple(name for name, is_known in zip(dataset.labels, known, strict=True) if is_known)
    cases = pd.DataFrame({"image": dataset.records.paths.astype(object)})
    found = Predictions(labels, logits[:, known], dataset.records.targets[:, known], cases, metadata)
    found.save(path, targets=False)
    if bad:
        _logger.warning("images that do not read were left blank: %s", name_some(bad))
    return found
