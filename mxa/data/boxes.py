"""Images with boxes around their findings, of the collections that have boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils.errors import InputError
from .collections.nih import read_boxes
from .collections.phantom import draw
from .create import create_dataset
from .records import Records

__all__ = ["BoxedImage", "read_boxed"]


@dataclass(frozen=True)
class BoxedImage:
    """One image with the boxes of its findings.

    Attributes:
        index: Row in the records.
        name: File name.
        patient: Patient identifier.
        boxes: Finding to ``(K, 4)`` xyxy in [0, 1], K at least 1.
    """

    index: int
    name: str
    patient: str
    boxes: dict[str, np.ndarray]


def read_boxed(collection: str, root: str | Path | None, split: str | None = None) -> tuple[Records, list[BoxedImage]]:
    """Reads the images that have boxes.

    Args:
        collection: ``"nih"``, whose folder then holds ``BBox_List_2017.csv``, or ``"phantom"``.
        root: The collection's folder.
        split: As in ``create_dataset``.

    Returns:
        The records of the split (every view), and its images that have boxes, in the records' order.

    Raises:
        InputError: as ``create_dataset`` and ``read_boxes``, a collection without boxes, or a split without a box.
    """
    if collection not in ("nih", "phantom"):
        raise InputError(f"{collection!r} has no boxes: give nih or phantom")
    records = create_dataset(collection, root, split, views="all").records
    names = [Path(path).name for path in records.paths]
    if collection == "phantom":
        boxes = {name: draw(int(name.rpartition("-")[2]), 32).boxes for name in names}  # the same for every size
    else:
        boxes = read_boxes(Path(root))
    rows = zip(names, records.patients, strict=True)
    images = [
        BoxedImage(i, name, str(patient), boxes[name]) for i, (name, patient) in enumerate(rows) if boxes.get(name)
    ]
    if not images:
        raise InputError(f"{collection} {root or ''}: no image of split {records.split} has a box")
    return records, images
