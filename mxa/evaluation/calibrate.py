"""Calibration as an artefact: temperatures and thresholds, chosen on validation patients, kept beside the weights."""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..labels import LABEL_SPACES
from ..metrics.operating import (
    ENOUGH,
    LEAST,
    OPERATING_POINTS,
    TEMPERATURES,
    choose_thresholds,
    count_cases,
    fit_temperatures,
    sigmoid,
)
from ..models.hub import manifest, packaged, read_config
from ..utils.errors import InputError, name_some
from ..utils.files import alone_in, write_text
from ..utils.json_files import read_json, to_json
from .calibration import Calibration
from .config import CalibrateConfig, EvaluateConfig
from .evaluate import score, weights_sha256

__all__ = ["CalibrateConfig", "Calibration", "calibrate", "find_calibration", "read_calibration"]

NAME = "calibration.json"
_logger = logging.getLogger(__name__)


def calibrate(config: CalibrateConfig) -> Calibration:
    """Fits temperatures and chooses thresholds on the validation patients, and writes ``calibration.json``.

    A label with fewer than 5 positives or negatives among them is left as the model gives it; so is the probability,
    not the call, of one that no temperature fits. Both are said, and a warning names the labels with fewer than 20.

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
    positives, negatives, enough = count_cases(found.targets)
    counts = {n: [int(positives[i]), int(negatives[i])] for i, n in enumerate(found.labels)}
    kept = np.flatnonzero(enough).tolist()
    few = [f"{n} ({p} and {q})" for n, (p, q) in counts.items() if LEAST <= min(p, q) < ENOUGH]
    unfit = np.isclose(temperatures[:, None], TEMPERATURES).any(1)
    if not kept:
        raise InputError(
            f"no label has {LEAST} positives and {LEAST} negatives among the {len(found)} validation images"
        )
    if few:
        _logger.warning("chosen on fewer than %d positives or negatives, so uncertain: %s", ENOUGH, ", ".join(few))
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
    write_text(run / NAME, to_json(vars(result), 1) + "\n")
    return result


def _keep_another(path: Path, config: CalibrateConfig, images: str) -> None:
    """Refuses to replace a calibration that was made on other images."""
    if config.overwrite or not path.is_file():
        return
    try:
        made = dict(read_json(path)["provenance"])
    except (ValueError, KeyError, TypeError):
        return  # it is damaged: nothing is lost
    if (made.get("data"), made.get("images_sha256")) != (config.data, images):
        raise InputError(
            f"{path} was made on {made.get('images')} images of {made.get('data')}, not on these of {config.where()}: "
            "add --overwrite to replace it"
        )


def find_calibration(model: str) -> Calibration | None:
    """Reads the calibration of a run folder, or of weights that come with the package; None where there is none.

    Raises:
        InputError: as ``read_calibration``.
    """
    if (Path(model) / NAME).is_file():
        return read_calibration(model)
    entry = manifest().get(model)
    path = packaged(entry) if entry else None
    path = path and path.with_suffix(".calibration.json")
    return _read(path, model, LABEL_SPACES[entry["labels"]], entry["sha256"]) if path and path.is_file() else None


def read_calibration(run: str | Path) -> Calibration:
    """Reads the calibration of a run folder.

    Raises:
        InputError: there is none, it is damaged, it is of other weights or of other labels, or a value is out of range.
    """
    path = Path(run) / NAME
    if not path.is_file():
        raise InputError(f"{run} has no {NAME}: write it with mxa calibrate {run} --data ... --root ...")
    config = read_config(path.with_name("config.json"))
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names") or ()
    return _read(path, run, names, weights_sha256(str(run)))


def _read(path: Path, of: str | Path, names: Sequence[str], sha256: str) -> Calibration:
    """Reads a calibration of labels ``names`` and of weights ``sha256``; errors call the model ``of``."""
    try:
        content = read_json(path)
        result = Calibration(content["temperatures"], content["thresholds"], content["provenance"])
        held = result.provenance["weights_sha256"]
        _check_labels(result, names)
    except KeyError as error:
        raise InputError(f"{path} is not a calibration (no {error}): write it again with mxa calibrate") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a calibration ({error}): write it again with mxa calibrate") from None
    if held != sha256:
        raise InputError(f"{path} was made for other weights than {of} holds: run mxa calibrate again")
    return result


def _check_labels(found: Calibration, names: Sequence[str]) -> None:
    """Refuses labels that the model does not have, and labels that were scored and of which nothing is said.

    A label has a threshold of every kind, but for one whose specificity no threshold makes 95 %. It has a temperature,
    or the provenance says why not.
    """
    said = {k: found.provenance.get(k, []) for k in ("not_calibrated", "temperature_at_its_end")}
    counts = found.provenance["positives_and_negatives"]
    if not isinstance(counts, Mapping) or not all(isinstance(labels, list) for labels in said.values()):
        raise InputError("its provenance does not say what was calibrated")
    given = {"the scored labels": counts, "temperatures": found.temperatures}
    for what, labels in {**given, **{f"thresholds ({p})": v for p, v in found.thresholds.items()}}.items():
        if unknown := [label for label in labels if label not in names]:
            raise InputError(f"{what} name {name_some(unknown)}, which the model does not have")
    kept = [label for label in counts if label not in said["not_calibrated"]]
    wanted = {"temperature": (found.temperatures, said["temperature_at_its_end"])}
    wanted |= {f"threshold ({p})": (found.thresholds[p], ()) for p in OPERATING_POINTS if p != "specificity95"}
    for what, (values, without) in wanted.items():
        if missing := [label for label in kept if label not in values and label not in without]:
            raise InputError(f"{name_some(missing)} has no {what}")
