"""Scoring a model on a collection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .data import Collection, create_dataset, create_transform, make_loader
from .errors import InputError
from .inference import pick_device, predict_logits
from .metrics import report, write_report
from .models.load import load_model, named_outputs
from .task import masked_bce_with_logits

__all__ = ["EvaluateConfig", "evaluate"]


@dataclass
class EvaluateConfig:
    """What is scored on what."""

    model: str
    """Run folder, or a timm name with weights."""
    output: Path
    """Folder for metrics.json and metrics.csv."""
    data: Collection = "phantom"
    """Collection."""
    root: str | None = None
    """Folder of the collection; the CSV or Parquet file for "table"; a folder or URL for "shards"."""
    columns: str | None = None
    """What a table's columns are called: path=file,patient=MRN."""
    merge: bool = False
    """Make labels that the collection lacks from others: Nodule or Mass is Lung Lesion (docs/data.md)."""
    blank: str | None = None
    """What a blank label means: negative or ignore, also by label; the collection's habit by default."""
    split: Literal["all", "train", "val", "valid", "test"] | None = None
    """The collection's test list where it has one, else every image, by default."""
    views: str = "frontal"
    """frontal, lateral, all, AP or PA."""
    skip_bad: bool = False
    """Leave out images that do not read, and list them, instead of stopping."""
    replicates: int = 1000
    """Bootstrap replicates (of patients) for the intervals."""
    batch_size: int = 64
    workers: int = 2
    device: str | None = None
    """cuda where there is one, else cpu, by default."""
    amp: bool = False
    """bfloat16 autocast."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Scores a model, writes ``metrics.json`` and ``metrics.csv``, and returns what ``mxa.metrics.report`` does.

    Labels are aligned by name; those that the collection lacks are masked. Uncertain labels are masked, never remapped.

    Raises:
        InputError: bad input, a model whose outputs have no names, or an image that does not read.
    """
    if config.batch_size < 1 or config.workers < 0:
        raise InputError("--batch-size must be at least 1 and --workers at least 0")
    model = load_model(config.model)
    labels = named_outputs(model)
    options = {k: getattr(config, k) for k in ("views", "merge", "columns", "blank")}
    dataset = create_dataset(config.data, config.root, config.split, labels, "U-Ignore", **options)
    Path(config.output).mkdir(parents=True, exist_ok=True)  # before the work, not after it
    loader = make_loader(dataset, create_transform(model), config.batch_size, config.workers)
    dataset.on_bad = "mask" if config.skip_bad else "raise"
    logits = predict_logits(model.to(pick_device(config.device)), loader, config.amp)
    good = ~dataset.bad.numpy()
    if not good.any():
        raise InputError(f"none of the {len(good)} images reads")
    rows = dataset.records.subset(good)
    loss = masked_bce_with_logits(torch.from_numpy(logits[good]), torch.from_numpy(rows.targets))
    metrics = report(
        logits[good], rows.targets, labels, rows.patients, rows.views, float(loss), replicates=config.replicates
    )
    metrics["split"] = rows.split
    metrics["bad_images"] = dataset.bad_paths()
    write_report(metrics, Path(config.output))
    return metrics
