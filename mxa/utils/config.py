"""Makes dataclasses from a command line, from YAML, or from both."""

from __future__ import annotations

import difflib
import re
from argparse import SUPPRESS, ArgumentError, ArgumentParser, BooleanOptionalAction
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import InputError, require

__all__ = ["checked_fields", "group", "parse", "read_named", "read_yaml", "read_yaml_file", "unknown_field"]

T = TypeVar("T")
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    dict: "a mapping",
}
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def read_yaml(text: str) -> Any:
    """Reads YAML. Numbers such as 1e-3 are numbers; YAML 1.1 takes them for text.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return _numbers(yaml.safe_load(text))


def read_yaml_file(path: Path) -> dict[str, Any]:
    """Reads a YAML file of ``name: value``.

    Raises:
        InputError: it does not read, or it holds something else.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        what = f"line {mark.line + 1}: {error.problem}" if mark else error
        raise InputError(f"cannot read {path}: {what}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold lines of name: value, got {values!r}")
    return values


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def read_named(value: str | Mapping[str, Any], what: str) -> tuple[str, Mapping[str, Any] | None]:
    """Reads ``NAME``, or ``NAME: {field: value}`` as YAML or as a dict.

    Args:
        value: The text or dict.
        what: What it names, for the error.

    Returns:
        The name, and the fields or None.

    Raises:
        InputError: it is neither of the two.
    """
    try:
        content = read_yaml(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        content = None
    content = {content: None} if isinstance(content, str) else content
    if isinstance(content, Mapping) and len(content) == 1:
        ((name, changed),) = content.items()
        if isinstance(changed, (Mapping, NoneType)):
            return str(name), changed
    raise InputError(f"{what} {value!r} must be NAME or NAME: {{field: value}}")


def group(config: Any, kind: type) -> dict[str, Any]:
    """Returns those fields of a configuration that ``kind``, one of its groups, declares, by name."""
    return {field.name: getattr(config, field.name) for field in fields(kind)}


def checked_fields(kind: type, values: Mapping[str, Any], where: str, option: bool = False) -> dict[str, Any]:
    """Converts values from YAML or a command line to the types of a dataclass's fields.

    Args:
        kind: The dataclass.
        values: By field; text of a number becomes a number, a list becomes a tuple.
        where: What holds them, for the error.
        option: Errors name a field as its option.

    Raises:
        InputError: an unknown field, or a value of another kind; it says what is wanted.
    """
    hints = {f.name: get_type_hints(kind)[f.name] for f in fields(kind)}
    for name in values:
        if name not in hints:
            raise InputError(f"{where}: {unknown_field(name, hints)}")
    checked = {}
    for name, value in values.items():
        parser = require("jsonargparse", "train").ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{name}", type=hints[name])
        try:
            if value is None and not _fits_none(hints[name]):
                raise ArgumentError(None, "null")
            checked[name] = parser.parse_object({name: value})[name]
        except ArgumentError:
            named = f"--{name.replace('_', '-')}" if option else f"{where}: {name}"
            raise InputError(f"{named} must be {_wanted(hints[name])}, got {value!r}") from None
    return checked


def parse(
    kind: type[T],
    arguments: Sequence[str],
    prog: str,
    description: str = "",
    positional: str | None = None,
    recipes: Path | None = None,
) -> T:
    """Makes a dataclass of command-line options, which override the values of ``--config FILE`` or ``--recipe NAME``.

    A field ``batch_size`` is the option ``--batch-size``, a bool is a flag, a tuple takes several values.

    Args:
        kind: The dataclass; the text under a field is its help.
        arguments: The command line.
        prog: Name of the command, for the help.
        description: What it does.
        positional: The field that is given without an option's name.
        recipes: Folder of the recipes, if the command has some.

    Raises:
        InputError: an unknown option or field, one that is missing, or a value of another kind.
        SystemExit: help was asked for.
    """
    given = vars(_parser(kind, prog, description, positional, recipes).parse_args(arguments))
    config, recipe = given.pop("config", None), given.pop("recipe", None)
    if config and recipe:
        raise InputError("give one --config FILE.yaml or one --recipe NAME")
    path = Path(config) if config else _recipe(recipes, recipe) if recipe else None
    values = checked_fields(kind, read_yaml_file(path), str(path)) if path else {}
    values |= checked_fields(kind, given, prog, option=True)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [n if n == positional else f"--{n.replace('_', '-')}" for n in required if n not in values]:
        raise InputError(f"give {' and '.join(lacking)}; {prog} --help lists the options")
    return kind(**values)


class _Parser(ArgumentParser):
    """An argument parser that raises ``InputError``, and suggests an option in place of an unknown one."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        names = [name for action in self._actions for name in action.option_strings]
        raise InputError(message + (_perhaps(unknown[1], names) if unknown else ""))


def _parser(kind: type, prog: str, description: str, positional: str | None, recipes: Path | None) -> _Parser:
    """Makes a parser that leaves every value as text; its help has a group of options for each base of ``kind``."""
    usage = f"{prog} {positional.upper() if positional else ''} [options]"
    parser = _Parser(prog, usage, description, allow_abbrev=False, argument_default=SUPPRESS)
    unused = getattr(kind, "unused", ())
    parser.add_argument("--config", metavar="FILE.yaml", help="values of the options below, as name: value")
    if recipes:
        names = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
        parser.add_argument("--recipe", metavar="NAME", help=f"a --config that comes with mxa: {names}")
    for base in (base for base in kind.__mro__ if is_dataclass(base)):
        own = [f for f in fields(kind) if _declared_by(kind, f.name) is base and f.name not in unused]
        texts = {p.arg_name: p.description for p in require("docstring_parser", "train").parse_from_object(base).params}
        block = parser.add_argument_group((base.__doc__ or "").partition("\n")[0].rstrip("."))
        for field in own:
            _add(block, field, get_type_hints(kind)[field.name], texts.get(field.name), field.name == positional)
    return parser


def _declared_by(kind: type, name: str) -> type:
    return next(base for base in kind.__mro__ if name in getattr(base, "__annotations__", {}))


def _add(block: Any, field: Field, hint: Any, text: str | None, positional: bool) -> None:
    inner = [one for one in _options(hint) if one is not NoneType]
    default = "" if field.default in (MISSING, None, False, ()) else f" (default: {_shown(field.default)})"
    how: dict[str, Any] = {"help": f"{' '.join((text or '').split())}{default}".replace("%", "%%")}
    if inner == [bool]:
        block.add_argument(f"--{field.name.replace('_', '-')}", action=BooleanOptionalAction, **how)
        return
    several = len(inner) == 1 and get_origin(inner[0]) is tuple
    if several:
        kinds = get_args(inner[0])
        how |= {"nargs": "+" if kinds[-1] is Ellipsis else len(kinds)}
        inner = list(_options(kinds[0]))
    if len(inner) == 1 and get_origin(inner[0]) is Literal:
        how["metavar"] = "{" + ",".join(map(str, get_args(inner[0]))) + "}"
    else:
        how["metavar"] = field.name.upper()
    if positional and field.default is not MISSING:
        how["nargs"] = "?"
    elif positional:
        how |= {"nargs": "*", "default": SUPPRESS} if several else {"nargs": "?"}
    block.add_argument(field.name if positional else f"--{field.name.replace('_', '-')}", **how)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _recipe(folder: Path, name: str) -> Path:
    known = {path.stem: path for path in folder.glob("*.yaml")}
    if name not in known:
        raise InputError(f"no recipe {name!r}: give one of {', '.join(sorted(known))}")
    return known[name]


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits_none(hint: Any) -> bool:
    return NoneType in _options(hint)


def _wanted(hint: Any) -> str:
    """A field's type in words."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, options))}"
    if get_origin(hint) is tuple:
        return f"a list of {_wanted(options[0])}" if options[-1] is Ellipsis else f"a list of {len(options)} numbers"
    if options and get_origin(hint) is not dict:
        return " or ".join(map(_wanted, options))
    return _WORDS.get(get_origin(hint) or hint, "null")


def unknown_field(name: Any, known: Iterable[str]) -> str:
    """Says that a field is unknown, and which known one is like it."""
    return f"no field {name}{_perhaps(str(name), known)}"


def _perhaps(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (perhaps {close[0]})" if close else ""
