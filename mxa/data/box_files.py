"""Reads the files that boxes of findings come in: of NIH, VinDr-CXR, RSNA, ChestX-Det, MS-CXR, and a plain table."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..labels import canonical
from ..utils.errors import InputError, name_some
from ..utils.json_files import parse_json
from .tables import is_blank, numbers, read_header, read_table_file

__all__ = ["BoxTable", "match_boxes", "read_box_table"]

_TOLERANCE = 2  # pixels of the rounding in published tables, on a side of 1024
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoxTable:
    """Boxes as a file has them, one a row.

    Attributes:
        path: The file.
        images: Names of the images: files, paths, or names without a suffix.
        labels: Findings, in the file's own words.
        corners: ``(N, 4)`` xyxy, in pixels of an image of ``sizes``.
        sizes: ``(N, 2)`` width and height; 1 where the corners are fractions, NaN where the image itself says it.
    """

    path: Path
    images: list[str]
    labels: list[str]
    corners: np.ndarray
    sizes: np.ndarray


def read_box_table(path: str | Path) -> BoxTable:
    """Reads a file of boxes, whose kind is told by its columns or fields.

    - NIH's ``BBox_List_2017.csv`` and RSNA's ``stage_2_train_labels.csv`` count pixels of 1024 x 1024. RSNA's boxes are
      both Pneumonia and Lung Opacity, as in TorchXRayVision.
    - VinDr-CXR's ``annotations_train.csv`` counts pixels of the image. The boxes of all its readers are kept.
    - ChestX-Det's JSON counts pixels of 1024 x 1024. The box of a polygon is the box around it.
    - MS-CXR's CSV or JSON (COCO's format) gives the size of each image.
    - A table of one's own has the columns ``path``, ``label``, ``x1``, ``y1``, ``x2``, ``y2``. Where it has ``width``
      and ``height``, the corners are pixels of an image of that size. Else they are fractions if none is above 1, or
      pixels of the image itself; which, is logged.

    Raises:
        InputError: no such file, another kind of file, or a box that is none; the message gives the row.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file of boxes {path}")
    if path.suffix.lower() == ".json":
        return _checked(path, _from_json(path))
    held = set(read_header(path))
    for columns, read in _TABLES.items():
        if held.issuperset(columns):
            optional = [name for name in _OPTIONAL if name in held and name not in columns]
            return _checked(path, read(read_table_file(path, columns, optional=optional), path))
    raise InputError(
        f"{path} is no table of boxes that is known; it has the columns {name_some(sorted(held))}. One of your own has "
        "path, label, x1, y1, x2, y2, and may have width and height"
    )


#: What a reader gives: image, label, corners, size of the image in the corners' unit.
_Rows = tuple[Sequence[str], Sequence[str], np.ndarray, np.ndarray]
_OPTIONAL = ("width", "height")
_1024 = 1024


def _columns(table: pd.DataFrame, names: Iterable[str]) -> np.ndarray:
    return np.stack([numbers(table[name]) for name in names], axis=1)


