"""Values of YAML as the fields of a configuration want them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import yaml

from .errors import InputError

__all__ = ["field_value", "read_named", "read_yaml", "unknown_field"]

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def read_yaml(text: str) -> Any:
    """Reads YAML; numbers such as 1e-3, which YAML 1.1 takes for text, are numbers.

    Raises:
        yaml.YAMLError: it is none.
    """
    return _numbers(yaml.safe_load(text))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def read_named(value: str | Mapping[str, Any], what: str) -> tuple[str, Mapping[str, Any] | None]:
    """Reads ``NAME``, or ``NAME: {field: value}`` as YAML or as a dict.

    Args:
        value: The text or dict.
        what: What it names, for the error.

    Returns:
        The name, and the fields if there are some.

    Raises:
        InputError: it is neither.
    """
    try:
        content = read_yaml(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        content = None
    content = {content: None} if isinstance(content, str) else content
    if isinstance(content, Mapping) and len(content) == 1:
        ((name, changed),) = content.items()
        if isinstance(changed, (Mapping, NoneType)):
            return str(name), changed
    raise InputError(f"{what} {value!r} must be NAME or NAME: {{field: value}}")


def field_value(where: str, name: str, value: Any, hint: Any) -> Any:
    """Turns what YAML has into what a field wants: paths, tuples, numbers (YAML reads 1e-3 as text), text of a dict.

    Args:
        where: What holds the value, for the error.
        name: The field.
        value: What YAML gave.
        hint: The field's type.

    Raises:
        InputError: the value is of another kind.
    """
    try:
        changed = value if isinstance(value, (bool, float)) else _coerce(value, hint)
    except (TypeError, ValueError):
        changed = value
    if not _fits(hint, changed):
        raise InputError(f"{where}: {name} must be {_wanted(hint)}, got {value!r}")
    return changed


def _wanted(hint: Any) -> str:
    """A field's type in words."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, options))}"
    if get_origin(hint) is tuple:
        return "a list" if options[-1] is Ellipsis else f"a list of {len(options)}"
    if options:
        return " or ".join(map(_wanted, options))
    return _WORDS.get(hint, "null")


def unknown_field(name: Any, known: Iterable[str]) -> str:
    """Says that there is no such field, and which is like it."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"no field {name}" + (f" (perhaps {close[0]})" if close else "")


def _coerce(value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if value is None:
        return None
    if isinstance(value, dict) and str in kinds:
        return _text(value)
    if isinstance(value, list):
        if str in kinds:
            return ",".join(map(str, value))
        return tuple(_text(v) if isinstance(v, dict) else v for v in value)
    kind = next((k for k in (int, float, Path) if k in kinds), None)
    return kind(value) if kind else value


def _text(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # YAML too


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a field's type: a Literal, a tuple, text, a number, a bool, or None."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if inner[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(inner[0], v) for v in value)
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, inner, value))
    if options := get_args(hint):
        return any(_fits(option, value) for option in options)
    if hint is NoneType or hint is None:
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
