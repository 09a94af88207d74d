"""Computes the logits of one or more teachers on a collection once, for all later training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..data import CXRDataset, create_transform, make_loader
from ..evaluation.inference import check_finite, predict_logits
from ..evaluation.predictions import Predictions, read_metadata
from ..task import Teacher
from ..utils.config import read_yaml_file
from ..utils.distributed import pick_device
from ..utils.errors import InputError, name_some, require
from .config import TeachConfig

__all__ = ["TeachConfig", "gray_teacher", "teach", "trained_on"]

_GRAY = {"input_size": (1, 224, 224), "mean": (0.0,), "std": (1.0,)}

_logger = logging.getLogger(__name__)


def gray_teacher(teacher: str, labels: Sequence[str] | None, sha256: str | None) -> Teacher:
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
    """Writes the teachers' raw logits of whole images, resized to each teacher's own size, to a Parquet file.

    The file has one row for each image (column ``image``), and a column ``logit:LABEL`` for each of the student's
    labels that a teacher knows: the mean over those that know it. Its metadata name the teachers. An image that does
    not read has blank cells.

    Raises:
        InputError: bad input, as of ``Teacher`` and ``create_dataset``.
    """
    require("pyarrow", "train")
    path = Path(config.output)
    names = (config.teacher,) if isinstance(config.teacher, str) else tuple(config.teacher)
    if path.suffix != ".parquet":
        raise InputError(f"--output {path} must end in .parquet")
    if config.batch_size < 1 or config.workers < 0:
        raise InputError("--batch-size must be at least 1 and --workers at least 0")
    if config.teacher_sha256 and len(names) > 1:
        raise InputError(f"--teacher-sha256 is that of one file, and there are {len(names)} teachers: leave it out")
    resolved = config.resolved(*names)
    dataset = resolved.open(config.split or ("all" if resolved.data == "images" else "train"))
    teachers = [gray_teacher(name, dataset.labels or None, config.teacher_sha256) for name in names]
    if not dataset.labels:
        dataset, teachers = _of_teachers(dataset, names, teachers)
    dataset.on_bad = "mask"
    path.parent.mkdir(parents=True, exist_ok=True)
    given = np.stack([_logits(config, name, teacher, dataset) for name, teacher in zip(names, teachers, strict=True)])
    knows = ~np.isnan(given)
    with np.errstate(invalid="ignore"):  # 0 / 0 where none knows
        logits = np.where(knows, given, 0).sum(0) / knows.sum(0)
    bad = dataset.bad_paths()
    known = knows.any((0, 1))
    digests = [teacher.sha256 for teacher in teachers]
    sizes = [list(teacher.input_size) for teacher in teachers]
    single = len(names) == 1
    metadata = {
        "teacher": ", ".join(Path(name).name for name in names),
        "sha256": digests[0] if single else digests,
        "input_size": sizes[0] if single else sizes,
    }
    if single and teachers[0].thresholds:
        metadata["thresholds"] = teachers[0].thresholds
    if len(collections := {trained_on(Path(name)) for name in names}) == 1 and None not in collections:
        metadata["teacher_trained_on"] = collections.pop()
    labels = tuple(name for name, is_known in zip(dataset.labels, known, strict=True) if is_known)
    cases = pd.DataFrame({"image": dataset.records.paths.astype(object)})
    found = Predictions(labels, logits[:, known], dataset.records.targets[:, known], cases, metadata)
    found.save(path, targets=False)
    if bad:
        _logger.warning("images that do not read were left blank: %s", name_some(bad))
    return found


def _of_teachers(
    dataset: CXRDataset, names: Sequence[str], teachers: Sequence[Teacher]
) -> tuple[CXRDataset, list[Teacher]]:
    """Gives images without labels those of the teachers, masked, and every teacher the labels of all."""
    labels = tuple(dict.fromkeys(label for teacher in teachers for label in teacher.labels))
    targets = np.full((len(dataset), len(labels)), np.nan, dtype=np.float32)
    of_all = [
        teacher if teacher.labels == labels else gray_teacher(name, labels, None)
        for name, teacher in zip(names, teachers, strict=True)
    ]
    return CXRDataset(replace(dataset.records, labels=labels, targets=targets)), of_all


def _logits(config: TeachConfig, name: str, teacher: Teacher, dataset: CXRDataset) -> np.ndarray:
    """A teacher's logits ``(N, L)``; NaN for a label that it does not know, and for an image that does not read.

    Raises:
        InputError: no image reads, or a logit is not finite.
    """
    transform = create_transform({**_GRAY, "input_size": (1, *teacher.input_size[1:])})
    device = pick_device(config.device)
    loader = make_loader(dataset, transform, config.batch_size, config.workers, device=device)
    logits = predict_logits(_Logits(teacher).to(device), loader, torch.bfloat16 if config.amp else None)
    logits[dataset.bad.numpy()] = np.nan
    if len(bad := dataset.bad_paths()) == len(dataset):
        raise InputError(f"none of the {len(bad)} images reads, such as {bad[0]}")
    known, good = teacher.adapter.mask.cpu().numpy(), ~dataset.bad.numpy()
    check_finite(logits[np.ix_(good, known)], np.array(dataset.labels)[known], dataset.records.paths[good], name)
    return logits
