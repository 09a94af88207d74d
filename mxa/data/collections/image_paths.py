"""Where the images of a table lie: paths of other systems, and suffixes that tables do not say."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...utils.errors import InputError
from ..image_io import IMAGE_SUFFIXES

__all__ = ["plain_path", "relative_paths", "with_suffixes"]

_DRIVE = re.compile(r"[A-Za-z]:/|//")  # a drive or a server of Windows
_TRIES = 20  # rows by which a folder is looked for
_logger = logging.getLogger(__name__)


def plain_path(name: str) -> str:
    r"""Writes a path with slashes and without detours, as every file has it once; a blank stays one.

    >>> plain_path(r" img\a\1.png")
    'img/a/1.png'
    """
    name = name.strip()
    if "\\" in name and os.sep == "/":
        name = name.replace("\\", "/")
    return os.path.normpath(name) if name else name


def relative_paths(table: Path, names: Sequence[str]) -> list[str]:
    """Returns paths relative to a table's folder where they lie below it; other absolute paths stay.

    Of an absolute path that is not there, as of another computer, the longest end that exists below the table's folder
    is taken. That is tried for a few rows; the other rows lose the same beginning.

    Raises:
        InputError: no such end of a path with a drive or server of Windows exists.
    """
    root = table.parent
    odd = next((name.strip() for name in names if "\\" in name), None)
    if odd and os.path.isfile(root / odd):
        plain = [os.path.normpath(name.strip()) if name.strip() else "" for name in names]  # part of the file's name
    else:
        plain = list(map(plain_path, names))
    folder = os.path.abspath(root).rstrip(os.sep) + os.sep
    plain = [name.removeprefix(folder) for name in plain]
    starts: list[str] = []
    tries = 0
    for name in filter(_is_absolute, plain):
        if tries < _TRIES and not name.startswith(tuple(starts)):
            tries += 1
            if not os.path.exists(name) and (start := _beginning(root, name)):
                starts.append(start)
                _logger.info("%s: %s is left out of the paths", table, start)
    return [_without(starts, name, table) if _is_absolute(name) else name for name in plain]


def _is_absolute(name: str) -> bool:
    return os.path.isabs(name) or _DRIVE.match(name) is not None


def _without(starts: Sequence[str], name: str, table: Path) -> str:
    """Drops the beginning of a path that is among ``starts``."""
    start = next(filter(name.startswith, starts), "")
    if not start and _DRIVE.match(name):
        raise InputError(
            f"{table}: no end of a path such as {name} exists below {table.parent}: put the table beside the images, "
            "or write paths relative to it"
        )
    return name.removeprefix(start)


def _beginning(root: Path, name: str) -> str | None:
    """What has to be dropped of a path so that the rest exists below a folder."""
    cuts = [i + 1 for i, letter in enumerate(name) if letter == "/"]
    return next((name[:cut] for cut in cuts if name[cut:] and os.path.isfile(os.path.join(root, name[cut:]))), None)


def with_suffixes(root: Path, stems: Sequence[str], default: str) -> list[str]:
    """Adds to each path the suffix with which the image exists, found by twenty images; where those differ, by all.

    Args:
        root: Folder of the images.
        stems: Paths below it, without suffix.
        default: Suffix of an image that is not there.
    """
    suffixes = (default, *IMAGE_SUFFIXES)

    def suffix(stem: str) -> str:
        return next((s for s in suffixes if os.path.isfile(os.path.join(root, stem + s))), "")

    some = {suffix(stem) for stem in stems[:: max(len(stems) // 20, 1)]} - {""}
    if len(some) > 1:
        return [stem + (suffix(stem) or default) for stem in stems]
    return [stem + next(iter(some), default) for stem in stems]
