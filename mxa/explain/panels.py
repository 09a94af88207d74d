"""Pictures of boxes and maps, drawn over the X-ray, that can be read in grey: lines as well as colours."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.gray import input_gray
from ..utils.errors import InputError, require
from ..utils.files import atomic_write
from ..utils.text import printable
from .attention import resize
from .geometry import least_shown
from .rois import block_of, stage_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["FindingAt", "draw_comparison", "draw_findings", "draw_gallery", "draw_panel", "draw_rois"]

_STYLES = (("#ffd23f", "-"), ("#3bceac", "--"), ("#ff5d8f", ":"), ("#7aa2ff", "-."))
_COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#ff5d8f", "#3bceac", "#d55e00", "#cc79a7", "#ffffff")  # of findings
_SIDE = 3.0  # inches, of one picture in a panel
_LINE = 0.05  # height of a finding's name, as a share of that side


class FindingAt(NamedTuple):
    """Where one finding of an image is: a heat map ``(H, W)``, at least 0, and a box ``(4,)`` in [0, 1], xyxy."""

    heat_map: torch.Tensor
    box: torch.Tensor


def draw_rois(
    image: Image.Image, rois: Mapping[str, torch.Tensor], path: str | Path, title: str = "", model: str = ""
) -> None:
    """Draws the boxes of one image, a colour and a line style for each stage, and writes a PNG.

    Args:
        image: The X-ray, as ``mxa.data.to_gray`` takes it.
        rois: From ``predict_rois``; the first box of each head is drawn.
        path: The file to write.
        title: Written above the image.
        model: Name of the model, written below.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    image = input_gray(image)
    figure, axes = _single(image, title)
    _draw_xray(axes, image)
    _draw_boxes(axes, image, rois)
    _save(figure, path, model, axes)


def draw_findings(
    image: Image.Image, findings: Mapping[str, FindingAt], path: str | Path, title: str = "", model: str = ""
) -> None:
    """Draws where each finding is, its heat map and its box in a colour of its own, and writes a PNG.

    Args:
        image: The X-ray, as ``mxa.data.to_gray`` takes it.
        findings: What is written beside each box, to where it is.
        path: The file to write.
        title: Written above the image.
        model: Name of the model, written below.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    image = input_gray(image)
    figure, axes = _single(image, title)
    _draw_findings(axes, image, findings)
    _save(figure, path, model, axes)


def draw_gallery(
    images: Sequence[Image.Image],
    rois: Sequence[Mapping[str, torch.Tensor]],
    titles: Sequence[str],
    path: str | Path,
    model: str = "",
) -> None:
    """Draws the boxes of the last stage on each of several images (paper, figure I.1), and writes a PNG.

    Args:
        images: The X-rays, as ``mxa.data.to_gray`` takes them.
        rois: Of each, from ``predict_rois``; the first box of each head.
        titles: Written above each.
        path: The file to write.
        model: Name of the model, written below.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    images = [input_gray(image) for image in images]
    columns = min(len(images), 4)
    shapes = [image.height / image.width for image in images]
    heights = [_SIDE * max(shapes[i : i + columns]) + 0.3 for i in range(0, len(shapes), columns)]
    figure = _figure(_SIDE * columns, sum(heights) + 0.4)
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, boxes, title in zip(grid.flat, images, rois, titles, strict=False):
        _draw_xray(axes, image)
        last = stage_of(list(boxes)[-1])
        _draw_boxes(axes, image, {name: box for name, box in boxes.items() if stage_of(name) == last}, by_block=True)
        axes.set_title(_plain(title, 36), fontsize=8)
    _save(figure, path, model, grid[0, 0])


