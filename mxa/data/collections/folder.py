"""A folder with one folder of images for each finding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import InputError, name_some
from ..image_io import is_hidden, is_image, list_images
from ..records import SPLIT_NAMES, Records
from .findings import is_known
from .reader import CollectionReader

__all__ = ["Folder"]


class Folder(CollectionReader):
    """Images in ``FINDING/``, or in ``train/FINDING/``, ``val/FINDING/`` and ``test/FINDING/``.

    A folder may be named for several findings, ``Edema|Mass``. An image is positive for its folder's findings and
    negative for those of all other folders; ``NORMAL`` is No Finding. Patients are unknown: every image counts as a
    patient of its own. Folders in a folder of a finding do not matter; but where no image lies above them and they are
    named for findings, the folders around them would be splits of names that are not known, which is an error.
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
        if not splits:
            _check_depth(root, [path for path, _, _ in rows])
        stray = [f for f in sorted(root.iterdir()) if is_image(f) and not is_hidden(Path(f.name))]
        if stray:
            warnings.warn(
                f"{root}: {len(stray)} images in no folder are left out, such as {stray[0].name}", stacklevel=2
            )
        if not rows:
            raise InputError(
                f"{root} holds no image in a folder named for a finding, such as {root}/Edema/1.png; images "
                "without labels are --data images"
            )
        said = {Path(path).parts[1] for path, _, _ in rows} if splits else set()
        others = [f for f in root.iterdir() if f.is_dir() and f not in splits and any((f / n).is_dir() for n in said)]
        if others:
            names = name_some(sorted(f.name for f in others), 5)
            warnings.warn(f"{root}: {names} holds findings too, but is no known split, and is left out", stacklevel=2)
        labels = sorted({name for _, names, _ in rows for name in names})
        targets = np.array([[name in names for name in labels] for _, names, _ in rows], dtype=np.float32)
        paths = [path for path, _, _ in rows]
        return Records(tuple(labels), paths, targets, paths, splits=[split for _, _, split in rows], root=str(root))


def _check_depth(root: Path, paths: Sequence[str]) -> None:
    """Refuses folders of findings in folders that are not known as splits."""
    parts = [Path(path).parts for path in paths]
    if not parts or min(map(len, parts)) < 3:
        return
    inside: dict[str, set[str]] = {}
    for outer, inner, *_ in parts:
        inside.setdefault(outer, set()).add(inner)
    every = set.union(*inside.values())
    named = any(is_known(name) for inner in every for name in inner.split("|"))
    same = len(every) > 1 and (len(inside) == 1 or set.intersection(*inside.values()) == every)
    if named or same:
        raise InputError(
            f"{root}: the images lie in {name_some(sorted(every), 5)} within {name_some(sorted(inside), 5)}, which are "
            "not splits: rename them to train, val (or valid, validation, dev) and test (or holdout), or give one of "
            "them as --root"
        )
