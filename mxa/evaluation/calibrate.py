"""Calibration as an artefact: temperatures and thresholds, chosen on validation patients, kept beside the weights."""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataConfig
from ..metrics.operating import OPERATING_POINTS, TEMPERATURES, choose_thresholds, fit_temperatures, sigmoid
from ..utils.errors import InputError
from ..utils.files import alone_in, write_text
from .evaluate import EvaluateConfig, score, weights_sha256

__all__ = ["CalibrateConfig", "Calibration", "calibrate", "read_calibration"]

NAME = "calibration.json"
LEAST = 5  # validation positives under which a label is left as it is


@dataclass
class CalibrateConfig(DataConfig):
    """What is calibrated on what."""

    unused = ("labels", "uncertain")

    model: str
    """Run folder; calibration.json is written into it."""
    overwrite: bool = False
    """Replace a calibration that was made on other images."""
    batch_size: int = 64
    """Images at a time."""
    workers: int = 2
    """Worker processes that read images."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""


@dataclass(frozen=True)
class Calibration:
    """Temperatures and thresholds of a model's labels, and where they come from.

    Attributes:
        temperatures: Label to T: the probability is ``sigmoid(logit / T)``.
        thresholds: Operating point (``mxa.metrics.OPERATING_POINTS``) to label to the smallest *calibrated* probability
            that is called positive. A label that was not calibrated is in neither.
        provenance: Collection, split, images, patients, positives, hash of the weights, date.
    """

    temperatures: dict[str, float]
    thresholds: dict[str, dict[str, float]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def probability(self, label: str, logit: float) -> float:
        """Returns the calibrated probability; of a label that was not calibrated the model's own."""
        return float(sigmoid(np.array(logit / self.temperatures.get(label, 1.0))))


def calibrate(config: CalibrateConfig) -> Calibration:
    """Fits temperatures and chooses thresholds on the validation patients, and writes ``calibration.json``.

    A label with fewer than 5 positives or negatives among them is left as the model gives it; so is the probability,
    not the call, of one that no temperature fits. Both are said.

    Raises:
        InputError: bad input, no run folder, a calibration that was made on other images (without ``overwrite``), or no
            label with enough validation cases.
    """
    run = Path(config.model)
    if not (run / "model.safetensors").is_file():
        raise InputError(f"{run} is not a run folder: calibration.json lies beside model.safetensors")
    with alone_in(run, "mxa calibrate"):
        return _calibrate(config, run)


def _calibrate(config: CalibrateConfig, run: Path) -> Calibration:
    config = config.resolved(run)
    names = sorted(config.open("val").records.paths.tolist())
    images = hashlib.sha256("\n".join(names).encode()).hexdigest()
    _keep_another(run / NAME, config, images)
    shared = {k: getattr(config, k) for k in ("batch_size", "workers", "device")} | config.data_fields()
    found = score(EvaluateConfig((config.model,), run, split="val", validation=False, **shared), config.model)
    found.check()
    temperatures = fit_temperatures(found.logits, found.targets).round(6)  # as the file has them
    counts = {n: [int((found.targets[:, i] == k).sum()) for k in (1, 0)] for i, n in enumerate(found.labels)}
    kept = [i for i, name in enumerate(found.labels) if min(counts[name]) >= LEAST]
    unfit = np.isclose(temperatures[:, None], TEMPERATURES).any(1)
    if not kept:
        raise InputError(
            f"no label has {LEAST} positives and {LEAST} negatives among the {len(found)} validation images"
        )
    scaled = sigmoid(found.logits / np.where(np.isnan(temperatures) | unfit, 1, temperatures))
    chosen = choose_thresholds(scaled, found.targets)
    result = Calibration(
        {found.labels[i]: float(temperatures[i]) for i in kept if not unfit[i]},
        {
            p: {found.labels[i]: float(chosen[p][i]) for i in kept if np.isfinite(chosen[p][i])}
            for p in OPERATING_POINTS
        },
        {
            **found.metadata,
            "images": len(found),
            "images_sha256": images,
            "patients": int(found.cases["patient"].nunique()),
            "positives_and_negatives": counts,
            "not_calibrated": [n for i, n in enumerate(found.labels) if i not in kept],
            "temperature_at_its_end": [found.labels[i] for i in kept if unfit[i]],
            "date": datetime.date.today().isoformat(),
        },
    )
    text = json.dumps(vars(result), indent=1) + "\n"
    write_text(run / NAME, text)
    return result


def _keep_another(path: Path, config: CalibrateConfig, images: str) -> None:
    """Refuses to replace a calibration that was made on other images."""
    if config.overwrite or not path.is_file():
        return
    try:
        made = json.loads(path.read_text())["provenance"]
    except (ValueError, KeyError, TypeError):
        return  # it is damaged: nothing is lost
    if (made.get("data"), made.get("images_sha256")) != (config.data, images):
        raise InputError(
            f"{path} was made on {made.get('images')} images of {made.get('data')}, not on these of {config.where()}: "
            "add --overwrite to replace it"
        )


def read_calibration(run: str | Path) -> Calibration:
    """Reads the calibration of a run folder.

    Raises:
        InputError: there is none, it is damaged, or it is of other weights.
    """
    path = Path(run) / NAME
    if not path.is_file():
        raise InputError(f"{run} has no {NAME}: write it with mxa calibrate {run} --data ... --root ...")
    try:
        content = json.loads(path.read_text())
        result = Calibration(content["temperatures"], content["thresholds"], content["provenance"])
        held = result.provenance["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a calibration ({error}): write it again with mxa calibrate") from None
    if held != weights_sha256(str(run)):
        raise InputError(f"{path} was made for other weights than {run} holds: run mxa calibrate again")
    return result
