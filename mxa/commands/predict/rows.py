"""The rows of ``mxa predict``: images are read, scored and reported, one after the other."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from ...deployment.predictor import Predictor
from ...deployment.stream import read_planes, score_planes
from .config import PredictConfig

__all__ = ["predict_rows"]


def predict_rows(
    config: PredictConfig, predictor: Predictor, files: Sequence[str], workers: int = 0, log: bool = False
) -> Generator[dict[str, Any], None, None]:
    """Predicts images as ``config`` says, and writes their DICOM objects.

    Args:
        config: The options.
        predictor: The model.
        files: The images.
        workers: Processes that read; 0 for this one.
        log: As for ``read_planes``.

    Yields:
        What ``score_planes`` gives for each image, in order.

    Raises:
        InputError: as ``read_planes``, ``score_planes`` and ``write_reports``.
    """
    reader = predictor.reader(config.identifiers)
    if config.reports:
        from .reports import DicomReader, write_reports

        reader = DicomReader(reader)
    images = read_planes(files, reader, workers, config.batch_size, log)
    rows = score_planes(predictor, images, config.batch_size, config.calibrated, config.skip_bad)
    return write_reports(config, predictor, rows) if config.reports else rows
