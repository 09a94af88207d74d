"""``mxa predict --dicom-sr`` and ``--secondary-capture``: DICOM objects of each DICOM image, as it is predicted."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...deployment.dicom_report import ModelIdentity, calibration_name, check_source, write_outputs
from ...deployment.predictor import PlaneReader, Predictor
from ...utils.errors import InputError
from ...utils.files import NoSpace
from .config import PredictConfig

__all__ = ["DicomReader", "write_reports"]


@dataclass(frozen=True)
class DicomReader:
    """Reads what a report can be made of, with another reader. It can be sent to another process."""

    reader: PlaneReader

    def __call__(self, path: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Reads a DICOM file.

        Raises:
            InputError: it is none, or does not read.
        """
        check_source(path)
        return self.reader(path)


def write_reports(
    config: PredictConfig, predictor: Predictor, rows: Generator[dict[str, Any], None, None]
) -> Generator[dict[str, Any], None, None]:
    """Writes the objects of each row whose image read, and gives the row.

    The boxes of a finding head are in them where PyTorch runs the model. With ``skip_bad``, an image of which no report
    can be made has the reason as its ``"error"``.

    Raises:
        InputError: no report can be made of an image, without ``skip_bad``, the model has nothing to draw, or the disk
            is full.
    """
    info = predictor.info
    calibration = calibration_name(info.calibration, config.calibrated) if config.calibrated else ""
    identity = ModelIdentity(Path(info.name).name, __version__, info.weights_sha256, calibration)
    places = None
    if predictor.runtime == "torch":
        from .places import Places

        places = Places(config.model, config.device)
    with tempfile.TemporaryDirectory() as folder, closing(rows):
        picture = Path(folder) / "picture.png" if config.secondary_capture else None
        for row in rows:
            if "probabilities" in row:
                path = Path(row["file"])
                if picture:
                    places.draw(row, picture)
                try:
                    write_outputs(
                        row,
                        path,
                        identity,
                        boxes=places.boxes(path) if places else None,
                        picture=picture,
                        dicom_sr=config.dicom_sr,
                        secondary_capture=config.secondary_capture,
                    )
                except NoSpace:
                    raise
                except InputError as error:
                    if not config.skip_bad:
                        raise
                    row["error"] = str(error)
            yield row
