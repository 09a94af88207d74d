"""Findings of one image or of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..data import create_transform
from ..data.image_io import find_images, read_checked, read_image
from ..evaluation.calibrate import Calibration, read_calibration
from ..evaluation.inference import check_finite
from ..layers.attach import finding_rows
from ..models.hub import SHIPPED
from ..models.load import load_model, named_outputs
from ..utils.distributed import pick_device
from ..utils.errors import InputError

__all__ = ["PredictConfig", "predict"]


@dataclass
class PredictConfig:
    """Which images are predicted, and how."""

    files: tuple[Path, ...]
    """Images, or folders of images."""
    model: str = SHIPPED
    """Run folder, or a timm name with weights; the small model that comes with mxa by default."""
    format: Literal["table", "json"] = "table"
    """How the probabilities are printed."""
    rois: Path | None = None
    """PNG file to write: the first image with the box of each finding, where the model has a finding head (those that
    --calibrated calls positive, or the three most probable), else with the boxes of every MXA block."""
    calibrated: Literal["youden", "specificity95", "f1"] | None = None
    """Use the run folder's calibration.json (mxa calibrate): its temperatures, and its thresholds of this kind."""
    identifiers: bool = False
    """Add the SOP, study and series instance UIDs of DICOM files; nothing else about a patient is ever read."""
    skip_bad: bool = False
    """Skip images that do not read, instead of stopping."""
    batch_size: int = 32
    """Images at a time."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""


@torch.inference_mode()
def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Predicts every image, in order.

    Returns:
        ``{"file": name, "probabilities": {label: probability}}`` for each image: the sigmoid of the logits. With
        ``calibrated`` the probabilities are calibrated, ``"positive"`` lists the labels at or above their thresholds,
        and ``"undecided"`` the labels without a threshold. With ``skip_bad`` an image that does not read has
        ``"error"``, the reason, instead of probabilities. ``"warning"`` says that the tags of a DICOM file speak
        against a frontal chest radiograph, or that the picture cannot be one (``mxa.data.check_radiograph``). It never
        changes a probability. A DICOM file has its ``"identifiers"`` with ``identifiers``.

    Raises:
        InputError: bad input, a model whose outputs have no names or are not finite, or an image that does not read.
    """
    if config.rois and (config.rois.suffix.lower() != ".png" or not config.rois.absolute().parent.is_dir()):
        raise InputError(f"--rois {config.rois}: give a .png file in a folder that exists")
    if config.batch_size < 1:
        raise InputError("--batch-size must be at least 1")
    calibration = read_calibration(config.model) if config.calibrated else None
    model = load_model(config.model).to(pick_device(config.device))
    labels = named_outputs(model)
    transform = create_transform(model)
    device = next(model.parameters()).device
    results, batch, first = [], [], None

    def flush() -> None:
        if batch:
            logits = model(torch.stack([x for _, x in batch]).to(device)).float().cpu()
            check_finite(logits.numpy(), labels, [row["file"] for row, _ in batch], config.model)
            for (row, _), z in zip(batch, logits, strict=True):
                row["probabilities"] = dict(zip(labels, z.sigmoid().tolist(), strict=True))
                if calibration:
                    row |= _calibrated(calibration, config.calibrated, dict(zip(labels, z.tolist(), strict=True)))
            batch.clear()

    for path in find_images(config.files):
        row: dict[str, Any] = {"file": str(path)}
        try:
            image, about = read_checked(path, transform.decode_size, config.identifiers)
            row |= about
        except InputError as error:
            if not config.skip_bad:
                raise
            row["error"] = str(error)
        else:
            batch.append((row, transform(image)))
            first = first or (path, *batch[0])
        results.append(row)
        if len(batch) == config.batch_size:
            flush()
    flush()
    if not any("probabilities" in row for row in results):
        raise InputError(f"none of the {len(results)} images reads: {results[0]['error']}")
    if config.rois:
        path, row, x = first
        _draw(model, Path(config.model).name, path, x[None].to(device), row, config.rois)
    return results


def _calibrated(calibration: Calibration, point: str, logits: dict[str, float]) -> dict[str, Any]:
    probabilities = {label: calibration.probability(label, z) for label, z in logits.items()}
    thresholds = calibration.thresholds[point]
    return {
        "probabilities": probabilities,
        "positive": [label for label, threshold in thresholds.items() if probabilities[label] >= threshold],
        "undecided": [label for label in logits if label not in thresholds],
    }


def _draw(model: torch.nn.Module, name: str, path: Path, x: torch.Tensor, row: dict[str, Any], output: Path) -> None:
    from ..explain import FindingAt, draw_findings, draw_rois, predict_findings, predict_rois

    image = read_image(path)
    if finding_rows(model) is None:
        draw_rois(image, predict_rois(model, x), output, f"{path.name}: regions of the MXA blocks", name)
        return
    found, labels = predict_findings(model, x), named_outputs(model)
    placed = {labels[label]: i for i, label in enumerate(found.rows)}
    probabilities = row["probabilities"]
    called = row.get("positive", sorted(placed, key=lambda label: -probabilities[label])[:3])
    places = {
        f"{label} {probabilities[label]:.2f}": FindingAt(
            found.heat_maps[0, placed[label]], found.boxes[0, placed[label]]
        )
        for label in called
        if label in placed
    }
    kind = "positive findings" if "positive" in row else "the most probable findings"
    draw_findings(image, places, output, f"{path.name}: {kind}", name)
