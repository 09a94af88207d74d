"""``mxa explain``: pictures and boxes of what a model looks at in an image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.efficientvit_msra import CascadedGroupAttention
from torch import nn

from ..data import create_transform
from ..data.image_io import find_images, read_checked, read_image
from ..data.transforms import data_config
from ..evaluation.inference import check_finite
from ..explain.attention import attention_maps, mean_attention
from ..explain.attribution import grad_cam, integrated_gradients
from ..explain.findings import predict_findings
from ..explain.geometry import find_peak, least_shown
from ..explain.panels import FindingAt, draw_gallery, draw_panel
from ..explain.rois import gate_maps, predict_rois
from ..labels import align, canonical, resolve_labels
from ..layers import MXABlock
from ..layers.attach import finding_rows
from ..models.load import load_model, named_outputs
from ..utils.distributed import pick_device
from ..utils.errors import InputError, require
from ..utils.files import alone_in, write_text
from ..utils.json_files import to_json
from .config import ExplainConfig

__all__ = ["ExplainConfig", "explain"]

_logger = logging.getLogger(__name__)
_GALLERY = 40  # images in one picture


def explain(config: ExplainConfig) -> list[dict[str, Any]]:
    """Explains every image, in order, and writes a picture and a JSON file for each.

    Returns:
        What each JSON file holds. Points are ``x, y`` and boxes ``x1, y1, x2, y2`` in pixels of the original image,
        as EXIF turns it, counted from the outer edge of its first pixel:

        - ``file``, of an absolute path only what lies inside the folder that was given; ``size`` (width, height); and
          ``warning`` where the file is not a frontal chest radiograph, as in ``mxa predict``
        - ``boxes``: of each MXA block, by module name
        - ``labels``: for each finding its ``probability`` (sigmoid of the logit, not calibrated), and of ``grad_cam``
          and ``integrated_gradients`` ``{"peak": point, "box": box}``, or null where nothing speaks for the label. The
          box encloses the connected part above half of the maximum that holds the peak. A model without maps (a plain
          ViT) has no ``grad_cam``. With a finding head there is ``finding``: the peak of the label's heat map, and the
          head's box
        - ``attention``, ``gate``: the same for each module, half counted from the map's lowest value above 0
        - ``picture``: the name of the PNG beside it

        With ``skip_bad`` an image that does not read has ``{"file": name, "error": reason}`` and no files.

    Raises:
        InputError: bad input, a model whose outputs have no names, an image that does not read, or a file that would
            be overwritten.
    """
    require("captum", "explain")
    require("matplotlib", "explain")
    with alone_in(Path(config.output), "mxa explain"):
        return _explain(config)


def _explain(config: ExplainConfig) -> list[dict[str, Any]]:
    device = pick_device(config.device)
    model = load_model(config.model, finding_head=True).to(device)
    labels = None if config.labels is None else _indices(model, config.labels)
    if not (findings := _findings(named_outputs(model), labels)):
        raise InputError("No Finding has no place in an image: name a finding in --labels, or take another model")
    other = load_model(config.against).to(device) if config.against else None
    for m in (model, other):
        if other is not None and not _has(m, CascadedGroupAttention):
            raise InputError("--against compares cascaded group attention: both models must have it (efficientvit)")
    compared = (Path(config.against or "").name, Path(config.model).name)
    explainer = _Explainer(model, other, findings, config.labels is not None, compared)
    paths = find_images(config.files)
    names = _names(paths)
    _refuse_overwriting(paths, names, config.output)
    rows, gallery = [], []
    for path, name in zip(paths, names, strict=True):
        try:
            row, image, inputs = explainer.read(path, _file(path, config.files))
        except InputError as error:
            if not config.skip_bad:
                raise
            rows.append({"file": _file(path, config.files), "error": str(error)})
            continue
        rois = explainer.explain(row, image, inputs, Path(config.output) / f"{name}.png")
        text = to_json(row, 2)
        write_text(Path(config.output) / f"{name}.json", text)
        rows.append(row)
        if rois and len(gallery) < _GALLERY:
            image.thumbnail((400, 400))
            gallery.append((image, rois, name))
    if all("error" in row for row in rows):
        raise InputError(f"none of the {len(rows)} images reads: {rows[0]['error']}")
    if len(gallery) > 1:
        draw_gallery(*zip(*gallery, strict=True), Path(config.output) / "gallery.png", compared[1])
    return rows


class _Explainer:
    """Explains one image after another."""

    def __init__(
        self, model: nn.Module, other: nn.Module | None, findings: list[int], asked: bool, compared: tuple[str, str]
    ):
        self.models = [model] if other is None else [model, other]
        self.findings, self.asked, self.compared = findings, asked, compared
        self.transforms = [create_transform(m) for m in self.models]
        self.names = named_outputs(model)
        self.device = next(model.parameters()).device
        self.methods = {"grad_cam": grad_cam, "integrated_gradients": _smooth_gradients}
        try:
            size = data_config(model)["input_size"]
            grad_cam(model, torch.zeros(1, *size, device=self.device), [0])
        except InputError as error:
            _logger.warning("no Grad-CAM: %s", error)
            del self.methods["grad_cam"]

    def read(self, path: Path, name: str) -> tuple[dict[str, Any], Image.Image, list[torch.Tensor]]:
        """Returns what is known of a file of that name, the image as it is, and each model's input ``(1, C, H, W)``."""
        image, about = read_checked(path)
        row = {"file": name, **about, "size": [image.width, image.height]}
        inputs = [t(read_image(path, t.decode_size))[None].to(self.device) for t in self.transforms]
        return row, image, inputs

    def explain(
        self, row: dict[str, Any], image: Image.Image, inputs: list[torch.Tensor], picture: Path
    ) -> dict[str, torch.Tensor]:
        """Adds what is found to ``row``, writes the picture, and returns the boxes."""
        model, x = self.models[0], inputs[0]
        with torch.no_grad():
            logits = model(x).float().cpu()
        check_finite(logits.numpy(), self.names, [row["file"]], self.compared[1])
        probabilities = logits[0].sigmoid()
        by_probability = sorted(self.findings, key=lambda i: -probabilities[i].item())
        chosen = self.findings if self.asked else by_probability[:3]
        rois = predict_rois(model, x) if _has(model, MXABlock) else {}
        gates = gate_maps(model, x) if rois else {}
        attention = attention_maps(model, x) if _has(model, CascadedGroupAttention) else {}
        found = {method: attribute(model, x, chosen)[0] for method, attribute in self.methods.items()}  # (L, H, W)

        def pixels(part: Iterable[float]) -> list[float]:
            return [round(v * row["size"][i % 2], 2) for i, v in enumerate(part)]

        def peak(heat: torch.Tensor, low: float = 0.0) -> dict[str, list[float]] | None:
            at = find_peak(heat, low)
            return at and {"peak": pixels(at.point), "box": pixels(at.box)}

        row["boxes"] = {name: pixels(box[0].tolist()) for name, box in rois.items()}
        row["attention"] = {name: peak(heat[0], least_shown(heat[0])) for name, heat in attention.items()}
        row["gate"] = {name: peak(heat[0], least_shown(heat[0])) for name, heat in gates.items()}
        row["labels"] = {
            self.names[label]: {
                "probability": probabilities[label].item(),
                **{method: peak(maps[i]) for method, maps in found.items()},
            }
            for i, label in enumerate(chosen)
        }
        places = self._findings(row, x, chosen, pixels)
        row["picture"] = picture.name

        means = [mean_attention(m, x)[0] for m, x in zip(self.models, inputs, strict=True)] if attention else []
        maps = {"attention, mean of the blocks (1 = even)": means[0]} if means else {}
        if gates:
            maps["spatial gate of the first block"] = next(iter(gates.values()))[0]  # it has the most cells
        titles = {"grad_cam": "Grad-CAM", "integrated_gradients": "integrated gradients"}
        labels = {
            f"{name} {finding['probability']:.2f}": {titles[method]: heat[i] for method, heat in found.items()}
            for i, (name, finding) in enumerate(row["labels"].items())
        }
        comparison = (means[1], means[0]) if len(means) == 2 else None
        title = Path(row["file"]).name
        draw_panel(image, rois, maps, labels, picture, title, comparison, self.compared, self.compared[1], places)
        return rois

    def _findings(
        self, row: dict[str, Any], x: torch.Tensor, chosen: list[int], pixels: Callable[[Iterable[float]], list[float]]
    ) -> dict[str, FindingAt]:
        """Adds where the finding head sees each label to ``row``, and returns it for the picture."""
        if finding_rows(self.models[0]) is None:
            return {}
        found, places = predict_findings(self.models[0], x), {}
        for label in (label for label in chosen if label in found.rows):
            name, i = self.names[label], found.rows.index(label)
            heat, box = found.heat_maps[0, i], found.boxes[0, i]
            at = find_peak(heat)
            row["labels"][name]["finding"] = {"peak": at and pixels(at.point), "box": pixels(box.tolist())}
            places[f"{name} {row['labels'][name]['probability']:.2f}"] = FindingAt(heat, box)
        return places


