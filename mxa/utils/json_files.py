"""JSON objects, read and written without NaN and infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError

__all__ = ["parse_json", "read_json", "to_json"]


def parse_json(text: str | bytes, where: str | Path, kinds: tuple[type, ...] = (dict,)) -> Any:
    """Reads a JSON object.

    Args:
        text: The object; bytes are UTF-8.
        where: What holds it, for the error.
        kinds: What it may be beside or instead of an object: ``(dict, list)``.

    Raises:
        InputError: it is not UTF-8, not JSON, nested too deeply, not an object, or a number in it is not finite.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8") from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, kinds):
        raise InputError(f"{where} must hold a JSON object, and holds a {type(value).__name__}")
    return value


def read_json(path: str | Path, kinds: tuple[type, ...] = (dict,)) -> Any:
    """Reads a file that holds a JSON object, or one of ``kinds``, as ``parse_json``.

    Raises:
        InputError: it does not read; as ``parse_json``.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} does not read: {error.strerror or error}") from None
    return parse_json(data, path, kinds)


def to_json(value: Any, indent: int | None = None) -> str:
    """Writes a value as JSON. What is not defined must be None.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, indent=indent, allow_nan=False)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _whole(text: str) -> int:
    return int(text) if len(text) <= 300 else _refuse(f"a number of {len(text)} digits")
