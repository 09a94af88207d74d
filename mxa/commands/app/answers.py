"""What a model says of a film, and where it looks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...deployment.predictor import Predictor
from ...deployment.runtimes import open_predictor
from ...deployment.stream import score_planes
from ...metrics.operating import OPERATING_POINTS
from ...utils.errors import InputError
from .films import Film

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["POINTS", "Answer", "Layer", "answer", "open_models"]

#: What the page calls each operating point.
POINTS = dict(zip(OPERATING_POINTS, ("Balanced (Youden)", "Specificity 95 %", "Best F1"), strict=True))

_ALONE = "This model is exported: it gives probabilities alone, no boxes and no maps."
_NO_PLACES = "This model has no boxes and no maps that the page can draw."
_FINDINGS = "A heat map and a box say where the model sees a finding. They are no outline of a disease."
_ATTENTION = "Boxes and maps say where the model reads, whatever the finding. They are no evidence of one."


class Layer(NamedTuple):
    """Something to lay over a film.

    Attributes:
        title: What it is.
        boxes: Pairs of a name and ``x1, y1, x2, y2`` in [0, 1]; boxes of one name look alike.
        heat: A map ``(H, W)`` in [0, 1] of the whole film; None where there are boxes alone.
    """

    title: str
    boxes: tuple[tuple[str, tuple[float, ...]], ...] = ()
    heat: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """What a model says of a film.

    Attributes:
        model: Its name.
        probabilities: Of each label; calibrated where the model is.
        thresholds: The least probability of each label that is called positive; empty without a calibration.
        positive: The labels that are.
        layers: What can be laid over the film.
        notes: What has to be said.
    """

    model: str
    probabilities: Mapping[str, float]
    thresholds: Mapping[str, float]
    positive: tuple[str, ...]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]


def open_models(arguments: Mapping[str, str], device: str | None = None) -> dict[str, Predictor]:
    """Opens models by the names that the page has for them, as ``mxa predict --model`` does.

    The small model that comes with mxa has its finding head.

    Raises:
        InputError: as ``mxa.deployment.open_predictor``.
    """
    models = {name: open_predictor(argument, device=device) for name, argument in arguments.items()}
    for name, argument in arguments.items():
        if (network := models[name].network) is not None:
            from ...models import add_finding_head
            from ...models.hub import SHIPPED

            if argument == SHIPPED:
                add_finding_head(network)
    return models


def answer(name: str, predictor: Predictor, film: Film, point: str) -> Answer:
    """Asks a model about a film.

    Args:
        name: What the page calls the model.
        predictor: The model.
        film: The film.
        point: Operating point, for a model with a calibration.

    Raises:
        InputError: a probability is not finite.
    """
    calibration = predictor.info.calibration
    plane = film.planes[predictor.reader()]
    planes = (read for read in [(plane, {"file": film.name})])
    (row,) = score_planes(predictor, planes, 1, point if calibration else None)
    said = "not calibrated: there are no thresholds, and nothing is called positive"
    if calibration:
        images = calibration.provenance.get("images")
        seen = f" on {images:,} validation images" if type(images) is int else ""
        said = f"calibrated{seen}. A finding is positive from its threshold on; without one it is not called"
    layers, note = (), _ALONE
    if predictor.network is not None:
        layers = tuple(_layers(predictor.network, plane, row))
        taught = any(layer.title in row["probabilities"] for layer in layers)  # by the name of a finding
        note = _NO_PLACES if not layers else _FINDINGS if taught else _ATTENTION
    thresholds = calibration.thresholds[point] if calibration else {}
    notes = (f"Probabilities are {said}.", note)
    return Answer(name, row["probabilities"], thresholds, tuple(row.get("positive", ())), layers, notes)


def _layers(network: nn.Module, plane: np.ndarray, row: Mapping) -> Iterator[Layer]:
    """The layers of a finding head, positive findings first, else of MXA blocks and attention."""
    import torch

    from ...data import create_transform
    from ...explain import mean_attention, predict_findings, predict_rois, roi_heat_maps
    from ...explain.geometry import least_shown
    from ...explain.rois import block_of, stage_of
    from ...layers.attach import finding_rows

    where = next(network.parameters()).device
    x = create_transform(network).to_tensor.normalizer(where)(torch.tensor(plane, device=where)[None, None])
    if finding_rows(network) is not None:
        found, labels = predict_findings(network, x), list(row["probabilities"])
        places = {labels[label]: i for i, label in enumerate(found.rows)}
        positive = row.get("positive", ())
        for label in sorted(places, key=lambda name: (name not in positive, -row["probabilities"][name])):
            i = places[label]
            box = tuple(found.boxes[0, i].tolist())
            yield Layer(label, ((label, box),), _shares(found.heat_maps[0, i]))
        return
    boxes, maps = {}, {}
    with contextlib.suppress(InputError):  # no MXA block
        boxes = {head: tuple(box[0].tolist()) for head, box in predict_rois(network, x).items()}
        maps = roi_heat_maps(network, x)
    if boxes:
        yield Layer("Regions of all MXA blocks", tuple((stage_of(head), box) for head, box in boxes.items()))
    with contextlib.suppress(InputError):  # no cascaded group attention
        heat = mean_attention(network, x)[0]
        yield Layer("Attention, mean", heat=_shares(heat, least_shown(heat)))
    for head, box in boxes.items():
        block = f"{stage_of(head)}{block_of(head)}"
        yield Layer(f"Region of {block}", ((block, box),), _shares(maps[head][0]) if head in maps else None)


def _shares(heat: torch.Tensor, low: float = 0.0) -> np.ndarray:
    """A map as shares of the way from ``low`` to its maximum."""
    return ((heat - low) / (heat.max() - low).clamp(min=1e-12)).clamp(0, 1).numpy()
