"""Reads the files that boxes of findings come in: of NIH, VinDr-CXR, RSNA, ChestX-Det, MS-CXR, and a plain table."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..labels import canonical
from ..utils.errors import InputError, name_some
from ..utils.json_files import read_json
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
    - VinDr-CXR's ``annotations_train.csv``, or ``train.csv`` of Kaggle, counts pixels of the image. The boxes of all
      its readers are kept.
    - ChestX-Det's JSON counts pixels of 1024 x 1024. Where it has polygons without boxes, a box is the one around it.
    - MS-CXR's CSV or JSON (COCO's format) gives the size of each image.
    - A table of one's own has the columns ``path``, ``label``, ``x1``, ``y1``, ``x2``, ``y2``. Where it has ``width``
      and ``height``, the corners are pixels of an image of that size. Else they are fractions if none is above 1, or
      pixels of the image itself; which, is logged.

    RSNA and VinDr-CXR have rows without a box, of images without a finding. They are passed over.

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
    sides = ("x", "y", "width", "height")
    table = _with_a_box(table, sides)
    corners = _from_sides(_columns(table, sides))
    labels = ["Pneumonia"] * len(table) + ["Lung Opacity"] * len(table)
    return [*table["patientId"]] * 2, labels, np.tile(corners, (2, 1)), _full(2 * len(table), _1024)


def _vindr(table: pd.DataFrame, path: Path) -> _Rows:
    sides = ("x_min", "y_min", "x_max", "y_max")
    table = _with_a_box(table, sides)
    return list(table["image_id"]), list(table["class_name"]), _columns(table, sides), _sizes(table)


def _ms_cxr(table: pd.DataFrame, path: Path) -> _Rows:
    corners = _from_sides(_columns(table, ("x", "y", "w", "h")))
    sizes = _columns(table, ("image_width", "image_height"))
    return list(table["dicom_id"]), list(table["category_name"]), corners, sizes


def _own(table: pd.DataFrame, path: Path) -> _Rows:
    corners, sizes = _columns(table, ("x1", "y1", "x2", "y2")), _sizes(table)
    if np.isnan(sizes).all():
        fractions = np.nanmax(corners, initial=0) <= 1 + _TOLERANCE / _1024
        sizes = _full(len(table), 1) if fractions else sizes
        _logger.info("%s: its boxes are read as %s", path, "fractions" if fractions else "pixels of the images")
    return list(table["path"]), list(table["label"]), corners, sizes


def _sizes(table: pd.DataFrame) -> np.ndarray:
    if not set(_OPTIONAL) <= set(table.columns):
        return _full(len(table), np.nan)
    return _columns(table, _OPTIONAL)


def _with_a_box(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Leaves out the rows of which every cell of the box is blank."""
    blank = [table[name].map(lambda cell: is_blank(str(cell))) for name in columns]
    return table[~np.logical_and.reduce(blank)]


#: By the columns that tell a table; the most telling first.
_TABLES: dict[tuple[str, ...], Callable[[pd.DataFrame, Path], _Rows]] = {
    ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"): _nih,
    ("patientId", "x", "y", "width", "height", "Target"): _rsna,
    ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max"): _vindr,
    ("dicom_id", "category_name", "x", "y", "w", "h", "image_width", "image_height"): _ms_cxr,
    ("path", "label", "x1", "y1", "x2", "y2"): _own,
}


def _from_json(path: Path) -> _Rows:
    content = read_json(path, (dict, list))
    try:
        rows = _coco(content) if isinstance(content, dict) else _chestx_det(content)
        images, labels, corners, sizes = zip(*rows, strict=True) if rows else ((), (), (), ())
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a JSON of boxes: neither ChestX-Det's list of file_name, syms and boxes, nor COCO's "
            f"images, categories and annotations ({type(error).__name__}: {error})"
        ) from None
    return images, labels, np.reshape(corners, (-1, 4)), np.reshape(sizes, (-1, 2))


def _chestx_det(content: list[Any]) -> list[tuple]:
    rows = []
    for image in content:
        shapes = image.get("boxes") or list(map(_around, image.get("polygons", ())))
        for label, box in zip(image["syms"], shapes, strict=True):
            rows.append((_text(image["file_name"]), _text(label), _numbers(box, 4), (_1024, _1024)))
    return rows


