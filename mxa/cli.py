"""The ``mxa`` command: a subcommand parses into one dataclass, calls one function and shows what it returns."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .commands import output
from .commands.registry import COMMANDS, named
from .utils.allocator import keep_memory
from .utils.command_line import parse
from .utils.errors import InputError
from .utils.interrupt import raise_interrupts
from .utils.text import printable

__all__ = ["main"]


def _usage() -> str:
    lines = [f"  mxa {name:14} {command.help}" for name, command in COMMANDS.items()]
    return "usage: mxa COMMAND --help\n" + "\n".join(lines)


def _unknown(arguments: Sequence[str]) -> str:
    """Says which command is not known, and which was perhaps meant."""
    close = [difflib.get_close_matches(" ".join(arguments[:n]), COMMANDS, n=1, cutoff=0.7) for n in (2, 1)]
    meant = next((f": perhaps mxa {found[0]}" for found in close if found), "")
    return f"no command {printable(arguments[0])}{meant}"


def _plain_warnings() -> Callable[..., None]:
    """Makes a function that shows each warning once, as one line."""
    seen = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"warning: {printable(message)}", file=sys.stderr)

    return show


class _Lines(logging.Formatter):
    """Shows a log entry as one line, whatever names it holds."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; bad input ends it with one line on stderr and a status that is not 0."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        from .commands.doctor import version_line

        print(version_line())
        return
    name = next((n for n in COMMANDS if arguments[: len(n.split())] == n.split()), None)
    if name is None:
        wanted = arguments in (["--help"], ["-h"])
        if arguments and not wanted:
            print(f"mxa: {_unknown(arguments)}", file=sys.stderr)
        print(_usage(), file=sys.stdout if wanted else sys.stderr)
        sys.exit(0 if wanted else 2)
    command = COMMANDS[name]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    logging.basicConfig(handlers=[handler])
    first = os.environ.get("RANK", "0") == "0"  # torchrun's first process logs for all
    logging.getLogger("mxa").setLevel(logging.INFO if first else logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _plain_warnings()
            rest = arguments[len(name.split()) :]
            kind = named(command.config)
            config = parse(kind, rest, f"mxa {name}", command.help, command.positional, command.recipes)
            function = named(command.function)
            raise_interrupts()
            keep_memory()
            result = function(config)
            getattr(output, command.shown_by)(config, result)
            sys.stdout.flush()
    except BrokenPipeError:  # such as `mxa predict | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes as it ends
        sys.exit(141)
    except KeyboardInterrupt:
        print(f"mxa {name}: stopped", file=sys.stderr)
        sys.exit(130)
    except (InputError, OSError) as error:  # OSError: such as a folder that cannot be made, or a full disk
        if os.environ.get("MXA_DEBUG"):
            raise
        sys.exit(f"mxa {name}: {printable(error)}")
