"""How commands name models: one each, or A,B,C for the seeds of one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..utils.errors import InputError
from .predictions import SUFFIXES
from .runs import named_runs, of_run

__all__ = ["read_models"]


def read_models(models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reads the models that a command was given: run folders, timm names or files of scores; A,B,C are seeds of one.

    ``FILE:ARM`` stands for the seeds of an arm in the file that ``mxa ablate`` writes (see ``runs.named_runs``).

    Returns:
        The arguments of each model, by the model's name, and a short name for each argument. No two names are alike:
        ``runs/a-seed0,runs/a-seed1`` gives ``{"a (2 seeds)": {"runs/a-seed0": "a-seed0", "runs/a-seed1": "a-seed1"}}``.

    Raises:
        InputError: no model, an empty one, or an argument that is there twice.
    """
    groups = [[name for argument in model.split(",") for name in named_runs(argument.strip())] for model in models]
    groups = [[argument for argument in group if argument] for group in groups]
    if not all(groups) or not groups:
        raise InputError("name at least one model; seeds of one are separated by commas without spaces: A,B,C")
    arguments = list(itertools.chain(*groups))
    places = [str(Path(argument).resolve()) if Path(argument).exists() else argument for argument in arguments]
    if twice := {argument for argument, place in zip(arguments, places, strict=True) if places.count(place) > 1}:
        raise InputError(f"{', '.join(sorted(twice))} is named twice")
    short: dict[str, str] = {}
    for argument in arguments:
        name = _short(argument)
        short[argument] = _unlike(short.values(), name, f"{Path(argument).absolute().parent.name}-{name}")
    found: dict[str, dict[str, str]] = {}
    for seeds in groups:
        named = {argument: short[argument] for argument in seeds}
        found[_unlike(found, _model_name([*named.values()]))] = named
    return found


def _short(argument: str) -> str:
    if held := of_run(argument):
        return held[1]
    path = Path(argument)
    while path.suffix in SUFFIXES:
        path = path.with_suffix("")
    return path.name or argument


def _unlike(taken: Collection[str], *wished: str) -> str:
    """The first of some names that is not taken; where all are, the last one with plus signs."""
    for name in wished:
        if name not in taken:
            return name
    while name in taken:
        name += "+"
    return name


def _model_name(seeds: Sequence[str]) -> str:
    if len(seeds) == 1:
        return seeds[0]
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*seeds, strict=False))
    shared = re.sub(r"([-_. ]+seed)?[-_. ]*$", "", "".join(column[0] for column in letters))
    return f"{shared or seeds[0]} ({len(seeds)} seeds)"
