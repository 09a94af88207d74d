"""A folder with one folder of images for each finding."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ...utils.errors import InputError
from ..image_io import is_hidden, is_image, list_images
from ..records import SPLIT_NAMES, Records
from .reader import CollectionReader

__all__ = ["Folder"]


class Folder(CollectionReader):
    """Images in ``FINDING/``, or in ``train/FINDING/``, ``val/FINDING/`` and ``test/FINDING/``.

    A folder may be named for several findings, ``Edema|Mass``. An image is positive for its folder's findings and
    negative for those of all other folders; ``NORMAL`` is No Finding. Patients are unknown: every image counts as a
    patient of its own.
    """

    def read(self, root: str | Path, split: str | None = None) -> Records:
        """See ``CollectionReader.read``."""
        root = Path(root)
        splits = {
            f: SPLIT_NAMES[f.name.lower()]
            for f in sorted(root.iterdir())
            if f.is_dir() and f.name.lower() in SPLIT_NAMES
        }
        rows = [
            (str(path.relative_to(root)), findings.name.split("|"), split)
            for folder, split in (splits or {root: "train"}).items()
            for findings in sorted(f for f in folder.iterdir() if f.is_dir() and not is_hidden(Path(f.name)))
            for path in list_images(findings)
        ]
        stray = [f for f in sorted(root.iterdir()) if is_image(f) and not is_hidden(Path(f.name))]
        if stray:
            warnings.warn(
                f"{root}: {len(stray)} images in no folder are left out, such as {stray[0].name}", stacklevel=2
            )
        if not rows:
            raise InputError(f"{root} holds no image in a folder named for a finding, such as {root}/Edema/1.png")
        labels = sorted({name for _, names, _ in rows for name in names})
        targets = np.array([[name in names for name in labels] for _, names, _ in rows], dtype=np.float32)
        paths = [path for path, _, _ in rows]
        return Records(tuple(labels), paths, targets, paths, splits=[split for _, _, split in rows], root=str(root))
