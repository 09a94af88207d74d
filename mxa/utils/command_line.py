"""The options of a command, made of its dataclass."""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action, ArgumentParser, BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from .config import checked_fields, kinds_of, perhaps, read_settings, read_yaml_file
from .errors import InputError

__all__ = ["option_parser", "parse"]

T = TypeVar("T")


def parse(
    kind: type[T],
    arguments: Sequence[str],
    prog: str,
    description: str = "",
    positional: str | None = None,
    recipes: Path | None = None,
) -> T:
    """Makes a dataclass of command-line options, over the values of ``--config FILE`` or ``--recipe NAME``.

    A field ``batch_size`` is the option ``--batch-size``, a bool is a flag, a tuple takes several values, and
    ``int | tuple[int, int]`` takes one or two.

    Args:
        kind: The dataclass; the text under a field is its help.
        arguments: The command line.
        prog: Name of the command, for the help.
        description: What it does.
        positional: The field that needs no option's name.
        recipes: Folder of the recipes, where the command has some.

    Raises:
        InputError: an unknown option or field, one that is missing, or a value of another kind.
        SystemExit: help was asked for.
    """
    helps = not {"-h", "--help"}.isdisjoint(arguments)
    parser = option_parser(kind, prog, description, positional, recipes, helps)
    given = vars(parser.parse_intermixed_args(arguments))
    config, recipe = given.pop("config", None), given.pop("recipe", None)
    if config and recipe:
        raise InputError("give one --config FILE.yaml or one --recipe NAME")
    path = Path(config) if config else _recipe(recipes, recipe) if recipe else None
    read = read_settings if path and path.name == "config.yaml" else read_yaml_file
    values = checked_fields(kind, read(path), str(path)) if path else {}
    for name in filter(values.get, getattr(kind, "of_the_command_line", ())):
        raise InputError(f"{path}: {name} is for the command line alone: take it out")
    values |= checked_fields(kind, given, prog, option=True)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [n if n == positional else f"--{n.replace('_', '-')}" for n in required if n not in values]:
        raise InputError(f"give {' and '.join(lacking)}; {prog} --help lists the options")
    return kind(**values)


class _Parser(ArgumentParser):
    """An argument parser whose errors are bad input, with the option that was perhaps meant."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        names = [name for action in self._actions for name in action.option_strings]
        raise InputError(message + (perhaps(unknown[1], names) if unknown else ""))


class _OneOrMore(Action):
    """Keeps one value as it is, and several as a list."""

    def __call__(self, parser: ArgumentParser, namespace: Any, values: list[str], option: str | None = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def option_parser(
    kind: type, prog: str, description: str, positional: str | None, recipes: Path | None, helps: bool
) -> ArgumentParser:
    """Makes a parser that leaves every value as text; the fields of each class that ``kind`` is made of are a group.

    Args:
        kind: As in ``parse``.
        prog: As in ``parse``.
        description: As in ``parse``.
        positional: As in ``parse``.
        recipes: As in ``parse``.
        helps: Give the options their help, which takes a while to find.
    """
    usage = f"{prog} {positional.upper() if positional else ''} [options]"
    parser = _Parser(prog, usage, description, allow_abbrev=False, argument_default=SUPPRESS)
    unused = getattr(kind, "unused", ())
    parser.add_argument("--config", metavar="FILE.yaml", help="values of the options below, as name: value")
    if recipes:
        names = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
        parser.add_argument("--recipe", metavar="NAME", help=f"a --config that comes with mxa: {names}")
    hints = get_type_hints(kind)
    for base in (base for base in kind.__mro__ if is_dataclass(base)):
        own = [f for f in fields(kind) if _declared_by(kind, f.name) is base and f.name not in unused]
        texts = _texts(base) if helps else {}
        block = parser.add_argument_group((base.__doc__ or "").partition("\n")[0].rstrip("."))
        for field in own:
            _add(block, field, hints[field.name], texts.get(field.name), field.name == positional)
    return parser


def _texts(base: type) -> dict[str, str | None]:
    """The text under each field, which takes a while to find."""
    import docstring_parser

    return {p.arg_name: p.description for p in docstring_parser.parse_from_object(base).params}


def _declared_by(kind: type, name: str) -> type:
    return next(base for base in kind.__mro__ if name in getattr(base, "__annotations__", {}))


def _add(block: Any, field: Field, hint: Any, text: str | None, positional: bool) -> None:
    inner = [one for one in kinds_of(hint) if one is not NoneType]
    default = "" if field.default in (MISSING, None, False, ()) else f" (default: {_shown(field.default)})"
    how: dict[str, Any] = {"help": f"{' '.join((text or '').split())}{default}".replace("%", "%%")}
    if inner == [bool]:
        block.add_argument(f"--{field.name.replace('_', '-')}", action=BooleanOptionalAction, **how)
        return
    several = len(inner) == 1 and get_origin(inner[0]) is tuple
    if several:
        kinds = get_args(inner[0])
        how |= {"nargs": "+" if kinds[-1] is Ellipsis else len(kinds)}
        inner = list(kinds_of(kinds[0]))
    elif any(get_origin(one) is tuple for one in inner):
        how |= {"nargs": "+", "action": _OneOrMore}
    if len(inner) == 1 and get_origin(inner[0]) is Literal:
        how["metavar"] = "{" + ",".join(map(str, get_args(inner[0]))) + "}"
    else:
        how["metavar"] = field.name.upper()
    if positional:
        how |= {"nargs": "*", "default": SUPPRESS} if several else {"nargs": "?"}
    block.add_argument(field.name if positional else f"--{field.name.replace('_', '-')}", **how)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _recipe(folder: Path, name: str) -> Path:
    known = {path.stem: path for path in folder.glob("*.yaml")}
    if name not in known:
        raise InputError(f"no recipe {name!r}: give one of {', '.join(sorted(known))}")
    return known[name]
