"""Images with boxes around their findings: which they are, and as a dataset to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from ..labels import align
from ..utils.errors import InputError
from .box_files import match_boxes, read_box_table
from .collections.nih import boxes_file
from .collections.phantom import draw
from .create import create_dataset
from .dataset import CXRDataset, seeded
from .names import OWN
from .records import Records

__all__ = ["BoxedDataset", "BoxedImage", "boxed_images", "read_boxed"]


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


def read_boxed(
    collection: str, root: str | Path | None, split: str | None = None, boxes: str | Path = OWN
) -> tuple[Records, list[BoxedImage]]:
    """Reads the images that have boxes.

    Args:
        collection: A name of ``COLLECTIONS``.
        root: The collection's folder.
        split: As in ``create_dataset``.
        boxes: A file (see ``read_box_table``), or ``"own"``: the collection's, which are ``BBox_List_2017.csv`` in the
            folder of ``"nih"``, or those that ``"phantom"`` is drawn with.

    Returns:
        The records of the split (every view), and its images that have boxes, in the records' order.

    Raises:
        InputError: as ``create_dataset``, ``read_box_table`` and ``match_boxes``; a collection without boxes of its
            own, shards, or a split without a box.
    """
    records = create_dataset(collection, root, split, views="all").records
    return records, boxed_images(records, collection, root, boxes)


def boxed_images(
    records: Records, collection: str, root: str | Path | None, boxes: str | Path = OWN
) -> list[BoxedImage]:
    """Finds the images of records that have boxes, as ``read_boxed`` does."""
    if boxes == OWN and collection not in ("nih", "phantom", "shards"):
        raise InputError(f"{collection!r} has no boxes of its own: give --boxes FILE")
    if collection == "shards":
        raise InputError("shards do not hold the images' names, which boxes need: give the collection that they are of")
    if boxes == OWN and collection == "phantom":
        numbers = [int(str(path).rpartition("-")[2]) for path in records.paths]
        found = {i: draw(number, 32).boxes for i, number in enumerate(numbers)}  # the same for every size
    else:
        table = read_box_table(boxes_file(root) if boxes == OWN else boxes)
        found = match_boxes(table, records.paths.tolist(), records.labels, lambda i: records.image(i).size)
    images = [
        BoxedImage(i, Path(records.paths[i]).name, str(records.patients[i]), found[i])
        for i in range(len(records))
        if found.get(i)
    ]
    if not images:
        raise InputError(f"{collection} {root or ''}: no image of split {records.split} has a box")
    return images


class BoxedDataset(CXRDataset):
    """Samples ``(image, boxes)``: the transform's output, and float32 ``(K, 5)``.

    A row of the boxes is ``x1, y1, x2, y2`` in [0, 1] of the transformed image, and the number of the label. K is the
    most that an image has; what is left over has the label -1. The boxes move with the picture. One of which a
    crop keeps less than a quarter is left out.

    Args:
        records: The rows.
        images: Those with boxes, from ``read_boxed``: each is a sample.
        labels: Names that number the labels. Boxes of other findings are left out.
        reduce: Reduce images to this side in pixels first; never enlarges.
        **kwargs: As for ``CXRDataset``.

    Attributes:
        findings: The findings that are kept.
        boxes: Of each sample, ``(K, 5)``, in [0, 1] of the image as it is read.

    Raises:
        InputError: no box is of one of the labels.
    """

    def __init__(
        self,
        records: Records,
        images: Sequence[BoxedImage],
        labels: Sequence[str],
        reduce: int | None = None,
        **kwargs,
    ):
        findings = sorted({name for image in images for name in image.boxes})
        number = {f: i for f, i in zip(findings, align(labels, findings), strict=True) if i is not None}
        kept = [image for image in images if number.keys() & image.boxes]
        if not kept:
            raise InputError(f"no box is of one of the labels {', '.join(labels)}: there are {', '.join(findings)}")
        super().__init__(records.subset(np.array([image.index for image in kept])), **kwargs)
        self.findings, self.reduce = tuple(number), reduce
        self.boxes = [
            np.concatenate([np.c_[b, np.full(len(b), number[f])] for f, b in image.boxes.items() if f in number])
            for image in kept
        ]
        self.most = max(map(len, self.boxes))

    def _sample(self, index: int, image: Image.Image | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms an image and its boxes; None stands for an image that does not read."""
        if image is None:
            return super()._sample(index, None)[0], torch.full((self.most, 5), -1.0)
        with seeded(self.seed, int(self._epoch), index):
            return transform_boxed(self.transform, reduced(image, self.reduce), self.boxes[index], self.most)


def transform_boxed(
    transform: Callable | None, image: Image.Image, boxes: np.ndarray, most: int
) -> tuple[torch.Tensor | Image.Image, torch.Tensor]:
    """Transforms an image, and its boxes with it.

    Args:
        transform: From ``create_transform``; None leaves the image as it is.
        image: The image.
        boxes: ``(K, 5)``: corners in [0, 1] of the image, and the number of the label.
        most: Rows of the result.

    Returns:
        The transform's output, and ``(most, 5)`` float32: the boxes in [0, 1] of that; rows without one have label -1.
    """
    found = torch.from_numpy(boxes).float()
    size = torch.tensor([image.width, image.height] * 2)
    moved = tv_tensors.BoundingBoxes(found[:, :4] * size, format="XYXY", canvas_size=(image.height, image.width))
    if transform is not None:
        image, moved = transform(image, moved)
    high, wide = moved.canvas_size
    corners = moved.as_subclass(torch.Tensor) / torch.tensor([wide, high] * 2)
    seen = (corners[:, :2] < corners[:, 2:]).all(1)
    rows = torch.full((most, 5), -1.0)
    rows[: seen.sum()] = torch.cat([corners, found[:, 4:]], dim=1)[seen]
    return image, rows


def reduced(image: Image.Image, side: int | None) -> Image.Image:
    """An image of at most ``side`` pixels a side, its aspect ratio kept."""
    if side is not None:
        image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=None)
    return image
