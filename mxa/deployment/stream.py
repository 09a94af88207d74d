"""Images in order, each with its scores: worker processes read while the model computes. Needs no PyTorch."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.interrupt import follow_parent
from ..utils.processor import core_count
from .predictor import Predictor

__all__ = ["default_workers", "read_planes", "score_planes"]

#: An image's plane, None where it does not read, and its row: ``file``, ``warning``, ``identifiers``, ``error``.
Read = tuple[np.ndarray | None, dict[str, Any]]

#: Makes a plane of a file, and says what there is to say of it: a ``PlaneReader``, or one around it.
Reader = Callable[[str], tuple[np.ndarray, dict[str, Any]]]

_CHUNK = 4  # images that a worker reads at a time
_MOST_WORKERS = 16


def default_workers(images: int) -> int:
    """Returns how many processes read so many images: one a core, and none where starting them takes longer."""
    return min(core_count(), _MOST_WORKERS, images // 32)


def read_planes(
    paths: Sequence[str], reader: Reader, workers: int, ahead: int, log: bool
) -> Generator[Read, None, None]:
    """Reads images in the order of their paths.

    Args:
        paths: Images.
        reader: Makes a plane of one.
        workers: Processes that read; 0 for this one.
        ahead: Images that are read before they are asked for, at least, where other processes read.
        log: Log the warnings and leave them to ``warnings``, as ``mxa.data.read_image`` does. Otherwise those of both
            kinds are only in the row.

    Raises:
        InputError: a worker process was killed.
    """
    if workers == 0:
        yield from (_read(reader, path, log) for path in paths)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    waiting: deque = deque()
    most = -(-ahead // _CHUNK) + 2 * workers
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), follow_parent) as pool:
        try:
            for start in range(0, len(paths), _CHUNK):
                waiting.append(pool.submit(_read_some, reader, paths[start : start + _CHUNK]))
                if len(waiting) > most:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError("a process that reads images was killed (out of memory?): give fewer --workers") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_some(reader: Reader, paths: Sequence[str]) -> list[Read]:
    return [_read(reader, path, False) for path in paths]


def _read(reader: Reader, path: str, log: bool) -> Read:
    row: dict[str, Any] = {"file": path}
    try:
        if log:
            plane, about = reader(path)
            return plane, row | about
        logger = logging.getLogger("mxa.data")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always")
                plane, about = reader(path)
        finally:
            logger.setLevel(level)
        said = [*filter(None, [about.get("warning")]), *(str(note.message).removeprefix(f"{path}: ") for note in notes)]
        return plane, row | about | ({"warning": "; ".join(said)} if said else {})
    except (InputError, OSError) as error:
        return None, row | {"error": str(error)}


def score_planes(
    predictor: Predictor,
    images: Generator[Read, None, None],
    batch_size: int,
    point: str | None = None,
    skip_bad: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """Completes each image's row with what the model says of it.

    The images are taken ``batch_size`` at a time, those that do not read among them. A probability can depend, in its
    last digits, on what is computed together: the same images in the same order give the same bits.

    Args:
        predictor: The model.
        images: What ``read_planes`` gives.
        batch_size: Images at a time.
        point: Calibrate, and call at the thresholds of this operating point.
        skip_bad: Go on where an image does not read.

    Yields:
        The rows, in order, with ``"probabilities"``: label to probability. With ``point`` there are ``"positive"``, the
        labels at or above their thresholds, and ``"undecided"``, the labels without one.

    Raises:
        InputError: an image does not read, without ``skip_bad``, or a logit is not finite.
    """
    calibration = predictor.info.calibration if point else None
    thresholds = calibration.thresholds[point] if calibration else {}
    with closing(images):
        while taken := list(itertools.islice(images, batch_size)):
            for _, row in taken:
                if "error" in row and not skip_bad:
                    raise InputError(row["error"])
            planes, rows = [p for p, _ in taken if p is not None], [row for p, row in taken if p is not None]
            if planes:
                logits = predictor.logits(planes, [row["file"] for row in rows])
                values = predictor.probabilities(logits, calibration is not None).tolist()
                for row, found in zip(rows, values, strict=True):
                    row["probabilities"] = said = dict(zip(predictor.labels, found, strict=True))
                    if calibration:
                        row["positive"] = [label for label, least in thresholds.items() if said[label] >= least]
                        row["undecided"] = [label for label in said if label not in thresholds]
            yield from (row for _, row in taken)
