"""Other libraries, without what they say while they work."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Ignores warnings inside the block, and what the named loggers say below an error."""
    muted = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in muted]
    try:
        for logger in muted:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(muted, levels, strict=True):
            logger.setLevel(level)
