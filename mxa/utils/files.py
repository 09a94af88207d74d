"""Files that a kill or a full disk does not damage, folders that one process locks, and hashes."""

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

    If that fails, as on a full disk, the file at ``path`` is unchanged and the temporary file is removed.

    Args:
        path: The file.
        write: Writes the content to the path that it is called with.
        previous: Path under which the old file is kept. If the file system has hard links, ``path`` exists at every
            moment.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors, for one, lets only the owner read its files
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
def whole_or_not_at_all(path: Path, remedy: str = "run again with --resume auto") -> Iterator[None]:
    """Turns what torch and safetensors raise on a full disk into one error.

    Args:
        path: What is written.
        remedy: What to do once there is space.

    Raises:
        InputError: the file could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} could not be written ({str(error).splitlines()[0]}): free space, then {remedy}"
        ) from error


@contextmanager
def alone_in(directory: Path, wait: bool = False) -> Iterator[None]:
    """Locks a folder inside the block. The system unlocks it however the process ends.

    Where there are no such locks (Windows, some network disks), nothing is locked.

    Args:
        directory: The folder.
        wait: Wait while another process holds the lock.

    Raises:
        InputError: another process holds the lock.
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
    """Returns the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
