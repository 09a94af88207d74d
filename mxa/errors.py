"""The one error for what a user can put right: its message names the thing and the remedy."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["InputError", "require"]


class InputError(ValueError):
    """Bad input: a missing file or column, an unknown name, an image that does not decode. The CLI prints one line."""


def require(module: str, extra: str) -> ModuleType:
    """Imports a module that an extra brings.

    Raises:
        InputError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(f'{module} is not installed: run pip install "mxa[{extra}]"') from None
