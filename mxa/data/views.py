"""What tables and DICOM files call a view."""

from __future__ import annotations

import re

__all__ = ["normal_view", "not_frontal"]

_NOT_FRONTAL = {  # in this order: "LEFT LATERAL DECUBITUS" is not a lateral view
    "decubitus": re.compile(r"\b[LR]LD\b|DECUB"),
    "lateral": re.compile(r"\b(LL|RL|[LR]?LAT)\b|LATERAL|SWIMMER|^L$"),
    "oblique": re.compile(r"\b([LR]AO|[LR]PO|[LR]LO)\b|OBL"),
}
_FRONTAL = {"AP": re.compile(r"\bAP\b|\bANTERO ?POST"), "PA": re.compile(r"\bPA\b|\bPOSTERO ?ANT")}
_UNKNOWN = ("", "UNK", "UNKNOWN", "NAN", "NONE", "NA", "N/A", "NULL", "FRONTAL")


def _words(text: str) -> str:
    return " ".join(text.upper().replace("_", " ").replace("-", " ").split())


def not_frontal(text: str) -> str | None:
    """Returns ``"decubitus"``, ``"lateral"`` or ``"oblique"`` if a view is one of them, else None.

    >>> [not_frontal(v) for v in ("AP LLD", "Left lateral", "RAO", "AP", "")]
    ['decubitus', 'lateral', 'oblique', None, None]
    """
    return next((kind for kind, pattern in _NOT_FRONTAL.items() if pattern.search(_words(text))), None)


def normal_view(text: str) -> str:
    """Returns ``"AP"``, ``"PA"``, ``"LATERAL"``, ``""`` (unknown) or ``"OTHER"`` for what a table calls a view.

    A frontal view that is not said to be AP or PA is unknown.

    >>> [normal_view(v) for v in ("AP_horizontal", "posteroanterior", "LL", "PA lateral", "AP LLD", "COSTAL", "UNK")]
    ['AP', 'PA', 'LATERAL', 'LATERAL', 'OTHER', 'OTHER', '']
    """
    words = _words(text)
    if words in _UNKNOWN:
        return ""
    if kind := not_frontal(words):
        return "LATERAL" if kind == "lateral" else "OTHER"
    return next((view for view, pattern in _FRONTAL.items() if pattern.search(words)), "OTHER")
