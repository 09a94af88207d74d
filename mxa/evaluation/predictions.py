"""Scores of a model on images, in memory and as a file: what every table of an evaluation is made from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..data import Records
from ..data.collections.generic_table import COLUMNS, find_columns, plain_text
from ..data.collections.image_paths import plain_path
from ..data.records import SPLIT_NAMES, normal_sex, years
from ..data.table_files import METADATA, open_parquet, read_metadata
from ..data.tables import label_cells, numbers, read_header, read_table_file
from ..data.views import normal_view
from ..labels import align, canonical
from ..metrics.operating import logit, sigmoid
from ..utils.errors import InputError, require
from ..utils.files import atomic_write
from ..utils.json_files import to_json

__all__ = [
    "Arm",
    "CASE_COLUMNS",
    "MissingScores",
    "Predictions",
    "by_study",
    "has_targets",
    "of_records",
    "read_metadata",
    "read_predictions",
    "stack",
]

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".xlsx", ".gz")
CASE_COLUMNS = ("image", "patient", "study", "view", "sex", "age", "split")
_COLUMNS = b"mxa columns"  # of the Parquet file's metadata


class MissingScores(InputError):
    """A file lacks the scores of images."""


@dataclass(frozen=True)
class Predictions:
    """Scores and targets of N images (or studies).

    Attributes:
        labels: Names of the L columns.
        logits: ``(N, L)``.
        targets: ``(N, L)``: 1, 0, NaN where masked.
        cases: A row an image: ``image``, ``patient``, ``study``, ``view``, ``sex``, ``age``, ``split`` and any other
            column, to group by.
        metadata: Where they come from: model, hash of the weights, collection, split, policies.
    """

    labels: tuple[str, ...]
    logits: np.ndarray
    targets: np.ndarray
    cases: pd.DataFrame
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits)

    def rows(self, keep: np.ndarray) -> Predictions:
        """Keeps rows, given as indices or as a mask."""
        cases = self.cases[keep] if keep.dtype == bool else self.cases.iloc[keep]
        cases = cases.reset_index(drop=True)
        return replace(self, logits=self.logits[keep], targets=self.targets[keep], cases=cases)

    def check(self) -> None:
        """Refuses scores that are not finite.

        Raises:
            InputError: there is one; the message names the image and the label.
        """
        bad = ~np.isfinite(self.logits)
        if bad.any():
            row, label = np.argwhere(bad)[0]
            raise InputError(
                f"{int(bad.any(1).sum())} image(s) have a score that is not finite, such as {self.labels[label]} of "
                f"{self.cases['image'].iloc[row]}: the training diverged, or a cell is blank"
            )

    def frame(self, targets: bool = True) -> pd.DataFrame:
        """Returns a row an image: the cases, ``logit:LABEL`` and ``target:LABEL``."""
        columns = {f"logit:{name}": self.logits[:, i] for i, name in enumerate(self.labels)}
        columns |= {f"target:{name}": self.targets[:, i] for i, name in enumerate(self.labels) if targets}
        return self.cases.assign(**columns)

    def save(self, path: Path, targets: bool = True) -> None:
        """Writes ``frame`` as a Parquet file, ``metadata`` in its metadata."""
        write_scores(path, self.frame(targets), self.metadata)


def write_scores(path: Path, frame: pd.DataFrame, metadata: Mapping[str, Any]) -> None:
    """Writes a Parquet file of scores, small and whole or not at all."""
    pyarrow = require("pyarrow", "train")
    require("pyarrow.parquet", "train")
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    own = {METADATA: to_json(metadata), _COLUMNS: to_json(table.column_names)}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **own})
    scores = [name for name in table.column_names if name.startswith("logit:")]
    others = [name for name in table.column_names if name not in scores]
    packed = {"compression": "zstd", "use_dictionary": others, "use_byte_stream_split": scores}
    packed["write_page_checksum"] = True
    atomic_write(path, lambda temporary: pyarrow.parquet.write_table(table, temporary, **packed))


def of_records(records: Records, logits: np.ndarray, metadata: Mapping[str, Any]) -> Predictions:
    """Makes predictions of a model's logits ``(N, L)`` and the records that they belong to, row by row."""
    texts = {"image": "paths", "patient": "patients", "study": "studies", "view": "views", "sex": "sexes"}
    cases = {name: getattr(records, column).astype(object) for name, column in texts.items()}
    cases = pd.DataFrame({**cases, "age": records.ages, "split": records.splits.astype(object)})
    return Predictions(records.labels, logits, records.targets, cases, dict(metadata))


