"""Files that a kill or a full disk leaves whole, folders that one process holds, and hashes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError

__all__ = ["alone_in", "atomic_write", "digest", "whole_or_not_at_all", "write_text"]


def atomic_write(path: Path, write: Callable[[Path], None], previous: Path | None = None) -> None:
    """Calls ``write`` on a temporary file beside ``path``, flushes it to the disk and moves it into place.

    Where that fails (a full disk), what was at ``path`` is still there and the temporary file is not.

    Args:
        path: The file.
        write: Writes it.
        previous: Where to keep what was at ``path``. Where the file system has hard links there is a file at ``path``
            at every moment.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors' files, for one, are their owner's alone
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _keep(path: Path, previous: Path) -> None:
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:
        os.replace(path, previous)


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8) as ``atomic_write`` does."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[None]:
    """Turns what torch and safetensors raise on a full disk into one error; what was there before still is.

    Raises:
        InputError: the file could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} could not be written ({str(error).splitlines()[0]}): free space, then run again with --resume auto"
        ) from error


@contextmanager
def alone_in(directory: Path, wait: bool = False) -> Iterator[None]:
    """Holds a folder inside the block; the system lets go of it however the process ends.

    With ``wait`` a folder that another process holds is waited for.

    Where the system or the file system has no such lock (Windows, some network disks), nothing is held.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(f"another process is training in {directory}: wait for it, or end it") from None
        yield
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
