"""Does a map or a box find the finding? Scores against drawn boxes, and baselines that need no model.

A case is one finding of one image, with K >= 1 boxes; inside means inside their union. Boxes are xyxy in [0, 1] of the
image, x to the right and y down, their edges included. Cell (i, j) of a map ``(H, W)`` covers x from j / W to
(j + 1) / W and y from i / H to (i + 1) / H; it is inside a box where its centre, ((j + 0.5) / W, (i + 0.5) / H), is.

Sources: the pointing game of Zhang et al. (ECCV 2016), the energy inside of Wang et al. (Score-CAM, 2020), and the
threshold and overlap of Wang et al. (ChestX-ray8, CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..utils.errors import InputError

__all__ = [
    "CENTRE",
    "Scores",
    "box_from_map",
    "commonest_point",
    "covered_area",
    "energy_inside",
    "iou",
    "mean_box",
    "pointing",
    "score_box",
    "score_map",
    "score_point",
]

#: The centre of the image, x and y: the baseline that needs no boxes either.
CENTRE = (0.5, 0.5)


class Scores(NamedTuple):
    """Scores of one case, each in [0, 1]; NaN where the thing scored has none."""

    pointing: float
    energy: float
    iou: float


def pointing(heat_map: np.ndarray, boxes: np.ndarray) -> float:
    """Says whether the peak of a map is inside a box: whether the centre of its cell is.

    Where several cells share the maximum, the score is the share of them that are inside. The score of a constant map
    is therefore the share of the image that the boxes cover.

    Args:
        heat_map: ``(H, W)``.
        boxes: ``(K, 4)``, ``x1, y1, x2, y2`` in [0, 1] of the image.

    Returns:
        1 or 0, or a share between.

    Raises:
        InputError: no map, a value that is not finite, or no boxes.

    >>> pointing(np.array([[0, 2], [1, 2]]), np.array([[0.5, 0, 1, 0.5]]))
    0.5
    """
    heat_map = _checked(heat_map)
    return float(_inside(boxes, heat_map.shape)[heat_map == heat_map.max()].mean())


def energy_inside(heat_map: np.ndarray, boxes: np.ndarray) -> float:
    """Computes the share of a map's positive mass that is inside the boxes; 0 where nothing is positive.

    Args:
        heat_map: ``(H, W)``; negative values count as 0.
        boxes: ``(K, 4)``, as for ``pointing``.

    Raises:
        InputError: as ``pointing``.

    >>> energy_inside(np.array([[3, -9], [1, 0]]), np.array([[0, 0, 1, 0.5]]))
    0.75
    """
    mass = np.maximum(_checked(heat_map), 0)
    inside = _inside(boxes, mass.shape)
    largest = mass.max()
    return float((mass[inside] / largest).sum() / (mass / largest).sum()) if largest > 0 else 0.0


def box_from_map(heat_map: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Draws a box around the largest connected part of a map at or above ``threshold`` times its maximum.

    Cells that touch, also at a corner, are connected. Among parts of equal size the one with the larger sum is taken,
    and among equal sums the first in reading order.

    Args:
        heat_map: ``(H, W)``.
        threshold: In (0, 1].

    Returns:
        ``(4,)`` float64, along the edges of cells; zeros where nothing is positive.

    Raises:
        InputError: no map, a value that is not finite, or a threshold out of range.

    >>> box_from_map(np.array([[0, 0, 4, 0], [0, 0, 3, 1]])).tolist()
    [0.5, 0.0, 0.75, 1.0]
    """
    from scipy import ndimage  # TorchXRayVision brings it

    if not 0 < threshold <= 1:
        raise InputError(f"threshold must be in (0, 1], got {threshold}")
    heat_map = _checked(heat_map)
    if heat_map.max() <= 0:
        return np.zeros(4)
    parts, count = ndimage.label(heat_map >= threshold * heat_map.max(), np.ones((3, 3)))
    cells = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    mass = np.bincount(parts.ravel(), heat_map.ravel(), count + 1)[1:]
    largest = max(range(count), key=lambda i: (cells[i], mass[i]))
    y, x = ndimage.find_objects(parts)[largest]
    height, width = heat_map.shape
    return np.array([x.start / width, y.start / height, x.stop / width, y.stop / height])


def iou(box: np.ndarray, boxes: np.ndarray) -> float:
    """Computes the intersection over union of one box, ``(4,)``, and the union of boxes, ``(K, 4)``; exact.

    Raises:
        InputError: no boxes, or a corner before the first one.

    >>> iou(np.array([0, 0, 0.5, 0.5]), np.array([[0, 0, 0.5, 0.25], [0, 0.25, 0.5, 0.5], [0.5, 0.5, 1, 1]]))
    0.5
    """
    shared, _, union = _areas(box, boxes)
    return shared / union if union > 0 else 0.0


