"""glibc's allocator, set for programs that use large tensors again and again."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SETTINGS = {_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1}  # bytes


def keep_memory() -> bool:
    """Makes this process keep the memory of freed tensors, which glibc otherwise gives back to the system.

    A step frees its large tensors, and the next one asks for as many. By default the system then maps and clears every
    page of them again. What that costs is measured in docs/training.md. It holds for the process and for those that it
    forks; peak memory grows by a few percent.

    Returns:
        Whether it was set: on Linux with glibc, and where no ``MALLOC_...`` variable of the environment says otherwise.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # such as musl
        return False
    return all([mallopt(name, value) == 1 for name, value in _SETTINGS.items()])
