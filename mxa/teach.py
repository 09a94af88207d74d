"""A teacher's logits of a collection, computed once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn

from .data import Collection, create_dataset, create_transform, make_loader
from .errors import InputError, require
from .inference import predict_logits
from .predictions import Predictions
from .processes import pick_device
from .task import Teacher

__all__ = ["TeachConfig", "teach"]

_logger = logging.getLogger(__name__)


@dataclass
class TeachConfig:
    """Which teacher looks at what."""

    teacher: str
    """xrv:NAME or xrv:FILE (TorchXRayVision), a timm name with weights, or a run folder."""
    output: Path
    """The file, .parquet: for mxa train --teacher."""
    data: Collection = "phantom"
    """Collection."""
    root: str | None = None
    """Folder of the collection; the CSV or Parquet file for "table"; a folder or URL for "shards"."""
    columns: str | None = None
    """What a table's columns are called: path=file,patient=MRN."""
    labels: str | None = None
    """The student's labels, as for mxa train; the collection's own by default."""
    merge: bool = False
    """As for mxa train."""
    views: str = "frontal"
    """frontal, lateral, all, AP or PA."""
    split: Literal["all", "train", "val", "valid", "test"] = "train"
    """Part of the collection."""
    teacher_sha256: str | None = None
    """Digest that the teacher's file must have."""
    batch_size: int = 64
    workers: int = 2
    device: str | None = None
    """cuda where there is one, else cpu, by default."""
    amp: bool = False
    """bfloat16 autocast."""


class _Logits(nn.Module):
    """The logits of the labels that a teacher knows."""

    def __init__(self, teacher: Teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits, mask = self.teacher(images)
        return logits.masked_fill(~mask, torch.nan)


def teach(config: TeachConfig) -> Predictions:
    """Writes a teacher's raw logits of whole images, each at the teacher's own size, to a Parquet file.

    It has a row an image (column ``image``) and a column ``logit:LABEL`` for each of the student's labels that the
    teacher knows; its metadata say which file the teacher was. An image that does not read has blank cells.

    Raises:
        InputError: bad input, as of ``Teacher`` and ``create_dataset``.
    """
    require("pyarrow", "train")
    path = Path(config.output)
    if path.suffix != ".parquet":
        raise InputError(f"--output {path} must end in .parquet")
    if config.batch_size < 1 or config.workers < 0:
        raise InputError("--batch-size must be at least 1 and --workers at least 0")
    options = {k: getattr(config, k) for k in ("views", "merge", "columns")}
    dataset = create_dataset(config.data, config.root, config.split, config.labels, **options)
    gray = {"input_size": (1, 224, 224), "mean": (0.0,), "std": (1.0,)}
    teacher = Teacher(config.teacher, dataset.labels, gray, sha256=config.teacher_sha256)
    gray["input_size"] = (1, *teacher.input_size[1:])
    dataset.on_bad = "mask"
    loader = make_loader(dataset, create_transform(gray), config.batch_size, config.workers)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = _Logits(teacher).to(pick_device(config.device))
    logits = predict_logits(model, loader, torch.bfloat16 if config.amp else None)
    logits[dataset.bad.numpy()] = np.nan
    bad = dataset.bad_paths()
    if len(bad) == len(dataset):
        raise InputError(f"none of the {len(bad)} images reads, such as {bad[0]}")
    known = teacher.adapter.mask.cpu().numpy()
    about = {"teacher": Path(config.teacher).name, "sha256": teacher.sha256, "input_size": list(teacher.input_size)}
    if (settings := Path(config.teacher) / "config.yaml").is_file():
        about["teacher_trained_on"] = yaml.safe_load(settings.read_text()).get("data")
    labels = tuple(name for name, is_known in zip(dataset.labels, known, strict=True) if is_known)
    cases = pd.DataFrame({"image": dataset.records.paths.astype(object)})
    found = Predictions(labels, logits[:, known], dataset.records.targets[:, known], cases, about)
    found.save(path, targets=False)
    if bad:
        more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
        _logger.warning("left blank, they do not read: %s%s", ", ".join(bad[:20]), more)
    return found
