"""Images without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...utils.errors import InputError
from ..image_io import list_images
from ..records import Records
from .reader import CollectionReader

__all__ = ["Images"]


class Images(CollectionReader):
    """Every image below a folder. There are no labels, and every image counts as a patient of its own."""

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        if not Path(root).is_dir():
            raise InputError(f"{root} is a file: --root must name the folder of the images")
        paths = [str(path.relative_to(root)) for path in list_images(Path(root))]
        if not paths:
            raise InputError(f"{root} holds no image")
        targets = np.empty((len(paths), 0), dtype=np.float32)
        return Records((), paths, targets, paths, splits=["train"] * len(paths), root=str(root))