def stack(first: Predictions, *others: Predictions) -> Predictions:
    """Joins the rows of several predictions; labels and ``metadata`` are those of the first.

    Raises:
        InputError: their labels differ.
    """
    if any(other.labels != first.labels for other in others):
        raise InputError("scores of different labels cannot be put together")
    all_of = (first, *others)
    logits, targets = (np.concatenate([getattr(one, k) for one in all_of]) for k in ("logits", "targets"))
    cases = pd.concat([one.cases for one in all_of], ignore_index=True)
    return replace(first, logits=logits, targets=targets, cases=cases)


def has_targets(path: Path) -> bool:
    """Says whether a file of scores has targets too.

    Raises:
        InputError: there is no such file, or it is not a table.
    """
    return any(name.startswith("target:") for name in read_header(_file_of_scores(path)))


def _file_of_scores(path: str | Path) -> Path:
    """Refuses what is no file, and one whose columns are not those that were written."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file of scores {path}: mxa teach and mxa evaluate write them")
    if path.suffix.lower() in (".parquet", ".pq"):
        with open_parquet(path) as file:
            names = to_json(file.schema_arrow.names).encode()
            written = (file.schema_arrow.metadata or {}).get(_COLUMNS, names)
        if written != names:
            raise InputError(f"{path} is damaged: its columns are not those that were written; write the scores again")
    return path


def read_predictions(path: str | Path, records: Records | None = None) -> Predictions:
    """Reads scores of any program from a Parquet, CSV or Excel file.

    The file has a column of image names and a column for each label: ``logit:LABEL``, or ``LABEL`` or
    ``probability:LABEL`` with probabilities in [0, 1]. Targets are in columns ``target:LABEL``, or come with
    ``records``. The columns of patient, study, view, sex, age and split may have any of the names that
    ``mxa.data.collections.generic_table.COLUMNS`` lists. Without a column of patients every image is its own patient.

    Args:
        path: The file.
        records: The collection. A score is found by the name of its image; targets and all else come from here. An
            image without a score is an error; a score without an image is left out.

    Raises:
        InputError: no such file, no image column, no scores, a score out of range, or an image that cannot be found.
    """
    path = _file_of_scores(path)
    if "runs" in (metadata := read_metadata(path)):
        raise InputError(f"{path} holds several runs: name those of one arm as {path}:ARM")
    return from_table(path, read_table_file(path, ()), metadata, records)


def from_table(
    path: Path, table: pd.DataFrame, metadata: Mapping[str, Any], records: Records | None = None
) -> Predictions:
    """Makes scores of the rows of a file, as ``read_predictions`` describes them."""
    names = find_columns(path, table.columns, {})
    images = table[names["path"]].map(lambda name: plain_path(str(name)))
    if (images == "").any():
        raise InputError(f"{path}: row {int((images == '').argmax()) + 1} names no image")
    if images.duplicated().any():
        raise InputError(f"{path}: {images[images.duplicated()].iloc[0]} has more than one row")
    table[names["path"]] = images
    known = set(names.values())
    plain = [c for c in table.columns if c not in known and ":" not in c]
    targets = {c.partition(":")[2]: c for c in table if c.startswith("target:")}
    scored = [c for c in table if c.startswith(("logit:", "probability:"))]
    scores = {c.partition(":")[2]: c for c in scored}
    if len(scores) < len(scored):
        raise InputError(f"{path} has a label both as logit: and as probability:; keep one of them")
    if not scores:
        wanted = {canonical(label) for label in (records.labels if records is not None else targets)}
        scores = {c: c for c in plain if canonical(c) in wanted}
    if records is None and not targets:
        raise InputError(f"{path} has no columns target:LABEL: name the collection, --data and --root")
    if not scores:
        raise InputError(f"{path} has no scores: name a column logit:LABEL, probability:LABEL or LABEL for each label")
    logits = np.stack([_logits(table[c], c, path) for c in scores.values()], axis=1)
    metadata = {"scores": path.name, **metadata}
    if records is not None:
        return _joined(Predictions(tuple(scores), logits, np.empty(0), table, metadata), names["path"], records, path)
    index = align(tuple(targets), tuple(scores))
    if None in index:
        raise InputError(f"{path} has no column target:{list(scores)[index.index(None)]}")
    columns = [targets[list(targets)[i]] for i in index]
    cells = np.stack([label_cells(table[c], f"{path}: column {c!r}") for c in columns], axis=1)
    cells[cells == -1] = np.nan
    cases = table.drop(columns=[*scores.values(), *targets.values()]).rename(
        columns={own: "image" if name == "path" else name for name, own in names.items()}
    )
    return Predictions(tuple(scores), logits, cells, _complete(cases), metadata)


def _logits(column: pd.Series, name: str, path: Path) -> np.ndarray:
    scores = numbers(column)
    if name.startswith("logit:"):
        return scores
    if (np.nan_to_num(scores) < 0).any() or (np.nan_to_num(scores) > 1).any():
        label = name.removeprefix("probability:")
        raise InputError(
            f"{path}: column {name!r} holds values outside 0 to 1: call it logit:{label} if they are logits"
        )
    return logit(scores)


def _complete(cases: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns that are missing, and writes views, sexes, ages and splits as the collections do."""
    cases = cases.assign(**{name: "" for name in CASE_COLUMNS if name not in cases and name != "age"})
    for name in [n for n in CASE_COLUMNS if n != "age"]:
        cases[name] = plain_text(cases[name])
    for name in ("patient", "study"):
        cases[name] = cases[name].where(cases[name] != "", cases["image"])
    if unknown := sorted(set(cases["split"].str.lower()) - {"", *SPLIT_NAMES}):
        raise InputError(f"unknown split {', '.join(unknown[:3])}: give train, val or test")
    ages = years(cases["age"].astype(str)) if "age" in cases else np.nan
    return cases.assign(view=cases["view"].map(normal_view), sex=cases["sex"].map(normal_sex), age=ages)