def draw_comparison(
    image: Image.Image,
    naive: torch.Tensor,
    improved: torch.Tensor,
    path: str | Path,
    title: str = "",
    names: tuple[str, str] = ("naive", "improved"),
) -> None:
    """Draws the X-ray, two models' attention and the difference (paper, figure L.1), and writes a PNG.

    In the difference, red and dashed lines are where the improved model attends less, blue and solid lines where it
    attends more. What does not change shows the X-ray.

    Args:
        image: The X-ray, as ``mxa.data.to_gray`` takes it.
        naive: Map ``(H, W)`` of the first model, from ``mean_attention``.
        improved: Map of the second, of any size.
        path: The file to write.
        title: Written above.
        names: Of the two models.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    image = input_gray(image)
    figure = _figure(_SIDE * 4 + 1.0, _SIDE * image.height / image.width + 0.9)
    figure.suptitle(_plain(title), fontsize=10)
    _compare(figure.subplots(1, 4), image, naive, improved, names)
    _save(figure, path, " and ".join(names))


def draw_panel(
    image: Image.Image,
    rois: Mapping[str, torch.Tensor],
    maps: Mapping[str, torch.Tensor],
    labels: Mapping[str, Mapping[str, torch.Tensor]],
    path: str | Path,
    title: str = "",
    comparison: tuple[torch.Tensor, torch.Tensor] | None = None,
    names: tuple[str, str] = ("naive", "improved"),
    model: str = "",
    findings: Mapping[str, FindingAt] | None = None,
) -> None:
    """Draws everything about one image on one page, and writes a PNG.

    Every row begins with the X-ray alone. The first has its findings, its boxes and the maps of the model, each map
    with a scale of its own, from its lowest value that is not 0. Then comes a row for each method with a column for
    each label, all of a row on one scale from 0, and a row as in ``draw_comparison``. A map is clear in the lowest
    fifth of its scale, so that the X-ray is seen; lines enclose what is above half of the scale.

    Args:
        image: The X-ray, as ``mxa.data.to_gray`` takes it.
        rois: From ``predict_rois``; empty for a model without MXA.
        maps: Title to a map ``(H, W)``, at least 0.
        labels: Title of each label to its maps by method, the same methods for all.
        path: The file to write.
        title: Written above.
        comparison: Attention of two models, as for ``draw_comparison``.
        names: Of those models.
        model: Name of the model, written below.
        findings: As for ``draw_findings``; none for a model without a finding head.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    image = input_gray(image)
    methods = list(next(iter(labels.values()))) if labels else []
    first = 1 + bool(findings) + bool(rois)
    columns = max(first + len(maps), 1 + len(labels), 4 if comparison else 0)
    rows = 1 + len(methods) + bool(comparison)
    figure = _figure((_SIDE + 0.3) * columns, (_SIDE * image.height / image.width + 0.3) * rows + 0.8)
    figure.suptitle(_plain(title), fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        _draw_xray(axes, image)
        axes.set_title("X-ray", fontsize=8)
    if findings:
        _draw_findings(grid[0, 1], image, findings)
        grid[0, 1].set_title("findings, by the finding head", fontsize=8)
    if rois:
        _draw_xray(grid[0, first - 1], image)
        _draw_boxes(grid[0, first - 1], image, rois)
        grid[0, first - 1].set_title("regions of the MXA blocks", fontsize=8)
    for axes, (name, heat) in zip(grid[0, first:], maps.items(), strict=False):
        _draw_scale([axes], _draw_heat(axes, image, heat, name, least_shown(heat), heat.max().item()))
    for row, method in zip(grid[1:], methods, strict=False):
        top = max(found[method].max().item() for found in labels.values())
        for axes, (name, found) in zip(row[1:], labels.items(), strict=False):
            picture = _draw_heat(axes, image, found[method], f"{name}: {method}", 0.0, top)
        _draw_scale(row, picture)
    if comparison:
        _compare(grid[-1], image, *comparison, names)
    _save(figure, path, model, grid[0, first - 1] if rois else None)


def _draw_findings(axes: Axes, image: Image.Image, findings: Mapping[str, FindingAt]) -> None:
    """Draws each finding in a colour of its own: the map as a tint, and the box with its name."""
    colours = require("matplotlib.colors", "explain")
    patches = require("matplotlib.patches", "explain")
    _draw_xray(axes, image)
    where: dict[str, Any] = {"extent": (0, image.width, image.height, 0), "interpolation": "bilinear"}
    line, names = _LINE * max(image.size), [_plain(name, 40) for name in findings]
    boxes = [(found.box * torch.tensor([image.width, image.height] * 2)).tolist() for found in findings.values()]
    for i, (found, (x1, y1, x2, y2), bottom) in enumerate(
        zip(findings.values(), boxes, _free_lines(boxes, names, line), strict=True)
    ):
        colour = _COLOURS[i % len(_COLOURS)]
        tint = np.empty((*found.heat_map.shape, 4))
        tint[..., :3] = colours.to_rgb(colour)
        share = found.heat_map / found.heat_map.max().clamp(min=1e-12)
        tint[..., 3] = 0.5 * (share * 1.25 - 0.25).clamp(min=0).numpy()
        axes.imshow(tint, **where)
        box = patches.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.8, edgecolor=colour)
        axes.add_patch(box)
        frame = {"facecolor": colour, "edgecolor": "none", "pad": 1.0}
        axes.text(x1, bottom, names[i], color="black", fontsize=7, va="bottom", bbox=frame)


