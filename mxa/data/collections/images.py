"""Images without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...labels import align
from ...metrics.operating import sigmoid
from ...utils.errors import InputError
from ..image_io import list_images
from ..records import Records
from ..table_files import read_metadata
from ..tables import numbers, read_table_file
from .image_paths import plain_path
from .reader import CollectionReader

__all__ = ["Images", "read_teacher"]


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


def read_teacher(path: Path, records: Records) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Reads what a file of ``mxa teach`` says of images.

    Returns:
        The labels; the teacher's probabilities ``(N, L)``, NaN for an image that it could not read; and the probability
        ``(L,)`` above which it calls a label, 0.5 where the file has none.

    Raises:
        InputError: no such file, or it has no logits of one of the images.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}; mxa teach writes it")
    table = read_table_file(path, ())
    columns = {name.partition(":")[2]: name for name in table if name.startswith("logit:")}
    if "image" not in table or not columns:
        raise InputError(f"{path} has no logits of images: give a file of mxa teach")
    rows = {plain_path(str(name)): i for i, name in enumerate(table["image"])}
    found = [rows.get(plain_path(name)) for name in records.paths]
    if missing := [name for name, row in zip(records.paths, found, strict=True) if row is None]:
        raise InputError(
            f"{path} has no logits of {len(missing)} of {len(found)} images, such as {missing[0]}: run mxa teach again"
        )
    logits = np.stack([numbers(table[name])[found] for name in columns.values()], axis=1)
    points = read_metadata(path).get("thresholds", {})
    places = align(tuple(points), tuple(columns))
    return tuple(columns), sigmoid(logits), np.array([0.5 if i is None else list(points.values())[i] for i in places])