def _around(polygon: Sequence[Sequence[float]]) -> list[float]:
    xs, ys = zip(*polygon, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def _coco(content: Mapping[str, Any]) -> list[tuple]:
    images = {image["id"]: image for image in content["images"]}
    names = {kind["id"]: kind["name"] for kind in content["categories"]}
    rows = []
    for found in content["annotations"]:
        image, (x, y, w, h) = images[found["image_id"]], _numbers(found["bbox"], 4)
        size = _numbers((image["width"], image["height"]), 2)
        rows.append((_text(image["file_name"]), _text(names[found["category_id"]]), (x, y, x + w, y + h), size))
    return rows


def _numbers(values: Sequence[float], count: int) -> tuple[float, ...]:
    if not all(isinstance(value, (int, float)) for value in values) or len(values) != count:
        raise TypeError(f"{count} numbers are needed")
    return tuple(map(float, values))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is not text")
    return value


def _checked(path: Path, rows: _Rows) -> BoxTable:
    images, labels, corners, sizes = rows
    if not len(images):
        raise InputError(f"{path} holds no box")
    _refuse(path, np.array([not str(name) for name in images]), images, "it names no image")
    ordered = (corners[:, :2] < corners[:, 2:]).all(1) & np.isfinite(corners).all(1)  # NaN is in no order
    _refuse(path, ~ordered, images, "a box needs four numbers, x1 below x2 and y1 below y2")
    if not np.isnan(sizes).all():
        sized = (np.isfinite(sizes) & (sizes >= 1)).all(1)
        _refuse(path, ~sized, images, "the width and height of its image are not two numbers of pixels")
        within = _inside(corners, sizes)
        _refuse(path, ~within, images, "a box lies outside its image, or is in pixels of another size than is said")
    dot = (corners[:, 2:] <= 1).all(1) & ~(sizes == 1).all(1)
    _refuse(path, dot, images, "a box lies within one pixel: is it in fractions, where others are in pixels?")
    return BoxTable(path, list(map(str, images)), list(map(str, labels)), corners, sizes)


def _inside(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    slack = _TOLERANCE / _1024 * sizes
    within = (corners[:, :2] > -slack) & (corners[:, 2:] < sizes + slack)  # they are rounded
    return (within & (corners[:, :2] < sizes) & (corners[:, 2:] > 0)).all(1)


def _refuse(path: Path, wrong: np.ndarray, images: Sequence[str], why: str) -> None:
    if wrong.any():
        more = f", and of {wrong.sum() - 1} more boxes" if wrong.sum() > 1 else ""
        raise InputError(f"{path}: box {wrong.argmax() + 1} of {len(wrong)} ({images[wrong.argmax()]}){more}: {why}")


def match_boxes(
    table: BoxTable,
    paths: Sequence[str],
    labels: Sequence[str],
    size_of: Callable[[int], tuple[int, int]],
) -> dict[int, dict[str, np.ndarray]]:
    """Finds the images and labels that boxes are of.

    An image is known by its path, or by the end of it, from the file name on; the suffix may be missing. The table's
    path may be the longer one. Boxes of other images or labels are counted in the log.

    Args:
        table: The boxes.
        paths: Of the images.
        labels: Names of the labels.
        size_of: Width and height of an image, by its number; asked only where the table does not say it.

    Returns:
        By the number of the image, then by label: ``(K, 4)`` float32 xyxy in [0, 1]; only of images with a box.

    Raises:
        InputError: no box is of one of the labels, a name is that of several images, or a box lies outside its image.
    """
    size_of = functools.cache(size_of)
    names = {canonical(label): label for label in labels}
    places = _places({_slashes(image) for image in table.images}, paths)
    strange_images, strange_labels = Counter(), Counter()
    found: dict[int, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for image, label, corners, size in zip(table.images, table.labels, table.corners, table.sizes, strict=True):
        which = places.get(_slashes(image), ())
        if canonical(label) not in names:
            strange_labels[label] += 1
        elif not which:
            strange_images[image] += 1
        elif len(which) > 1:
            raise InputError(f"{table.path}: {image} is the name of {len(which)} images: give their paths")
        else:
            (number,) = which
            box = _fractions(table.path, image, corners, size, number, size_of)
            found[number][names[canonical(label)]].append(box)
    told = name_some([f"{label} ({count})" for label, count in sorted(strange_labels.items())])
    if sum(strange_labels.values()) == len(table.images):
        raise InputError(f"{table.path}: no box is of one of the labels {name_some(list(labels))}: there are {told}")
    if told:
        _logger.warning("%s: boxes of labels that are not used: %s", table.path, told)
    if strange_images:
        count, few = sum(strange_images.values()), name_some(sorted(strange_images), 3)
        _logger.info("%s: %d boxes are of %d other images: %s", table.path, count, len(strange_images), few)
    return {i: {k: np.float32(v) for k, v in boxes.items()} for i, boxes in found.items()}


def _places(names: set[str], paths: Sequence[str]) -> dict[str, set[int]]:
    """Finds the images that each name may mean: of path and name, one is the end of the other, by whole folders."""
    longer = defaultdict(list)
    for name in names:
        for end in _ends(name):
            longer[end].append(name)
    places, exact = defaultdict(set), {}
    for i, path in enumerate(paths):
        for text in {path, os.path.splitext(path)[0]}:
            if text.rpartition("/")[2] in longer:
                for name in (*longer.get(text, ()), *names.intersection(_ends(text))):
                    places[name].add(i)
        if path in names:
            exact[path] = {i}
    return {**places, **exact}


def _ends(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


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
                f"{path}: a box of {image} lies outside its {wide} x {high} pixels: if it is in pixels of another "
                "size, add the columns width and height"
            )
    box = np.clip(corners / np.tile(size, 2), 0, 1).astype(np.float32)
    if not (box[:2] < box[2:]).all():
        raise InputError(f"{path}: a box of {image} is too small to be one")
    return box