def _free_lines(boxes: Sequence[Sequence[float]], names: Sequence[str], line: float) -> list[float]:
    """Lower edge of the name of each box: above the box or, where others or the border are, higher or below."""
    taken: list[tuple[float, float, float]] = []
    for (x1, y1, _, y2), name in zip(boxes, names, strict=True):
        right = x1 + 0.4 * line * len(name)
        above = (y1 - n * line for n in range(int(y1 / line)))
        below = (y2 + n * line for n in itertools.count(1))
        for bottom in itertools.chain(above, below):
            if not any(abs(bottom - y) < line and x1 < end and start < right for start, end, y in taken):
                taken.append((x1, right, bottom))
                break
    return [bottom for _, _, bottom in taken]


def _compare(
    row: Sequence[Axes], image: Image.Image, naive: torch.Tensor, improved: torch.Tensor, names: tuple[str, str]
) -> None:
    improved = resize(improved[None], (naive.shape[0], naive.shape[1]))[0]
    low, top = min(least_shown(naive), least_shown(improved)), max(naive.max().item(), improved.max().item())
    _draw_xray(row[0], image)
    for axes, heat, name in zip(row[1:], (naive, improved), names, strict=False):
        picture = _draw_heat(axes, image, heat, f"attention: {name}", low, top)
    _draw_scale(row[1:3], picture)
    delta = improved - naive
    top = max(delta.abs().max().item(), 1e-6)
    _draw_xray(row[3], image)
    picture = _draw_map(row[3], image, delta, "RdBu", -top, top, (2 * delta.abs() / top).clamp(max=1) * 0.85)
    _draw_lines(row[3], image, delta, [-top / 2, top / 2])
    row[3].set_title("delta (blue, solid: more; red, dashed: less)", fontsize=8)
    _draw_scale(row[3:4], picture)