def score_map(heat_map: np.ndarray, boxes: np.ndarray, threshold: float = 0.5) -> Scores:
    """Scores a map by its peak, its positive mass, and the box around it; arguments and errors as ``box_from_map``."""
    box = box_from_map(heat_map, threshold)
    return Scores(pointing(heat_map, boxes), energy_inside(heat_map, boxes), iou(box, boxes))


def score_box(box: np.ndarray, boxes: np.ndarray) -> Scores:
    """Scores a box, ``(4,)``, as a map that is constant inside and points at its centre; NaN where the box is NaN."""
    if np.isnan(box).any():
        return Scores(np.nan, np.nan, np.nan)
    shared, own, union = _areas(box, boxes)
    hit = score_point((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, boxes).pointing
    return Scores(hit, shared / own if own > 0 else 0.0, shared / union if union > 0 else 0.0)


def score_point(x: float, y: float, boxes: np.ndarray) -> Scores:
    """Scores a point, which has neither energy nor extent."""
    return Scores(float(_cover(_boxes(boxes), np.array([x]), np.array([y])).any()), np.nan, np.nan)


def covered_area(boxes: np.ndarray) -> float:
    """Computes the share of the image that boxes ``(K, 4)`` cover together."""
    return _areas(np.array([0.0, 0.0, 1.0, 1.0]), boxes)[0]


def mean_box(boxes: Sequence[np.ndarray], patients: Sequence[str]) -> np.ndarray:
    """Computes, for each case of one finding, the mean corners of all boxes of the other patients.

    Args:
        boxes: ``(K, 4)`` of each of the N cases.
        patients: Whose they are, N.

    Returns:
        ``(N, 4)``; NaN where no other patient has the finding.
    """
    sums = np.array([_boxes(b).sum(0) for b in boxes])
    counts = np.array([len(b) for b in boxes])
    result = np.full((len(boxes), 4), np.nan)
    for rows in _by_patient(patients):
        others = counts.sum() - counts[rows].sum()
        if others:
            result[rows] = (sums.sum(0) - sums[rows].sum(0)) / others
    return result


def commonest_point(
    boxes: Sequence[np.ndarray], patients: Sequence[str], side: int = 256
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields, for each case of one finding, a map of the other patients' boxes; its peak is the commonest point.

    Args:
        boxes: ``(K, 4)`` of each of the N cases.
        patients: Whose they are, N.
        side: Cells along a side of the map.

    Yields:
        The number of the case, and how many of the other patients' cases cover each cell, ``(side, side)`` int64. Cases
        without another patient are left out.
    """
    covers = [_inside(b, (side, side)) for b in boxes]
    total = np.sum(covers, axis=0)
    for rows in _by_patient(patients):
        if len(rows) < len(boxes):
            others = total - np.sum([covers[i] for i in rows], axis=0)
            yield from ((int(i), others) for i in rows)


def _by_patient(patients: Sequence[str]) -> list[np.ndarray]:
    """Rows of each patient."""
    unique, index = np.unique(np.asarray(patients), return_inverse=True)
    return [np.flatnonzero(index == i) for i in range(len(unique))]


def _checked(heat_map: np.ndarray) -> np.ndarray:
    heat_map = np.asarray(heat_map, dtype=np.float64)
    if heat_map.ndim != 2 or heat_map.size == 0:
        raise InputError(f"a map must be (H, W), got {heat_map.shape}")
    if not np.isfinite(heat_map).all():
        raise InputError("a map has values that are not finite")
    return heat_map


def _boxes(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise InputError(f"boxes must be (K, 4) with K at least 1, got {boxes.shape}")
    if not (boxes[:, :2] <= boxes[:, 2:]).all():
        raise InputError(f"boxes must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got {boxes.tolist()}")
    return boxes


def _cover(boxes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Says which points of a grid are inside any of the boxes, ``(len(y), len(x))``."""
    across = (boxes[:, 0, None] <= x) & (x <= boxes[:, 2, None])
    down = (boxes[:, 1, None] <= y) & (y <= boxes[:, 3, None])
    return np.any(down[:, :, None] & across[:, None], axis=0)


def _inside(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Says which cells of a map have their centre inside."""
    y, x = ((np.arange(n) + 0.5) / n for n in shape)
    return _cover(_boxes(boxes), x, y)


def _areas(box: np.ndarray, boxes: np.ndarray) -> tuple[float, float, float]:
    """Areas of what a box shares with the union of boxes, of the box, and of all together; exact, edge by edge."""
    one, many = _boxes(np.asarray(box)[None]), _boxes(boxes)
    x, y = (np.unique(np.concatenate([one[:, axis::2], many[:, axis::2]])) for axis in (0, 1))
    area = np.outer(np.diff(y), np.diff(x))
    middle = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
    first, second = _cover(one, *middle), _cover(many, *middle)
    shared, own, together = (float(area[cells].sum()) for cells in (first & second, first, first | second))
    return shared, own, together
