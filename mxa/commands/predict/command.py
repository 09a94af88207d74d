"""Findings of one image, of a folder, or of as many files as there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...utils.errors import InputError
from .config import PredictConfig

if TYPE_CHECKING:
    from ...deployment.scores import Summary

__all__ = ["PredictConfig", "predict"]


def predict(config: PredictConfig) -> list[dict[str, Any]] | Summary:
    """Predicts every image, in order.

    Returns:
        ``{"file": name, "probabilities": {label: probability}}`` for each image: the sigmoid of the logits. With
        ``calibrated`` the probabilities are calibrated, ``"positive"`` lists the labels at or above their thresholds,
        and ``"undecided"`` the labels without a threshold. With ``skip_bad`` an image that does not read has
        ``"error"``, the reason, instead of probabilities. ``"warning"`` says that the tags of a DICOM file speak
        against a frontal chest radiograph, or that the picture cannot be one (``mxa.data.check_radiograph``). It never
        changes a probability. A DICOM file has its ``"identifiers"`` with ``identifiers``.

        With ``output`` the rows are in that file, and the counts are returned.

    Raises:
        InputError: bad input, a model whose outputs have no names or are not finite, or an image that does not read.
    """
    config.check()
    if config.output:
        from .files import predict_files

        return predict_files(config)

    from ...data.image_io import find_images
    from .rows import predict_rows

    predictor = config.open()
    files = [str(path) for path in find_images(config.files)]
    results = list(predict_rows(config, predictor, files, 0, True))
    first = next((row for row in results if "probabilities" in row), None)
    if first is None:
        raise InputError(f"none of the {len(results)} images reads: {results[0]['error']}")
    if config.rois:
        from .places import Places

        Places(config.model, config.device).draw(first, config.rois)
    return results