def _draw_xray(axes: Axes, image: Image.Image) -> None:
    small = image.copy()
    small.thumbnail((900, 900))
    extent = (0, image.width, image.height, 0)
    axes.imshow(small.convert("F"), cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bicubic")
    axes.set_axis_off()


def _draw_heat(
    axes: Axes, image: Image.Image, heat: torch.Tensor, title: str, low: float, top: float
) -> ScalarMappable:
    """Draws a map over the X-ray, clear in the lowest fifth of its scale, and a line at half way to ``top``."""
    _draw_xray(axes, image)
    axes.set_title(_plain(title, 52), fontsize=8)
    top = top if top > low else low + 1
    opacity = 0.65 * ((heat - low) / (top - low) * 1.25 - 0.25).clamp(0, 1)
    if heat.max() <= low:
        axes.text(0.5, 0.5, "nothing", color="white", fontsize=9, ha="center", transform=axes.transAxes)
    _draw_lines(axes, image, heat, [(low + top) / 2])
    return _draw_map(axes, image, heat, "YlOrRd", low, top, opacity)


def _draw_map(
    axes: Axes, image: Image.Image, heat: torch.Tensor, colours: str, low: float, top: float, opacity: torch.Tensor
) -> ScalarMappable:
    where: dict[str, Any] = {"extent": (0, image.width, image.height, 0), "interpolation": "bilinear"}
    return axes.imshow(heat.numpy(), cmap=colours, vmin=low, vmax=top, alpha=opacity.numpy(), **where)


def _draw_lines(axes: Axes, image: Image.Image, heat: torch.Tensor, levels: list[float]) -> None:
    """Contours, white on black, dashed where negative."""
    high, wide = heat.shape
    x = (np.arange(wide) + 0.5) * image.width / wide
    y = (np.arange(high) + 0.5) * image.height / high
    low, top = heat.min().item(), heat.max().item()
    levels = [level for level in levels if low < level < top]
    if levels:
        axes.contour(x, y, heat.numpy(), levels, colors="black", linewidths=2)
        axes.contour(x, y, heat.numpy(), levels, colors="white", linewidths=1)


def _draw_scale(row: Sequence[Axes], picture: ScalarMappable) -> None:
    """Draws the colours of a map, solid, beside the pictures that share them."""
    mappable = require("matplotlib.cm", "explain").ScalarMappable(picture.norm, picture.cmap)
    bar = row[-1].figure.colorbar(mappable, ax=list(row), fraction=0.045 / len(row), pad=0.02 / len(row))
    bar.ax.tick_params(labelsize=6)
    bar.locator = require("matplotlib.ticker", "explain").MaxNLocator(4)
    bar.update_ticks()


def _draw_boxes(axes: Axes, image: Image.Image, rois: Mapping[str, torch.Tensor], by_block: bool = False) -> None:
    """Draws boxes with a style a stage, or a block."""
    patches = require("matplotlib.patches", "explain")
    kinds: dict[str, int] = {}
    for name, boxes in rois.items():
        kind = f"{stage_of(name)}{block_of(name)}" if by_block else stage_of(name)
        new = kind not in kinds
        colour, style = _STYLES[kinds.setdefault(kind, len(kinds)) % len(_STYLES)]
        x1, y1, x2, y2 = (boxes[0] * torch.tensor([image.width, image.height] * 2)).tolist()
        label = {"label": kind} if new else {}
        axes.add_patch(
            patches.Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.8, edgecolor=colour, linestyle=style, **label
            )
        )


def _plain(text: str, length: int = 90) -> str:
    text = printable(text)
    text = text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-length // 2 :]}"
    return text.replace("$", r"\$")  # matplotlib would set it as a formula


def _figure(width: float, height: float) -> Figure:
    require("matplotlib", "explain")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _single(image: Image.Image, title: str) -> tuple[Figure, Axes]:
    """A figure of one picture."""
    figure = _figure(6, 6 * image.height / image.width + 0.9)
    axes = figure.subplots()
    axes.set_title(_plain(title), fontsize=10)
    return figure, axes


def _save(figure: Figure, path: str | Path, model: str, boxes: Axes | None = None) -> None:
    """Writes a figure with the legend of its boxes, the model's name and what it is not for."""
    handles, names = boxes.get_legend_handles_labels() if boxes else ((), ())
    if handles:
        legend = figure.legend(handles, names, loc="outside lower left", ncols=4, fontsize=8, facecolor="#404040")
        for text in legend.get_texts():
            text.set_color("white")
    footer = f"{_plain(model)}: not for diagnosis" if model else "not for diagnosis"
    figure.supxlabel(footer, fontsize=8, x=0.99, ha="right")
    try:
        atomic_write(Path(path), lambda file: figure.savefig(file, dpi=120, format="png"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the picture {path}: {error}") from None
