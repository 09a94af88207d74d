"""The error for what a user can put right; its message names the thing and the remedy."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

__all__ = ["InputError", "name_some", "require"]

_LONGEST = 2000  # characters of a message


class InputError(ValueError):
    """Bad input: a missing file or column, an unknown name, an image that does not decode. The CLI prints one line."""

    def __str__(self) -> str:
        text = super().__str__()  # it may quote a file, of any length
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def name_some(names: Sequence[str], most: int = 20) -> str:
    """Lists names for a message, the first ``most`` of them, so that 200,000 are still one line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def require(module: str, extra: str) -> ModuleType:
    """Imports a module that an extra installs.

    Raises:
        InputError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(f'{module} is not installed: run pip install "mxa[{extra}]"') from None
