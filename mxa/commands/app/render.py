"""Answers as HTML. What lies over a film is chosen in the browser, with nothing to ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from ...labels import canonical
from ...utils.text import printable
from .answers import Answer, Layer
from .films import Film, data_uri

__all__ = ["show_answers", "show_error"]

_STYLES = (("#ffd23f", ""), ("#3bceac", "6 4"), ("#ff5d8f", "2 3"), ("#7aa2ff", "8 3 2 3"))  # colour and dashes
_LOW, _HIGH = np.array([255, 210, 63]), np.array([224, 48, 30])  # colours of a map
_BARS = "Bars are on a square-root scale from 0 to 1. The line across a bar is the threshold."
_HEAD = "".join(
    f'<th scope="col" class="mxa-number" colspan="{columns}">{name}</th>'
    for name, columns in (("Probability", 2), ("Threshold", 1), ("Positive", 1))
)
_CHOOSE = (
    "for (const layer of this.closest('.mxa-film').querySelectorAll('.mxa-layer')) "
    "layer.hidden = layer.dataset.layer !== this.value"
)
_FADE = "this.closest('.mxa-film').style.setProperty('--opacity', this.value / 100)"


def show_error(text: str) -> str:
    """A sentence that says what is wrong."""
    return f'<p class="mxa-error" role="alert"><b>This file cannot be read.</b> {_text(text)}</p>'


def show_answers(film: Film, answers: Sequence[Answer]) -> str:
    """What one model says of a film, or several beside each other: the film of each, and one table."""
    warning = f'<p class="mxa-warning" role="alert">Look twice: {_text(film.warning)}.</p>' if film.warning else ""
    films = "".join(_film(film, answer) for answer in answers)
    several = " mxa-several" if len(answers) > 1 else ""
    notes = "".join(
        f"<p>{f'<b>{_text(answer.model)}</b>. ' if several else ''}{_text(' '.join(answer.notes))}</p>"
        for answer in answers
    )
    return (
        f'<section class="mxa-result{several}" aria-label="Result" aria-live="polite">{warning}'
        f'<div class="mxa-films">{films}</div><div class="mxa-numbers">{_table(answers)}<p>{_BARS}</p>'
        f"{notes}</div></section>"
    )


def _film(film: Film, answer: Answer) -> str:
    width, height = film.size
    layers = [_layer(layer, i) for i, layer in enumerate(answer.layers)]
    options = [f'<option value="{i}">{_text(layer.title)}</option>' for i, layer in enumerate(answer.layers)]
    controls = (
        f'<div class="mxa-controls"><label>Over the film <select onchange="{_CHOOSE}">{"".join(options)}</select>'
        f'</label><label>Opacity <input type="range" min="0" max="100" value="60" oninput="{_FADE}"></label></div>'
    )
    return (
        f'<figure class="mxa-film"><div class="mxa-canvas" style="--width: {width}; --height: {height}">'
        f'<img src="{film.picture}" alt="{_text(film.name)}">{"".join(layers)}</div>'
        f"{controls if layers else ''}"
        f"<figcaption>{_text(film.name)}, {_text(answer.model)}: not for diagnosis</figcaption></figure>"
    )


def _layer(layer: Layer, number: int) -> str:
    heat = "" if layer.heat is None else f'<img src="{_tint(layer.heat)}" alt="">'
    styles = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(dict(layer.boxes))}
    boxes = "".join(_box(*styles[name], box) for name, box in layer.boxes)
    legend = "".join(
        f'<li><svg viewBox="0 0 24 4">{_line(*style)}</svg>{_text(name)}</li>' for name, style in styles.items()
    )
    return (
        f'<div class="mxa-layer" data-layer="{number}"{" hidden" if number else ""}>{heat}'
        f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>'
        f"<ul>{legend}</ul></div>"
    )


def _box(colour: str, dashes: str, box: Sequence[float]) -> str:
    x1, y1, x2, y2 = box
    where = f'x="{x1:.4f}" y="{y1:.4f}" width="{x2 - x1:.4f}" height="{y2 - y1:.4f}"'
    return f'<rect {where} stroke="{colour}" stroke-dasharray="{dashes}"/>'


def _line(colour: str, dashes: str) -> str:
    return f'<line x1="0" y1="2" x2="24" y2="2" stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"/>'


def _tint(heat: np.ndarray) -> str:
    """A map as a picture: yellow to red, clear in the lowest fifth."""
    share = heat[..., None]
    colours = _LOW + share * (_HIGH - _LOW)
    opacity = 255 * (share * 1.25 - 0.25).clip(0)
    return data_uri(Image.fromarray(np.concatenate([colours, opacity], 2).round().astype(np.uint8), "RGBA"), "PNG")


def _table(answers: Sequence[Answer]) -> str:
    """The labels of all the models, the most probable first, each with a bar for each model that has it."""
    names: dict[str, str] = {}
    labels: list[dict[str, str]] = []
    for answer in answers:
        own: dict[str, str] = {}
        for label in answer.probabilities:
            own[label if (key := canonical(label)) in own else key] = label
        labels.append(own)
        names = own | names
    most = {key: max(_probabilities(answers, labels, key)) for key in names}
    rows = []
    for key in sorted(names, key=lambda key: -most[key]):
        cells = [_cells(answer, own.get(key)) for answer, own in zip(answers, labels, strict=True)]
        first = f'<th scope="rowgroup" rowspan="{len(cells)}">{_text(names[key].replace("_", " "))}</th>'
        inner = "</tr><tr>".join(
            f"{first if i == 0 else ''}{_which(i) if len(cells) > 1 else ''}{cell}" for i, cell in enumerate(cells)
        )
        rows.append(f"<tbody><tr>{inner}</tr></tbody>")
    which = '<th scope="col">Model</th>' if len(answers) > 1 else ""
    key = "".join(f"<li>{_mark(i)} {_text(answer.model)}</li>" for i, answer in enumerate(answers))
    return (
        f'{f"<ul class=mxa-key>{key}</ul>" if len(answers) > 1 else ""}<table><thead><tr><th scope="col">Finding</th>'
        f"{which}{_HEAD}</tr></thead>"
        f"{''.join(rows)}</table>"
    )


def _probabilities(answers: Sequence[Answer], labels: Sequence[dict[str, str]], key: str) -> Iterable[float]:
    return (a.probabilities[own[key]] for a, own in zip(answers, labels, strict=True) if key in own)


def _which(number: int) -> str:
    return f"<td>{_mark(number)}</td>"


def _mark(number: int) -> str:
    return f'<b class="mxa-mark mxa-mark-{number}">{"AB"[number]}</b>'


def _cells(answer: Answer, label: str | None) -> str:
    """The bar, the number and the call of a label."""
    if label is None:
        return '<td colspan="4"><small>not among its findings</small></td>'
    probability, threshold = answer.probabilities[label], answer.thresholds.get(label)
    positive = label in answer.positive
    tick = "" if threshold is None else f'<i style="left: {_along(threshold)}"></i>'
    limit, called = ("-", "-") if threshold is None else (f"{threshold:.3f}", "yes" if positive else "no")
    return (
        f'<td class="mxa-bar{" mxa-positive" if positive else ""}" aria-hidden="true"><div>'
        f'<span style="width: {_along(probability)}"></span>{tick}</div></td>'
        f'<td class="mxa-number">{probability:.3f}</td><td class="mxa-number"><small>{limit}</small></td>'
        f'<td class="mxa-number">{f"<b>{called}</b>" if positive else called}</td>'
    )


def _along(probability: float) -> str:
    """Where a probability is on the bar: on a square-root scale, since thresholds are often below 0.05."""
    return f"{100 * min(probability, 1) ** 0.5:.2f}%"


def _text(text: str) -> str:
    return escape(printable(text))
