"""The runs of a comparison in one file of scores: a row for each image of each run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..data.tables import read_table_file
from ..utils.errors import InputError
from ..utils.files import alone_in
from .predictions import Predictions, from_table, read_metadata, write_scores

__all__ = ["Run", "add_run", "named_runs", "of_run", "read_runs", "runs_metadata", "write_runs"]


class Run(NamedTuple):
    """One training of an arm: its seed and, in cross-validation, the fold that it is tested on."""

    arm: str
    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        """The arm, the seed and the fold as one word, for a file or a row of a table."""
        return f"{self.arm}-seed{self.seed}" + ("" if self.fold is None else f"-fold{self.fold}")


def write_runs(path: Path, runs: Mapping[Run, Predictions]) -> None:
    """Writes runs into one Parquet file, with float32 scores.

    Its columns are ``arm``, ``seed``, ``fold`` (where there are folds) and those that ``Predictions.save`` writes. The
    ``metadata`` of each run is in the metadata of the file.
    """
    frames = []
    for run, scores in runs.items():
        frame = scores.frame()
        numbers = {name: "float32" for name in frame if name.startswith("logit:") or name == "age"}
        key = {name: value for name, value in run._asdict().items() if value is not None}
        frames.append(pd.concat([pd.DataFrame(key, frame.index), frame.astype(numbers)], axis=1))
    metadata = {"runs": [{**run._asdict(), "metadata": scores.metadata} for run, scores in runs.items()]}
    write_scores(path, pd.concat(frames, ignore_index=True), metadata)


def add_run(path: Path, run: Run, scores: Predictions) -> None:
    """Puts a run beside those that a file holds, or in the place of its old scores; several processes may do so."""
    with alone_in(path.parent, "mxa ablate", wait=True):
        write_runs(path, {**read_runs(path), run: scores})


def runs_metadata(path: Path) -> dict[Run, dict[str, Any]]:
    """Reads which runs a file holds, in order, and the ``metadata`` of each; none where there is no such file.

    Raises:
        InputError: the file holds no runs.
    """
    if not path.is_file():
        return {}
    runs = read_metadata(path).get("runs")
    if runs is None:
        raise InputError(f"{path} does not hold the runs of a comparison: give the scores.parquet of mxa ablate")
    try:
        return {Run(one["arm"], one["seed"], one["fold"]): dict(one["metadata"]) for one in runs}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: its metadata are damaged: run mxa ablate again") from None


def read_runs(path: Path, name: str | None = None) -> dict[Run, Predictions]:
    """Reads the scores of every run of a file, in order, or of the one of a name; none where there is no such file.

    Raises:
        InputError: the file holds no runs, or its scores cannot be read.
    """
    metadata = {run: one for run, one in runs_metadata(path).items() if name in (None, run.name)}
    if not metadata:
        return {}
    table = read_table_file(path, ())
    keys = [name for name in Run._fields if name in table]
    rows = table.groupby(keys, sort=False).indices
    return {
        run: from_table(path, table.iloc[rows[run[: len(keys)]]].drop(columns=keys).reset_index(drop=True), one)
        for run, one in metadata.items()
    }


def named_runs(argument: str) -> list[str]:
    """Expands ``FILE:ARM`` to ``FILE:RUN`` for every run of that arm; any other argument stands for itself.

    Raises:
        InputError: the file has no such arm or run.
    """
    if (found := of_run(argument)) is None:
        return [argument]
    path, name = found
    runs = runs_metadata(path)
    if not (chosen := [run for run in runs if name in (run.arm, run.name)]):
        held = ", ".join(dict.fromkeys(run.arm for run in runs)) or "no run: there is no such file"
        raise InputError(f"{argument}: the file has no arm or run {name!r}; it has {held}")
    return [f"{path}:{run.name}" for run in chosen]


def of_run(argument: str) -> tuple[Path, str] | None:
    """Splits ``FILE:RUN`` in two; None for an argument of another kind."""
    found = re.fullmatch(r"(.+?\.(?:parquet|pq)):(.+)", argument)
    return found and (Path(found[1]), found[2])