def _joined(scores: Predictions, column: str, records: Records, path: Path) -> Predictions:
    """Finds the score of every image of a collection: by path, else by file name where both sides have it once."""
    rows = {name: i for i, name in enumerate(scores.cases[column])}
    wanted = list(map(plain_path, records.paths))
    ours, theirs = (Counter(map(os.path.basename, names)) for names in (wanted, rows))
    files = {os.path.basename(name): i for name, i in rows.items() if theirs[os.path.basename(name)] == 1}

    def row_of(name: str) -> int | None:
        base = os.path.basename(name)
        return rows[name] if name in rows else files.get(base) if ours[base] == 1 else None

    found = [row_of(name) for name in wanted]
    if missing := [p for p, i in zip(records.paths, found, strict=True) if i is None]:
        raise MissingScores(f"{path} has no score of {len(missing)} of {len(found)} images, such as {missing[0]}")
    index = align(scores.labels, records.labels)
    held = [k for k, i in enumerate(index) if i is not None]
    if not held:
        raise InputError(f"{path} has {', '.join(scores.labels)}, and none of {', '.join(records.labels)}")
    logits = scores.logits[found][:, [index[k] for k in held]]
    labels = tuple(records.labels[k] for k in held)
    made = of_records(records.with_labels(labels), logits, scores.metadata)
    extra = scores.cases.iloc[found].reset_index(drop=True)
    extra = extra[[c for c in extra if c not in made.cases and ":" not in c and c != column and c not in COLUMNS]]
    return replace(made, cases=pd.concat([made.cases, extra], axis=1))


@dataclass(frozen=True)
class Arm:
    """One model, or the seeds of one recipe, with scores of the same images.

    Attributes:
        name: What it is called in the report.
        scored: Scores and targets of the split that is reported, one of each seed.
        val: The same of validation patients, on which thresholds and temperatures are chosen; or none.
    """

    name: str
    scored: tuple[Predictions, ...]
    val: tuple[Predictions, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.scored[0].labels

    @property
    def targets(self) -> np.ndarray:
        """Targets ``(N, L)``, the same for every seed."""
        return self.scored[0].targets


def by_study(predictions: Predictions, how: Literal["mean", "max"]) -> Predictions:
    """Makes one case of all images of a study: its score the mean or the maximum of its images' probabilities.

    A study is positive for a label where any of its images is, and negative where none is and one is negative. What its
    images do not share, such as the view, is unknown. Its name is that of its first image.
    """
    keys = predictions.cases[["split", "patient", "study"]].astype(str).agg("\x00".join, axis=1)
    index = pd.factorize(keys)[0]
    count = index.max() + 1
    first = np.full(count, len(index))
    np.minimum.at(first, index, np.arange(len(index)))
    if how == "max":
        logits = np.full((count, len(predictions.labels)), -np.inf)
        np.maximum.at(logits, index, predictions.logits)
    else:
        sums = np.zeros((count, len(predictions.labels)))
        np.add.at(sums, index, sigmoid(predictions.logits))
        logits = logit(sums / np.bincount(index)[:, None])
    targets = np.full(logits.shape, -1.0)
    np.maximum.at(targets, index, np.nan_to_num(predictions.targets, nan=-1.0))
    cases = predictions.cases.iloc[first].reset_index(drop=True)
    for name in [c for c in cases if c not in ("image", "patient", "study", "split")]:
        differ = predictions.cases.groupby(index)[name].nunique(dropna=False).to_numpy() > 1
        cases[name] = cases[name].where(~differ, np.nan if name == "age" else "")
    metadata = {**predictions.metadata, "level": f"study, {how} of its images"}
    return Predictions(predictions.labels, logits, np.where(targets < 0, np.nan, targets), cases, metadata)
