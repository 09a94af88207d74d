"""Films of the page: each is read once, and what is kept of it is small and in memory."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.image_io import read_image
from ...deployment.predictor import PlaneReader
from ...deployment.stream import Reader, read_planes
from ...utils.errors import InputError

__all__ = ["Film", "Films", "data_uri", "read_film"]

_SIDE = 1024  # pixels of the longer side of what is shown


@dataclass(frozen=True)
class Film:
    """What is kept of an X-ray.

    Attributes:
        name: Name of its file.
        picture: It as a JPEG of at most 1024 pixels a side, as a ``data:`` address.
        size: Width and height of that, in pixels.
        planes: What each model takes, by what reads it.
        warning: Why it may be no frontal chest radiograph.
    """

    name: str
    picture: str
    size: tuple[int, int]
    planes: dict[PlaneReader, np.ndarray]
    warning: str | None = None


def read_film(path: Path, readers: Iterable[PlaneReader]) -> Film:
    """Reads an X-ray, as ``mxa predict`` does. Nothing of it is logged.

    Raises:
        InputError: it does not read; the message calls the file by its name alone.
    """
    planes, warning = {}, None
    for reader in dict.fromkeys(readers):
        planes[reader], warning = _read(path, reader)
    image = _read(path, lambda name: (read_image(name, (_SIDE, _SIDE)), {}))[0].convert("L")
    image.thumbnail((_SIDE, _SIDE))
    return Film(path.name, data_uri(image, "JPEG", quality=90), image.size, planes, warning)


def _read(path: Path, reader: Reader) -> tuple[Any, str | None]:
    """What a reader makes of a file, and what there is to say of it."""
    ((found, row),) = read_planes([str(path)], reader, 0, 1, False)
    said = {key: row[key].replace(str(path), path.name) for key in ("error", "warning") if key in row}
    if found is None:
        raise InputError(said["error"])
    return found, said.get("warning")


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """Writes a picture of PIL's as an address that holds it."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


class Films:
    """Films by a key, such as the page that shows it; forgotten after a while.

    Args:
        seconds: How long a film is kept.
        most: How many are.
    """

    def __init__(self, seconds: float = 900, most: int = 256):
        self._seconds, self._most = seconds, most
        self._films: OrderedDict[str, tuple[float, Film]] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def keep(self, key: str, film: Film) -> None:
        """Keeps a film, in place of the one with that key."""
        with self._lock:
            self._films.pop(key, None)
            self._films[key] = time.monotonic(), film
            self._forget()
            if self._timer is None:
                self._wait()

    def of(self, key: str) -> Film | None:
        """The film of that key, if it is still kept."""
        with self._lock:
            self._forget()
            return self._films.get(key, (0.0, None))[1]

    def drop(self, key: str) -> None:
        """Forgets a film."""
        with self._lock:
            self._films.pop(key, None)

    def _wait(self) -> None:
        oldest = next(iter(self._films.values()))[0]
        self._timer = threading.Timer(max(oldest + self._seconds - time.monotonic(), 0) + 0.01, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            self._forget()
            self._timer = None
            if self._films:
                self._wait()

    def _forget(self) -> None:
        least = time.monotonic() - self._seconds
        while self._films and (len(self._films) > self._most or next(iter(self._films.values()))[0] < least):
            self._films.popitem(last=False)