def _file(path: Path, given: Sequence[Path]) -> str:
    """A path as it was given; of an absolute one the part inside the folder that was given, or its name."""
    folders = [folder for folder in map(Path, given) if path.is_absolute() and folder in path.parents]
    return str(path.relative_to(folders[0])) if folders else path.name if path.is_absolute() else str(path)


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _indices(model: nn.Module, labels: str) -> list[int]:
    names, wanted = named_outputs(model), resolve_labels(labels)
    found = align(names, wanted)
    if None in found:
        missing = [name for name, index in zip(wanted, found, strict=True) if index is None]
        raise InputError(f"--labels: the model does not know {', '.join(missing)}; it knows {', '.join(names)}")
    return list(found)


def _findings(names: Sequence[str], labels: list[int] | None) -> list[int]:
    """The outputs that have a map: those asked for, or all, but "No Finding", which has no place in an image."""
    asked = range(len(names)) if labels is None else labels
    found = [i for i in asked if canonical(names[i]) != canonical("No Finding")]
    if len(found) < len(asked):
        _logger.info("No Finding gets no map: it has no place in an image")
    return found


def _smooth_gradients(model: nn.Module, images: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """What speaks for each label ``(B, L, H, W)``, averaged twice over squares of a twentieth of the image."""
    maps = integrated_gradients(model, images, labels).clamp(min=0)
    side = max(maps.shape[-1] // 40 * 2 + 1, 3)
    for _ in range(2):
        maps = F.avg_pool2d(maps, side, stride=1, padding=side // 2)
    return maps


def _names(paths: list[Path]) -> list[str]:
    """A name for each file: its stem, with a number where that is taken. ``gallery`` is always taken."""
    taken, names = {"gallery"}, []
    for path in paths:
        name, number = path.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _refuse_overwriting(paths: list[Path], names: list[str], output: Path) -> None:
    if Path(output).exists() and not Path(output).is_dir():
        raise InputError(f"--output {output} is a file: give a folder")
    inputs = {path.resolve() for path in paths}
    for name in (*names, "gallery"):
        target = (Path(output) / f"{name}.png").resolve()
        if target in inputs:
            raise InputError(f"--output {output}: {target} is one of the images; give another folder")
