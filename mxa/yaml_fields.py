"""Values of YAML as the fields of a configuration want them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import InputError

__all__ = ["coerce"]


def coerce(where: str, name: str, value: Any, kind: str) -> Any:
    """Turns what YAML has into what a field wants: paths, tuples, numbers (YAML reads 1e-3 as text), text of a dict.

    Args:
        where: What holds the value, for the error.
        name: The field.
        value: What YAML gave.
        kind: The field's annotation, as text.

    Raises:
        InputError: a number is wanted and none is given.
    """
    if value is None:
        return None
    if isinstance(value, dict) and kind.startswith("str"):
        return json.dumps(value)  # YAML too
    if isinstance(value, list):
        if kind.startswith("str"):
            return ",".join(map(str, value))
        return tuple(json.dumps(v) if isinstance(v, dict) else v for v in value)
    number = {"int": int, "float": float}.get(kind.partition(" ")[0])
    try:
        return number(value) if number else Path(value) if "Path" in kind else value
    except (TypeError, ValueError):
        raise InputError(f"{where}: {name} must be a number, got {value!r}") from None
