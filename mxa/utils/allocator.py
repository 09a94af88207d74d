"""glibc's allocator, set for programs that use large tensors again and again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["given_back", "keep_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SETTINGS = {_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1}  # bytes
_DEFAULTS = dict.fromkeys(_SETTINGS, 128 * 1024)


def keep_memory() -> bool:
    """Makes this process keep the memory of freed tensors, which glibc otherwise gives back to the system.

    A step frees its large tensors, and the next one asks for as many. By default the system then maps and clears every
    page of them again. What that costs is measured in docs/training.md. It holds for the process and for those that it
    forks; peak memory grows by a few percent.

    Returns:
        Whether it was set: on Linux with glibc, and where no ``MALLOC_...`` variable of the environment says otherwise.
    """
    return _set(_SETTINGS)


@contextmanager
def given_back() -> Iterator[None]:
    """Gives freed memory back to the system at once, so that a peak is that of what runs inside; then keeps it."""
    if _set(_DEFAULTS):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        yield
    finally:
        keep_memory()


def _set(settings: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # such as musl
        return False
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
