"""Turns the stored values of a DICOM radiograph into gray: modality, VOI, padding and polarity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["shown", "word"]

_BLOCK = 1 << 18  # pixels that are held in double precision at a time


def shown(path: str | Path, ds: Dataset, stored: np.ndarray, notes: list[str]) -> np.ndarray:
    """Applies modality, VOI and polarity to stored values, and adds what is worth a warning to ``notes``.

    Args:
        path: Names the file in errors.
        ds: Its tags.
        stored: Values ``(Rows, Columns)``.
        notes: Sentences to warn with.

    Returns:
        Gray, float32 ``(Rows, Columns)`` in [0, 255].

    Raises:
        InputError: values that are not finite, or a rescale that does not read.
    """
    modality = _modality(path, ds, stored.max(), notes)
    is_padding, inverted = _padding(ds, stored.dtype), _is_inverted(ds)
    low, high = np.inf, -np.inf
    for rows in _blocks(stored.shape):
        values = modality(stored[rows])
        if not np.isfinite(values).all():
            raise InputError(f"{path} has pixel values that are not finite (NaN or infinite)")
        inside = values[~is_padding(stored[rows])]
        if inside.size:
            low, high = min(low, inside.min()), max(high, inside.max())
    gray = np.zeros(stored.shape, np.float32)
    voi = _voi(ds, low, high, notes)
    for rows in _blocks(stored.shape) if voi else ():
        values = voi(modality(stored[rows])).clip(0, 1)
        if not np.isfinite(values).all():
            raise InputError(f"{path} has a contrast that is not finite: export it again")
        values = 1 - values if inverted else values
        gray[rows] = np.where(is_padding(stored[rows]), 0, values) * 255
    return gray


def _blocks(shape: tuple[int, int]) -> Iterator[slice]:
    step = max(1, _BLOCK // shape[1])
    return (slice(row, row + step) for row in range(0, shape[0], step))


def _is_inverted(ds: Dataset) -> bool:
    return ds.PhotometricInterpretation == "MONOCHROME1"


def _padding(ds: Dataset, kind: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    if (low := ds.get("PixelPaddingValue")) is None:
        return lambda stored: np.zeros(stored.shape, bool)
    limit = ds.get("PixelPaddingRangeLimit")
    low, high = np.sort(np.array([low, low if limit is None else limit]).astype(kind))
    return lambda stored: (stored >= low) & (stored <= high)


def _modality(path: str | Path, ds: Dataset, highest: int, notes: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from stored values, up to ``highest``, to modality values, float64."""
    if modality := ds.get("ModalityLUTSequence"):
        table, first = _table(ds, modality[0], highest, notes)
        return lambda stored: _look_up(table, first, stored).astype(np.float64)
    slope, intercept = _number(path, ds, "RescaleSlope", 1), _number(path, ds, "RescaleIntercept", 0)
    return lambda stored: stored.astype(np.float64) * slope + intercept


def _number(path: str | Path, ds: Dataset, keyword: str, default: float) -> float:
    with contextlib.suppress(Exception):  # text that is no number, which pydicom would quote
        value = ds.get(keyword)
        return default if value is None else float(value)
    raise InputError(f"{path} has a {keyword} that does not read as one number with a decimal point: export it again")


def _voi(ds: Dataset, low: float, high: float, notes: list[str]) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns the function from modality values to [0, 1], to be clipped; None for a constant image with no window."""
    if voi := ds.get("VOILUTSequence"):
        table, first = _table(ds, voi[0], high, notes)
        top = _top(table, voi[0].LUTDescriptor[2], notes)
        return lambda values: _look_up(table, first, values) / top
    if window := _window(ds, notes):
        return lambda values: _windowed(values, *window)
    return (lambda values: (values - low) / (high - low)) if low < high else None


def _table(ds: Dataset, item: Dataset, highest: float, notes: list[str]) -> tuple[np.ndarray, float]:
    """Returns a LUT and the value of its first entry. pydicom's own wraps if a table is longer than its bits.

    A negative first value may be declared as unsigned. One that lies above the ``highest`` of all values is taken so.
    """
    entries, first, bits = item.LUTDescriptor
    entries = int(entries) % 65536 or 65536
    first = first - 65536 if first >= 32768 and first > highest else first
    data = item.LUTData
    if isinstance(data, bytes):
        packed = len(data) < 2 * entries and (bits <= 8 or _is_bytes(data, entries))
        kind = "u1" if packed else "<u2" if ds.original_encoding[1] else ">u2"
        data = np.frombuffer(data, kind, len(data) // np.dtype(kind).itemsize)
    table = np.ravel(data)[:entries]
    if len(table) < entries:
        notes.append(f"a LUT declares {entries} entries and has {len(table)}: the contrast may be wrong")
    return table, first


def _is_bytes(data: bytes, entries: int) -> bool:
    """True for a curve of one byte an entry; the bytes of words go up and down."""
    return 0 <= len(data) - entries <= 1 and np.abs(np.diff(np.frombuffer(data, "u1").astype(int))).sum() < 1024


def _look_up(table: np.ndarray, first: float, values: np.ndarray) -> np.ndarray:
    return table[np.rint(values - float(first)).clip(0, len(table) - 1).astype(np.intp)]


def _top(table: np.ndarray, declared: int, notes: list[str]) -> int:
    """The value of a VOI LUT that is white: the highest of the bits that its entries need, whatever it declares."""
    highest = max(int(table.max()), 1)
    top = 2 ** highest.bit_length() - 1
    if highest.bit_length() != declared and highest < 0.9 * top:
        notes.append(
            f"its VOI LUT declares {declared} bits and goes up to {highest}: taken as {highest.bit_length()} bits, the "
            "contrast may be wrong"
        )
    return top


def _window(ds: Dataset, notes: list[str]) -> tuple[str, float, float] | None:
    """Returns function, centre and width of the first window; None if there is none that can be applied."""
    try:
        center, width = (np.ravel(np.asarray(ds.get(tag), float))[0] for tag in ("WindowCenter", "WindowWidth"))
    except Exception:  # text that is no number, which pydicom would quote
        notes.append("its window does not read and is ignored")
        return None
    return (word(ds, "VOILUTFunction"), center, width) if np.isfinite([center, width]).all() and width > 0 else None


def _windowed(values: np.ndarray, function: str, center: float, width: float) -> np.ndarray:
    """Applies a window as PS3.3 C.11.2.1.2 and C.11.2.1.3 define it, to the range 0 to 1, not clipped yet."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function != "LINEAR_EXACT" and width >= 1:  # LINEAR, the default, is not defined for less
        center, width = center - 0.5, max(width - 1, 1e-6)
    return (values - center) / width + 0.5


def word(ds: Dataset, keyword: str) -> str:
    """Returns a tag's first text, in upper case and cut to 32 characters; ``""`` where it is missing."""
    value = ds.get(keyword) or ""
    value = value if isinstance(value, str) else str(next(iter(value), ""))
    return "".join(c for c in value.strip().upper() if c.isprintable())[:32]
