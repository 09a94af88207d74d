"""What makes a shell complete commands, options and their values."""

from __future__ import annotations

from argparse import Action, ArgumentParser
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import shtab

from ..utils.command_line import option_parser
from ..utils.config import kinds_of
from .config import CompletionConfig
from .registry import COMMANDS, Command, named

__all__ = ["completion"]


def completion(config: CompletionConfig) -> str:
    """Writes a script for a shell. It holds every name, so completing starts no Python.

    Returns:
        The script, which is to be read by the shell named.
    """
    return shtab.complete(_all_commands(), config.shell)


def _all_commands() -> ArgumentParser:
    """One parser of every command; ``bench`` and ``data`` have commands of their own."""
    root = ArgumentParser("mxa")
    root.add_argument("--version", action="store_true", help="Say which versions are installed.")
    places = {"": root.add_subparsers()}
    for name, command in COMMANDS.items():
        group, _, own = name.rpartition(" ")
        if group not in places:
            own_help = f"Commands of mxa {group}."  # shtab leaves out a command without help
            places[group] = places[""].add_parser(group, help=own_help).add_subparsers()
        options = _options(name, command)
        places[group].add_parser(own, parents=[options], add_help=False, help=command.help, description=command.help)
    return root


def _options(name: str, command: Command) -> ArgumentParser:
    """The parser of a command, whose options know what may follow them."""
    kind = named(command.config)
    parser = option_parser(kind, f"mxa {name}", command.help, command.positional, command.recipes, helps=True)
    hints = get_type_hints(kind) | {"config": Path}
    for action in parser._actions:
        if action.dest == "recipe" and command.recipes:
            action.choices = sorted(file.stem for file in command.recipes.glob("*.yaml"))
        elif action.dest in hints:
            _add_values(action, hints[action.dest])
    return parser


def _add_values(action: Action, hint: Any) -> None:
    """Says which values an option has: those of a Literal, or files, since most texts are names or paths."""
    kinds = [one for one in kinds_of(hint) if one is not NoneType]
    kinds = [inner for one in kinds for inner in (get_args(one)[:1] if get_origin(one) is tuple else (one,))]
    if choices := [str(value) for one in kinds if get_origin(one) is Literal for value in get_args(one)]:
        action.choices = choices
    elif {str, Path} & set(kinds):
        action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
