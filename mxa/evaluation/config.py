"""What ``mxa evaluate`` and ``mxa calibrate`` are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.config import DataConfig
from ..utils.processor import reader_count

__all__ = ["CalibrateConfig", "EvaluateConfig"]


@dataclass
class EvaluateConfig(DataConfig):
    """What is scored on what."""

    unused = ("labels", "uncertain", "boxes")

    models: tuple[str, ...]
    """Run folders, timm names with weights, or Parquet or CSV files of scores; A,B,C are the seeds of one model."""
    output: Path
    """Folder for report.html, metrics.json, metrics.csv, model_card.md and predictions/."""
    split: Literal["all", "train", "val", "valid", "test"] | None = None
    """The collection's test list where it has one, else every image, by default."""
    level: Literal["image", "study-mean", "study-max"] = "image"
    """Score images, or studies by the mean or the maximum of their images' probabilities."""
    validation: bool = True
    """Score the validation patients too, to choose thresholds and temperatures on them."""
    by: str | None = None
    """Columns to report groups by, separated by commas: view, frontal, sex, age, or any of --groups."""
    groups: Path | None = None
    """A CSV or Parquet file with a column of image names and columns to group by; a table's own by default."""
    min_group: int = 50
    """Images under which a group is counted but not scored."""
    note: str | None = None
    """What must be said beside the scores; it stands at the top of the report."""
    skip_bad: bool = False
    """Leave out images that do not read, and list them, instead of stopping."""
    replicates: int = 1000
    """Bootstrap replicates (of patients) for the intervals."""
    batch_size: int = 64
    """Images at a time."""
    workers: int = field(default_factory=reader_count)
    """Worker processes that read images; by default one for each core, at most 8."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""
    amp: bool = False
    """bfloat16 autocast."""


@dataclass
class CalibrateConfig(DataConfig):
    """What is calibrated on what."""

    unused = ("labels", "uncertain", "boxes")

    model: str
    """Run folder; calibration.json is written into it."""
    overwrite: bool = False
    """Replace a calibration that was made on other images."""
    batch_size: int = 64
    """Images at a time."""
    workers: int = field(default_factory=reader_count)
    """Worker processes that read images; by default one for each core, at most 8."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""
