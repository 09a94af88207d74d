"""Values of YAML, and of a command line, as the fields of a dataclass want them."""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.error import MarkedYAMLError

from .errors import InputError

__all__ = [
    "checked_fields",
    "group",
    "kinds_of",
    "perhaps",
    "read_named",
    "read_settings",
    "read_yaml",
    "read_yaml_file",
    "unknown_field",
    "write_yaml",
]

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    dict: "a mapping",
}
_LARGEST, _LONGEST, _MOST, _DEEPEST = 1 << 20, 10_000, 20_000, 50  # bytes, characters of a value, values, levels
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class TooMuch(MarkedYAMLError):
    """More YAML than a configuration has."""


class _Loader(yaml.SafeLoader):
    """A safe loader that counts: a few lines of YAML can name each other a billion times, or themselves."""

    count = depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self.count, self.depth = self.count + 1, self.depth + 1
        if self.depth > _DEEPEST:
            raise TooMuch(None, None, f"more than {_DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and not hasattr(node, "size"):
            raise TooMuch(None, None, "a value that holds itself", mark)
        if isinstance(node, yaml.ScalarNode):
            node.size = 1
            if len(node.value) > _LONGEST:
                raise TooMuch(None, None, f"a value of more than {_LONGEST:,} characters", mark)
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else [n for pair in node.value for n in pair]
            names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
            if twice := next((name for name in names if isinstance(name, str) and names.count(name) > 1), None):
                raise MarkedYAMLError(None, None, f"{twice} stands there twice", mark)
            node.size = 1 + sum(part.size for part in parts)
        if max(node.size, self.count) > _MOST:
            raise TooMuch(None, None, f"more than {_MOST:,} values", mark)
        return node


def read_yaml(text: str) -> Any:
    """Reads YAML; numbers such as 1e-3, which YAML 1.1 takes for text, are numbers.

    Raises:
        yaml.YAMLError: it is not YAML, or more of it than a configuration has.
    """
    if len(text) > _LARGEST:
        raise yaml.YAMLError(f"it holds more than {_LARGEST:,} characters")
    try:
        return _numbers(yaml.load(text, _Loader))
    except yaml.YAMLError:
        raise
    except Exception as error:  # a tag or a date that a value does not fit raises one of many classes
        raise yaml.YAMLError(f"a value does not read ({type(error).__name__})") from None


def read_yaml_file(path: Path) -> dict[str, Any]:
    """Reads a YAML file of ``name: value``.

    Raises:
        InputError: it does not read, holds something else, or a command (``pipe:``), which a file must not give.
    """
    try:
        with path.open("rb") as file:
            values = read_yaml(file.read(_LARGEST + 1).decode())
    except UnicodeDecodeError:
        raise InputError(f"cannot read {path}: it is not UTF-8: save it as UTF-8") from None
    except (OSError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        what = f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())
        raise InputError(f"cannot read {path}: {what}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold lines of name: value, got {type(values).__name__}")
    for name, value in values.items():
        if name != "note" and re.search(r"^\s*pipe:", str(value), re.IGNORECASE):
            raise InputError(
                f"{path}: {name} names a command to run (pipe:), which only the command line may: take it out, and "
                "give it there with --allow-pipe"
            )
    return values


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the ``config.yaml`` of a run, and what ``local.yaml`` beside it says of this machine.

    Raises:
        InputError: as ``read_yaml_file``.
    """
    local = path.with_name("local.yaml")
    return {**read_yaml_file(path), **(read_yaml_file(local) if local.is_file() else {})}


def write_yaml(values: Mapping[str, Any]) -> str:
    """Writes values as YAML that ``read_yaml`` reads: a value that is there twice is written twice."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


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
        The name, and the fields if there are some.

    Raises:
        InputError: it is neither.
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
    """The fields of a configuration that one of its groups declares, by name."""
    return {field.name: getattr(config, field.name) for field in fields(kind)}


def checked_fields(kind: type, values: Mapping[str, Any], where: str, option: bool = False) -> dict[str, Any]:
    """Turns values, as YAML or a command line has them, into what a dataclass's fields want.

    Args:
        kind: The dataclass.
        values: By field; text of a number is a number, a list is a tuple.
        where: What holds them, for the error.
        option: Name the fields as options.

    Raises:
        InputError: an unknown field, or a value of another kind; it says what is wanted.
    """
    declared = get_type_hints(kind)
    hints = {f.name: declared[f.name] for f in fields(kind)}
    for name in values:
        if name not in hints:
            raise InputError(f"{where}: {unknown_field(name, hints)}")
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    for name in values:
        parser.add_argument(f"--{name}", type=hints[name])
    checked = {}
    for name, value in values.items():
        named = f"--{name.replace('_', '-')}" if option else f"{where}: {name}"
        _check_texts(named, value)
        try:
            kinds = kinds_of(hints[name])
            if (value is None and NoneType not in kinds) or (bool in kinds and not isinstance(value, bool | None)):
                raise ArgumentError(None, "")  # what jsonargparse lets through
            checked[name] = parser.parse_object({name: value})[name]
        except ArgumentError:
            raise InputError(f"{named} must be {_wanted(hints[name])}, got {value!r}") from None
    return checked


def _check_texts(named: str, value: Any) -> None:
    """Refuses text that is too much YAML: jsonargparse reads text as YAML again, without a bound."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    for text in value if isinstance(value, (list, tuple)) else [value] if isinstance(value, str) else ():
        if not isinstance(text, str):
            _check_texts(named, text)
            continue
        try:
            read_yaml(text)
        except TooMuch as error:
            raise InputError(f"{named} holds {error.problem}") from None
        except yaml.YAMLError:  # it is text
            pass


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The kinds that a field may have."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _wanted(hint: Any) -> str:
    """A field's type in words."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, options))}"
    if get_origin(hint) is tuple:
        return f"a list of {_wanted(options[0])}" if options[-1] is Ellipsis else f"a list of {len(options)}"
    if options and get_origin(hint) is not dict:
        return " or ".join(map(_wanted, options))
    return _WORDS.get(get_origin(hint) or hint, "null")


def unknown_field(name: Any, known: Iterable[str]) -> str:
    """Says that there is no such field, and which is like it."""
    return f"no field {name}{perhaps(str(name), known)}"


def perhaps(name: str, known: Iterable[str]) -> str:
    """Which known name is like one that is not known, for an error."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (perhaps {close[0]})" if close else ""
