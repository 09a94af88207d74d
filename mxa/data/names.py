"""Names on a command line: of collections, of their roots, of their own boxes. Nothing that takes long is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

__all__ = ["Collection", "OWN", "is_url"]

Collection = Literal[
    "phantom",
    "nih",
    "nih-google",
    "chexpert",
    "chexpert-chexbert",
    "chexpert-visualchexbert",
    "mimic",
    "mimic-negbio",
    "padchest",
    "vindr",
    "table",
    "folder",
    "images",
    "shards",
]

#: In place of a file of boxes: those that a collection has itself.
OWN = "own"


def is_url(root: str | Path) -> bool:
    """True for what webdataset opens and a disk does not: ``https://...``, ``gs://...``, ``hf://...``, ``pipe:...``."""
    return re.match(r"pipe:|[A-Za-z][A-Za-z0-9+.-]+://", str(root)) is not None
