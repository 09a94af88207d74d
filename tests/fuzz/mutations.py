"""Seeded damage to a file: bytes of any file, values of JSON and YAML."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

__all__ = ["hostile_values", "mutate"]

#: What a parser may stumble over, in the place of a token.
TOKENS = (
    *(b"", b"0", b"-1", b"1e999", b"-1e308", b"NaN", b"Infinity", b"null", b"99999999999999999999", b"0x41", b"1_000"),
    *(b"[]", b"{}", b'""', b'"', b"'", b",", b",,", b";", b"\t", b"\n", b"\r\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"\x1b[31m", b"[bold]", b"%s%n", b"../../x", b"pipe:touch CODE_RAN", b"$(touch CODE_RAN)", b"&a [*a]", b"\xe9"),
    *(b"!!python/object/apply:os.system [touch CODE_RAN]", b"cos\nsystem\n(S'touch CODE_RAN'\ntR.", b"A" * 70_000),
)

VALUES = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        10**30,
        0.5,
        -0.2,
        "",
        "0.2",
        "x",
        "NaN",
    ),
    *("\x1b[31m", "../../x", "pipe:touch CODE_RAN", "a" * 5000, [], {}, [[]], [None], [1, 2, 3], {"a": 1}, [0.5] * 3),
)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damages bytes in one to three ways."""
    for _ in range(rng.integers(1, 4)):
        data = _WAYS[rng.integers(len(_WAYS))](data, rng)
    return data


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(0, len(data), min(8, len(data))) if data else ():
        changed[at] ^= 1 << rng.integers(8)
    return bytes(changed)


def _block(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """A random stretch; half of them lie in the first kilobyte, where headers are."""
    start = int(rng.integers(0, max(1, min(1024, len(data)) if rng.random() < 0.5 else len(data))))
    return start, start + int(2 ** rng.uniform(0, 13))


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + bytes(len(data[start:end])) + data[end:]


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(data, rng)
    return data[:end] + data[start:]


def _noise(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + rng.bytes(len(data[start:end])) + data[end:]


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _block(data, rng)[0]]


def _token(data: bytes, rng: np.random.Generator) -> bytes:
    start = _block(data, rng)[0]
    return data[:start] + TOKENS[rng.integers(len(TOKENS))] + data[start + int(rng.integers(0, 9)) :]


def _extreme(data: bytes, rng: np.random.Generator) -> bytes:
    """Writes a number that is small, large or negative over two, four or eight bytes, as a header's field may be."""
    start, width = _block(data, rng)[0], int(rng.choice((2, 4, 8)))
    number = int(rng.choice((0, 1, 255, 2**15, 2**16 - 1))) if width == 2 else int(rng.choice((0, 1, 2**31 - 1, 2**31)))
    return data[:start] + number.to_bytes(width, str(rng.choice(("little", "big")))) + data[start + width :]


_WAYS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    *(_flip, _zero, _cut, _repeat, _noise, _truncate, _token, _extreme),
)


def hostile_values(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes, drops or adds values of a JSON or YAML mapping; half of the time it damages its bytes instead."""
    if rng.random() < 0.4:
        return mutate(data, rng)
    is_json = data.lstrip().startswith((b"{", b"["))
    content = json.loads(data) if is_json else yaml.safe_load(data)
    for _ in range(rng.integers(1, 4)):
        holder, key = _place(content, rng)
        if holder is None:
            content = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
            break
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return json.dumps(content).encode() if is_json else yaml.safe_dump(content).encode()


def _place(content: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """A random place below a mapping: what holds it, and its key; None with a small chance, for the whole."""
    holder, key, value = None, None, content
    while isinstance(value, (dict, list)) and value and (holder is None or rng.random() < 0.7):
        holder = value
        key = list(value)[rng.integers(len(value))] if isinstance(value, dict) else int(rng.integers(len(value)))
        value = value[key]
    return (None, None) if rng.random() < 0.05 else (holder, key)
