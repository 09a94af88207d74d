"""What ``mxa predict`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...utils.errors import InputError, require

if TYPE_CHECKING:
    from ...deployment.predictor import Predictor

__all__ = ["PredictConfig"]


@dataclass
class PredictConfig:
    """Which images are predicted, and how."""

    files: tuple[Path, ...]
    """Images, or folders of images."""
    model: str = "efficientvit_ml_m0_mxa.r160_nih8k"
    """Run folder, timm name with weights, or exported folder; the small model that comes with mxa by default."""
    runtime: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    """What runs the model; auto is what it was exported for, else torch."""
    output: Path | None = None
    """Table to write instead of printing: .parquet, .csv or .jsonl, a row an image, in the order of the files."""
    resume: bool = False
    """Go on with an --output that was interrupted; start it where there is nothing, do nothing where it is written."""
    workers: int | None = None
    """Processes that read images for --output; one for each core by default, 0 for none."""
    ray: str | None = None
    """Compute --output on Ray: auto for the cluster of this machine, or else this machine alone; or an address."""
    format: Literal["table", "json"] = "table"
    """How the probabilities are printed."""
    rois: Path | None = None
    """PNG file to write: the first image with the box of each finding, where the model has a finding head (those that
    --calibrated calls positive, or the three most probable), else with the boxes of every MXA block."""
    calibrated: Literal["youden", "specificity95", "f1"] | None = None
    """Use the model's calibration (mxa calibrate): its temperatures, and its thresholds of this kind."""
    identifiers: bool = False
    """Add the SOP, study and series instance UIDs of DICOM files; nothing else about a patient is read, but for
    --dicom-sr and --secondary-capture."""
    dicom_sr: Path | None = None
    """Folder for a DICOM Structured Report of each image, which must then be a DICOM file."""
    secondary_capture: Path | None = None
    """Folder for a DICOM picture of each image, with the boxes that --rois draws."""
    skip_bad: bool = False
    """Go on where an image does not read, instead of stopping; the exit status is then 3."""
    batch_size: int = 32
    """Images at a time."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""

    @property
    def reports(self) -> bool:
        """DICOM objects are written."""
        return bool(self.dicom_sr or self.secondary_capture)

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
            InputError: it does not.
        """
        if self.rois and (self.rois.suffix.lower() != ".png" or not self.rois.absolute().parent.is_dir()):
            raise InputError(f"--rois {self.rois}: give a .png file in a folder that exists")
        if self.batch_size < 1:
            raise InputError("--batch-size must be at least 1")
        if (self.workers or 0) < 0:
            raise InputError("--workers must be 0 or more")
        for name in ("resume", "workers", "ray"):
            if self.output is None and getattr(self, name) not in (None, False):
                raise InputError(f"--{name} is for --output: name a .parquet, .csv or .jsonl file")
        if self.output and (self.rois or self.format != "table"):
            raise InputError("--output writes a table: leave out --rois and --format, which are for what is printed")
        if self.ray and (self.workers is not None or self.reports):
            raise InputError("--ray has processes of its own and writes --output alone: leave out one or the other")
        if self.reports:
            require("highdicom", "dicom")

    def open(self) -> Predictor:
        """Opens the model.

        Raises:
            InputError: there is no such model, or it has no calibration where one is wanted.
        """
        from ...deployment.runtimes import open_predictor

        predictor = open_predictor(self.model, runtime=self.runtime, device=self.device)
        if self.calibrated and predictor.info.calibration is None:
            raise InputError(f"{self.model} has no calibration.json: run mxa calibrate first, and export what it gives")
        if (self.rois or self.secondary_capture) and predictor.runtime != "torch":
            raise InputError("--rois and --secondary-capture need a model that PyTorch runs: name its run folder")
        return predictor
