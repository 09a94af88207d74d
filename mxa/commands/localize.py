"""Do a model's maps and boxes find the finding? Scores against known boxes, beside baselines that need no model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data import Records, create_transform, data_config
from ..data.boxes import BoxedImage, read_boxed, reduced
from ..data.names import OWN
from ..data.transforms import XrayTransform
from ..evaluation.model_arguments import read_models
from ..evaluation.report.localization import localization_markdown, write_csv
from ..labels import align
from ..metrics.froc import MarkedBox, froc_table
from ..metrics.localization import (
    CENTRE,
    Scores,
    commonest_point,
    covered_area,
    iou,
    mean_box,
    score_box,
    score_map,
    score_point,
)
from ..metrics.localization_table import CaseScore, localization_table
from ..models.load import load_model, named_outputs
from ..utils.distributed import pick_device
from ..utils.errors import InputError
from ..utils.files import alone_in, write_text
from ..utils.json_files import to_json
from .config import LocalizeConfig

__all__ = ["LocalizeConfig", "baselines", "localize"]

_logger = logging.getLogger(__name__)

NO_MODEL = "no model"
_RIGHT = 0.25  # IoU above which a marked box is right
# Functions of mxa.explain that give something for each of some modules, the same for every finding.
_OF_MODULES = {"roi": "predict_rois", "roi-map": "roi_heat_maps", "gate": "gate_maps", "attention": "attention_maps"}


def localize(config: LocalizeConfig) -> dict[str, Any]:
    """Scores models' maps and boxes and the baselines; writes ``localization.json``, ``.csv`` and ``.md``.

    A case is one finding of one image. A model is scored on the findings that it has an output of, by name; those that
    no model has are left out of the baselines too.

    Returns:
        What the JSON holds: ``rows`` as ``mxa.metrics.localization_table`` gives them, each with its ``model``, the
        number of ``images`` and ``patients``, ``froc`` as ``froc_table`` gives it for the boxes of finding heads,
        ``skipped`` (for each model the cases of findings that it does not have,
        by finding), ``seeds`` (the arguments of each model), ``left_out`` (for each model the methods that it does not
        have, and why), and the settings.

    Raises:
        InputError: bad input, a model whose outputs have no names, seeds that are not of one model, no boxes, or a map
            that is not finite.
    """
    numbers = config.batch_size, config.steps, 1 if config.reduce is None else config.reduce
    if min(numbers) < 1:
        raise InputError("--batch-size, --steps and --reduce must be at least 1")
    with alone_in(Path(config.output), "mxa localize"):
        return _localize(config)


def _localize(config: LocalizeConfig) -> dict[str, Any]:
    from .. import explain

    arguments = {name: [*seeds] for name, seeds in read_models(config.models).items()}
    config = config.resolved(*(argument for seeds in arguments.values() for argument in seeds))
    records, images = read_boxed(config.data, config.root, config.split, config.boxes or OWN)
    for argument in (argument for seeds in arguments.values() for argument in seeds):
        config.check_boxes(argument, records.split)
    models = {name: [load_model(argument) for argument in seeds] for name, seeds in arguments.items()}
    findings = [label for label in records.labels if any(label in image.boxes for image in images)]
    for name, seeds in models.items():
        for argument, model in zip(arguments[name], seeds, strict=True):
            if _kind(model) != _kind(seeds[0]):
                raise InputError(f"{argument} is not a seed of the model that {arguments[name][0]} is one of")
    known = {name: _outputs(named_outputs(seeds[0]), findings) for name, seeds in models.items()}
    if not (shared := [f for f in findings if any(f in outputs for outputs in known.values())]):
        raise InputError(f"no model has an output for any of {', '.join(findings)}")
    tables = {NO_MODEL: baselines(images, shared, config.threshold)}
    left_out: dict[str, dict[str, str]] = {}
    marked: dict[str, list[MarkedBox]] = {}
    for name, seeds in models.items():
        for title in (name, f"{name}, shuffled weights") if config.shuffled else (name,):
            tables[title] = []
            for number, model in enumerate(seeds):
                _logger.info("%s: %s images, seed %d of %d", title, f"{len(images):,}", number + 1, len(seeds))
                one = model if title == name else explain.shuffled(model, config.seed + number)
                one.to(pick_device(config.device))
                scores, left_out[title] = _score_model(one, records, images, known[name], config)
                tables[title] += [row._replace(seed=number) for row in scores]
                if title == name and any(row.method == "finding" for row in scores):
                    boxes = _mark(one, records, images, known[name], config)
                    marked[name] = [*marked.get(name, ()), *(box._replace(seed=number) for box in boxes)]
    count = Counter(finding for image in images for finding in image.boxes)
    result = {
        **{k: getattr(config, k) for k in ("data", "reduce", "layers", "steps", "threshold", "seed", "replicates")},
        "split": records.split,
        "images": len(images),
        "patients": len({image.patient for image in images}),
        "skipped": {name: {f: count[f] for f in findings if f not in known[name]} for name in models},
        "seeds": {name: [Path(argument).name for argument in seeds] for name, seeds in arguments.items()},
        "left_out": left_out,
        "rows": [
            {"model": title, **row}
            for title, scores in tables.items()
            for row in (localization_table(scores, config.replicates) if scores else ())
        ],
        "froc": [
            {"model": name, **row} for name, boxes in marked.items() for row in froc_table(boxes, config.replicates)
        ],
    }
    write_text(Path(config.output) / "localization.json", to_json(result, 2) + "\n")
    write_csv(result["rows"], Path(config.output) / "localization.csv")
    write_text(Path(config.output) / "localization.md", localization_markdown(result["rows"], result["froc"]))
    return result


def baselines(images: Sequence[BoxedImage], findings: Sequence[str], threshold: float = 0.5) -> list[CaseScore]:
    """Scores what needs no model: chance, the centre, and the other patients' mean box and commonest point.

    Chance is a constant map: the area of the boxes. The last two are of the same finding; a case is left out of them
    where no other patient has it.
    """
    rows, even = [], np.ones((256, 256))
    for finding in findings:
        cases = [image for image in images if finding in image.boxes]
        boxes, patients = [case.boxes[finding] for case in cases], [case.patient for case in cases]
        rows += [_row(c, finding, "chance", score_map(even, b)) for c, b in zip(cases, boxes, strict=True)]
        rows += [_row(c, finding, "centre", score_point(*CENTRE, b)) for c, b in zip(cases, boxes, strict=True)]
        for case, mean in zip(cases, mean_box(boxes, patients), strict=True):
            if not np.isnan(mean).any():
                rows.append(_row(case, finding, "mean box", score_box(mean, case.boxes[finding])))
        for i, cover in commonest_point(boxes, patients):
            rows.append(_row(cases[i], finding, "commonest point", score_map(cover, boxes[i], threshold)))
    return rows


def _score_model(
    model: nn.Module,
    records: Records,
    images: Sequence[BoxedImage],
    outputs: dict[str, int],
    config: LocalizeConfig,
) -> tuple[list[CaseScore], dict[str, str]]:
    """Scores every method of a model; gives the rows, and why the methods that it does not have are left out."""
    transform, device = create_transform(model), next(model.parameters()).device
    images = [image for image in images if outputs.keys() & image.boxes]
    rows, left_out = [], {}
    for start in range(0, len(images), config.batch_size):
        batch = images[start : start + config.batch_size]
        pixels = _pixels(records, [image.index for image in batch], transform, config)
        for kind in (k for k in config.methods if k not in left_out):
            try:
                found = _explain(kind, model, pixels.to(device), batch, outputs, config)
            except InputError as error:
                if start:
                    raise
                left_out[kind] = str(error)
                continue
            score = score_box if kind in ("roi", "finding") else partial(score_map, threshold=config.threshold)
            for image, finding, method, value in found:
                rows.append(_row(image, finding, method, score(value, image.boxes[finding])))
    return rows, left_out


def _mark(
    model: nn.Module,
    records: Records,
    images: Sequence[BoxedImage],
    outputs: dict[str, int],
    config: LocalizeConfig,
) -> list[MarkedBox]:
    """The box of each finding in every image that has one drawn, or that does not have the finding."""
    from .. import explain

    transform, device = create_transform(model), next(model.parameters()).device
    drawn = {image.index: image.boxes for image in images}
    column = {finding: records.labels.index(finding) for finding in outputs}
    wanted = {
        i: [f for f in outputs if f in drawn.get(i, ()) or records.targets[i, column[f]] == 0]
        for i in range(len(records))
    }
    rows = [i for i, findings in wanted.items() if findings]
    marked = []
    for start in range(0, len(rows), config.batch_size):
        batch = rows[start : start + config.batch_size]
        pixels = _pixels(records, batch, transform, config)
        found = explain.predict_findings(model, pixels.to(device))
        probabilities, boxes = _array(found.logits.sigmoid()), _array(found.boxes)
        for place, i in enumerate(batch):
            for finding in (f for f in wanted[i] if outputs[f] in found.rows):
                box, case = boxes[place, found.rows.index(outputs[finding])], drawn.get(i, {}).get(finding)
                right = case is not None and iou(box, case) > _RIGHT
                score = float(probabilities[place, outputs[finding]])
                who = records.paths[i], str(records.patients[i])
                marked.append(MarkedBox(*who, finding, score, case is not None, right))
    return marked


def _explain(
    kind: str,
    model: nn.Module,
    pixels: torch.Tensor,
    batch: Sequence[BoxedImage],
    outputs: dict[str, int],
    config: LocalizeConfig,
) -> list[tuple[BoxedImage, str, str, np.ndarray]]:
    """Gives for each case of a batch the image, the finding, the method's name, and a map ``(H, W)`` or a box."""
    from .. import explain

    if kind in ("finding", "finding-map"):
        found = explain.predict_findings(model, pixels)
        values = _array(found.boxes if kind == "finding" else found.heat_maps)
        places = {f: found.rows.index(row) for f, row in outputs.items() if row in found.rows}
        return [
            (image, finding, kind, values[i, places[finding]])
            for i, image in enumerate(batch)
            for finding in image.boxes
            if finding in places
        ]
    if kind in _OF_MODULES:
        maps = getattr(explain, _OF_MODULES[kind])(model, pixels)
        named = {f"{kind}: {name}": _array(values) for name, values in maps.items()}
        if not named:
            raise InputError("the model has none")
        return [
            (image, finding, name, values[i])
            for name, values in named.items()
            for i, image in enumerate(batch)
            for finding in image.boxes
            if finding in outputs
        ]
    if kind == "grad-cam":
        layers = dict.fromkeys(config.layers) or {None: None}
        by_label = {kind + (f": {name}" if name else ""): partial(explain.grad_cam, layer=name) for name in layers}
    else:
        by_label = {kind: partial(explain.integrated_gradients, steps=config.steps)}
    found = []
    for finding, label in outputs.items():
        if places := [i for i, image in enumerate(batch) if finding in image.boxes]:
            for name, explainer in by_label.items():
                maps = _array(explainer(model, pixels[places], [label])[:, 0])  # (B, 1, H, W) to (B, H, W)
                found += [(batch[i], finding, name, one) for i, one in zip(places, maps, strict=True)]
    return found


def _pixels(records: Records, rows: Sequence[int], transform: XrayTransform, config: LocalizeConfig) -> torch.Tensor:
    """Images as a model takes them, ``(B, C, H, W)``."""
    return torch.stack([transform(reduced(records.image(i), config.reduce)) for i in rows])


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _row(image: BoxedImage, finding: str, method: str, scores: Scores) -> CaseScore:
    area = covered_area(image.boxes[finding])
    return CaseScore(image.name, image.patient, finding, method, scores.pointing, scores.iou, scores.energy, area=area)


def _kind(model: nn.Module) -> tuple[Any, ...]:
    """What the seeds of one model have in common: outputs, input and parameters."""
    return named_outputs(model), data_config(model), {name: value.shape for name, value in model.state_dict().items()}


def _outputs(labels: Sequence[str], findings: Sequence[str]) -> dict[str, int]:
    """Findings that a model has an output of, and which."""
    return {f: i for f, i in zip(findings, align(labels, findings), strict=True) if i is not None}
