"""``mxa predict --output``: any number of images to one table, in a memory that does not grow with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ... import __version__
from ...data.image_io import find_images
from ...deployment.predictor import Predictor
from ...deployment.scores import FORMATS, Parts, ScoreTable, Summary
from ...deployment.stream import default_workers
from ...utils.errors import InputError
from ...utils.files import alone_in
from ...utils.json_files import to_json
from ..bar import images_bar
from .config import PredictConfig
from .rows import predict_rows

__all__ = ["predict_files"]

IMAGES_OF_A_PART = 512  # about: what a kill loses at most


def predict_files(config: PredictConfig) -> Summary:
    """Predicts images into a table.

    Raises:
        InputError: as ``predict``; the file is there, or a part of it is, without ``resume``; with it, other images or
            settings than the parts were made of; or the disk is full.
    """
    output = config.output
    _check_output(config, output)
    with alone_in(Parts.folder_of(output), "mxa predict"):
        predictor = config.open()
        files = [str(path) for path in find_images(config.files)]
        table = _table(config, output.suffix, predictor)
        size = config.batch_size * -(-IMAGES_OF_A_PART // config.batch_size)
        parts = Parts(table, output, files, size)
        if not output.exists():
            try:
                parts.begin(_settings(config, predictor))
                with images_bar(len(files)) as advance:
                    compute = _on_ray if config.ray else _here
                    compute(config, predictor, parts, advance)
                parts.finish()
            except BaseException:
                if not parts.unfinished(output):
                    parts.remove()
                raise
        summary = table.check(output, files)
        parts.remove()
        return summary


def _check_output(config: PredictConfig, output: Path) -> None:
    if output.suffix not in FORMATS:
        raise InputError(f"--output {output}: name a .parquet, .csv or .jsonl file")
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file")
    if not config.resume and output.exists():
        raise InputError(f"--output {output} exists: delete it, or give another file")
    if not config.resume and Parts.unfinished(output):
        raise InputError(
            f"{Parts.folder_of(output)} holds a part of {output.name}: add --resume to go on, or delete that folder"
        )


def _table(config: PredictConfig, suffix: str, predictor: Predictor) -> ScoreTable:
    info = predictor.info
    metadata = {
        "mxa": __version__,
        "model": Path(info.name).name,
        "weights_sha256": info.weights_sha256,
        "runtime": predictor.runtime,
        "calibrated": config.calibrated or "",
    }
    thresholds = info.calibration.thresholds[config.calibrated] if config.calibrated else None
    return ScoreTable(suffix, info.labels, thresholds, config.identifiers, metadata)


def _settings(config: PredictConfig, predictor: Predictor) -> dict[str, str | int | bool]:
    """What the rows depend on beside the images."""
    calibration = predictor.info.calibration if config.calibrated else None
    return {
        "mxa": __version__,
        "weights": predictor.info.weights_sha256,
        "labels": ", ".join(predictor.labels),
        "runtime": predictor.runtime,
        "--calibrated": config.calibrated or "",
        "calibration": to_json([calibration.temperatures, calibration.thresholds]) if calibration else "",
        "--identifiers": config.identifiers,
        "--dicom-sr": str(config.dicom_sr or ""),
        "--secondary-capture": str(config.secondary_capture or ""),
        "--batch-size": config.batch_size,
    }


def _here(config: PredictConfig, predictor: Predictor, parts: Parts, advance: Callable[[int], None]) -> None:
    left = parts.left()
    files = list(itertools.chain.from_iterable(left.values()))
    advance(len(parts.files) - len(files))
    workers = default_workers(len(files)) if config.workers is None else config.workers
    with closing(predict_rows(config, predictor, files, workers)) as rows:
        for number, names in left.items():
            held = []
            for row in itertools.islice(rows, len(names)):
                held.append(row)
                advance(1)
            parts.write(number, parts.table.encode(held))


def _on_ray(config: PredictConfig, predictor: Predictor, parts: Parts, advance: Callable[[int], None]) -> None:
    from .on_ray import parts_on_ray

    left = parts.left()
    advance(len(parts.files) - sum(map(len, left.values())))
    for number, content in parts_on_ray(config, predictor.info, parts.table, left):
        parts.write(number, content)
        advance(len(left[number]))
