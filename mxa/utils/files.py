"""Files that a kill or a full disk does not damage, folders that one process locks, and hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError

__all__ = [
    "NoSpace",
    "alone_in",
    "atomic_copy",
    "atomic_write",
    "digest",
    "is_empty",
    "whole_or_not_at_all",
    "write_text",
]

_BEGINS, _ENDS = ".mxa-", ".tmp"  # of a temporary file's name
_NOTE = ".mxa-running"  # in a folder that is locked: which command holds it


class NoSpace(InputError):
    """A file could not be written because the disk is full. Going on with other files does not help."""


def atomic_write(path: Path, write: Callable[[Path], None], previous: Path | None = None) -> None:
    """Calls ``write`` on a new file of a random name beside ``path``, flushes it to the disk and moves it into place.

    If that fails, as on a full disk, the file at ``path`` is unchanged and the temporary file is removed.

    Args:
        path: The file.
        write: Writes the content to the path that it is called with.
        previous: Path under which the old file is kept. If the file system has hard links, ``path`` exists at every
            moment.

    Raises:
        NoSpace: the disk is full.
    """
    temporary = path.absolute().with_name(f"{_BEGINS}{secrets.token_hex(8)}{_ENDS}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o666))  # follows no link that somebody put there
    mode = temporary.stat().st_mode  # safetensors, for one, lets only the owner read its files
    try:
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise NoSpace(f"{path} could not be written ({error.strerror}): free space, then run again") from None
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


def atomic_copy(source: Path, path: Path) -> None:
    """Copies the content of a file as ``atomic_write`` does."""
    atomic_write(path, lambda temporary: shutil.copyfile(source, temporary))


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[None]:
    """Turns what torch and safetensors raise on a full disk into one error.

    Raises:
        InputError: the file could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} could not be written ({str(error).splitlines()[0]}): free space, then run again (a training with "
            "--resume auto)"
        ) from error


@contextmanager
def alone_in(directory: Path, command: str, wait: bool = False, within: Sequence[str] = ()) -> Iterator[None]:
    """Locks a folder inside the block, and removes the temporary files that a killed process left there.

    The system unlocks it however the process ends. A folder that the block fails to fill is removed again. Where there
    are no such locks (Windows, some network disks), nothing is locked.

    Args:
        directory: The folder; it is made where it is not there.
        command: Name of the command that works in it, for the error of another one.
        wait: Wait while another process holds the lock.
        within: Folders in it that the command writes too.

    Raises:
        InputError: another process holds the lock.
    """
    if directory.is_file():
        raise InputError(f"--output {directory} is a file: give a folder")
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(directory, command, wait, within):
            yield
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that holds something stays
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def _locked(directory: Path, command: str, wait: bool, within: Sequence[str]) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle, note = os.open(directory, os.O_RDONLY), directory / _NOTE
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(f"{_running(note)} is at work in {directory}: wait for it, or end it") from None
        for folder in (directory, *(directory / name for name in within)):
            for left in folder.glob(f"{_BEGINS}*{_ENDS}"):
                left.unlink(missing_ok=True)
        write_text(note, command)
        try:
            yield
        finally:
            note.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _running(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8")[:40]
    except (OSError, UnicodeDecodeError):
        return "another process"


def is_empty(directory: Path) -> bool:
    """Says whether a folder is not there or holds nothing, but for what ``alone_in`` puts there."""
    return not directory.exists() or all(file.name.startswith(".mxa-") for file in directory.iterdir())


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