def _from_sides(boxes: np.ndarray) -> np.ndarray:
    """Corners of ``x, y, width, height``."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _full(count: int, size: float) -> np.ndarray:
    return np.full((count, 2), float(size))


def _nih(table: pd.DataFrame, path: Path) -> _Rows:
    corners = _from_sides(_columns(table, ("Bbox [x", "y", "w", "h]")))
    return list(table["Image Index"]), list(table["Finding Label"]), corners, _full(len(table), _1024)


def _rsna(table: pd.DataFrame, path: Path) -> _Rows:
    table = table[~table["x"].map(_blank)]
    corners = _from_sides(_columns(table, ("x", "y", "width", "height")))
    labels = ["Pneumonia"] * len(table) + ["Lung Opacity"] * len(table)
    return [*table["patientId"]] * 2, labels, np.tile(corners, (2, 1)), _full(2 * len(table), _1024)


def _vindr(table: pd.DataFrame, path: Path) -> _Rows:
    table = table[~table["x_min"].map(_blank)]  # No finding
    corners = _columns(table, ("x_min", "y_min", "x_max", "y_max"))
    return list(table["image_id"]), list(table["class_name"]), corners, _sizes(table)


def _ms_cxr(table: pd.DataFrame, path: Path) -> _Rows:
    corners = _from_sides(_columns(table, ("x", "y", "w", "h")))
    sizes = _columns(table, ("image_width", "image_height"))
    return list(table["dicom_id"]), list(table["category_name"]), corners, sizes


def _own(table: pd.DataFrame, path: Path) -> _Rows:
    corners, sizes = _columns(table, ("x1", "y1", "x2", "y2")), _sizes(table)
    if np.isnan(sizes).all():
        fractions = np.nanmax(corners, initial=0) <= 1
        sizes = _full(len(table), 1) if fractions else sizes
        _logger.info("%s: its boxes are read as %s", path, "fractions" if fractions else "pixels of the images")
    return list(table["path"]), list(table["label"]), corners, sizes


def _sizes(table: pd.DataFrame) -> np.ndarray:
    if not set(_OPTIONAL) <= set(table.columns):
        return _full(len(table), np.nan)
    return _columns(table, _OPTIONAL)


def _blank(cell: Any) -> bool:
    return is_blank(str(cell))


#: By the columns that tell a table; the most telling first.
_TABLES: dict[tuple[str, ...], Callable[[pd.DataFrame, Path], _Rows]] = {
    ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"): _nih,
    ("patientId", "x", "y", "width", "height", "Target"): _rsna,
    ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max"): _vindr,
    ("dicom_id", "category_name", "x", "y", "w", "h", "image_width", "image_height"): _ms_cxr,
    ("path", "label", "x1", "y1", "x2", "y2"): _own,
}


def _from_json(path: Path) -> _Rows:
    try:
        content = parse_json(path.read_bytes(), path, (dict, list))
        rows = _coco(content) if isinstance(content, dict) else _chestx_det(content)
        images, labels, corners, sizes = zip(*rows, strict=True) if rows else ((), (), (), ())
        return images, labels, np.array(corners, float).reshape(-1, 4), np.array(sizes, float).reshape(-1, 2)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not a JSON of boxes: neither ChestX-Det's list of file_name, syms and boxes, nor COCO's images, "
            f"categories and annotations ({type(error).__name__}: {error})"
        ) from None


def _chestx_det(content: list[Any]) -> list[tuple]:
    rows = []
    for image in content:
        shapes = image["boxes"] if "boxes" in image else map(_around, image["polygons"])
        for label, box in zip(image["syms"], shapes, strict=True):
            rows.append((_text(image["file_name"]), _text(label), _four(box), (_1024, _1024)))
    return rows


def _around(polygon: Sequence[Sequence[float]]) -> list[float]:
    xs, ys = zip(*polygon, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def _coco(content: Mapping[str, Any]) -> list[tuple]:
    images = {image["id"]: image for image in content["images"]}
    names = {kind["id"]: kind["name"] for kind in content["categories"]}
    rows = []
    for found in content["annotations"]:
        image, (x, y, w, h) = images[found["image_id"]], _four(found["bbox"])
        size = (image["width"], image["height"])
        rows.append((_text(image["file_name"]), _text(names[found["category_id"]]), (x, y, x + w, y + h), size))
    return rows


def _four(box: Sequence[float]) -> tuple[float, float, float, float]:
    a, b, c, d = box
    return float(a), float(b), float(c), float(d)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _checked(path: Path, rows: _Rows) -> BoxTable:
    images, labels, corners, sizes = rows
    if not len(images):
        raise InputError(f"{path} holds no box")
    known = ~np.isnan(sizes).any(1)
    ordered = (corners[:, :2] < corners[:, 2:]).all(1) & np.isfinite(corners).all(1)  # NaN is in no order
    _refuse(path, ~ordered, images, "a box needs four numbers, x1 below x2 and y1 below y2")
    inside = _inside(corners, sizes) | ~known
    _refuse(path, ~inside, images, "a box lies outside its image, or is in pixels of another size than is said")
    return BoxTable(path, list(map(str, images)), list(map(str, labels)), corners, sizes)


def _inside(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    slack = _TOLERANCE / _1024 * sizes
    within = (corners[:, :2] > -slack) & (corners[:, 2:] < sizes + slack)  # they are rounded
    return (within & (corners[:, :2] < sizes) & (corners[:, 2:] > 0)).all(1)


def _refuse(path: Path, wrong: np.ndarray, images: Sequence[str], why: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        raise InputError(
            f"{path}: box {first + 1} of {len(wrong)} ({images[first]}), and {wrong.sum() - 1} more: {why}"
        )


def match_boxes(
    table: BoxTable,
    paths: Sequence[str],
    labels: Sequence[str],
    size_of: Callable[[int], tuple[int, int]],
) -> dict[int, dict[str, np.ndarray]]:
    """Finds the images and labels that boxes are of.

    An image is known by its path, its file name, or its file name without the suffix. Boxes of other images or labels
    are counted in the log.

    Args:
        table: The boxes.
        paths: Of the images.
        labels: Names of the labels.
        size_of: Width and height of an image, by its number; asked only where the table does not say it.

    Returns:
        By the number of the image, then by label: ``(K, 4)`` float32 xyxy in [0, 1].

    Raises:
        InputError: no box is left, a name is that of several images, or a box lies outside its image.
    """
    numbers_of: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        name = Path(path)
        for key in {str(path), name.name, name.stem}:
            numbers_of[key].append(i)
    names = {canonical(label): label for label in labels}
    strange_images, strange_labels = set(), set()
    found: dict[int, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for image, label, corners, size in zip(table.images, table.labels, table.corners, table.sizes, strict=True):
        places = numbers_of.get(image) or numbers_of.get(Path(image).name) or []
        if len(places) > 1:
            raise InputError(f"{table.path}: {image} is the name of {len(places)} images: give their paths")
        if canonical(label) not in names:
            strange_labels.add(label)
        elif not places:
            strange_images.add(image)
        else:
            box = _fractions(table.path, image, corners, size, places[0], size_of)
            found[places[0]][names[canonical(label)]].append(box)
    if strange_labels:
        _logger.warning("%s: boxes of labels that are not used: %s", table.path, name_some(sorted(strange_labels)))
    if strange_images:
        few = name_some(sorted(strange_images), 3)
        _logger.info("%s: boxes of %d images that are not among these: %s", table.path, len(strange_images), few)
    if not found:
        reason = "images" if strange_images else "labels"
        raise InputError(f"{table.path}: none of its boxes is of one of these {reason} ({name_some(list(labels))})")
    return {i: {k: np.float32(v) for k, v in boxes.items()} for i, boxes in found.items()}


def _fractions(
    path: Path,
    image: str,
    corners: np.ndarray,
    size: np.ndarray,
    number: int,
    size_of: Callable[[int], tuple[int, int]],
) -> np.ndarray:
    if np.isnan(size).any():
        size = np.array(size_of(number), float)
        if not _inside(corners[None], size[None])[0]:
            wide, high = map(int, size)
            raise InputError(
                f"{path}: a box of {image} lies outside its {wide} x {high} pixels: if it is in pixels of another size, "
                "add the columns width and height"
            )
    return np.clip(corners / np.tile(size, 2), 0, 1)
