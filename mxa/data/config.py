"""Which images and labels a command reads: the options that every command on a collection shares."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..utils.config import checked_fields, group, read_settings
from ..utils.errors import InputError
from ..utils.json_files import read_json
from .names import Collection, is_url

if TYPE_CHECKING:
    from typing_extensions import Self

    from .dataset import CXRDataset

__all__ = ["DataConfig", "absolute_root"]

_logger = logging.getLogger(__name__)
_DEFAULTS = {"data": "phantom", "merge": False, "views": "frontal", "uncertain": "U-Ones"}
#: Not taken from a run on another collection.
_OF_ONE_COLLECTION = ("data", "root", "columns", "blank", "test_fraction", "boxes", "labels_from")


@dataclass(kw_only=True)
class DataConfig:
    """Which images and labels; by default those that the run was trained on, where there is a run."""

    data: Collection | None = None
    """Collection; without a run the default is phantom, drawn images."""
    root: str | None = None
    """Folder of the collection; the CSV, Parquet or Excel file for "table"; a folder or URL for "shards"."""
    columns: str | None = None
    """What a table's columns are called: path=file,patient=MRN; findings=NAME is one that names all findings."""
    labels: str | tuple[str, ...] | None = None
    """"chexpert", "nih", "padchest", "vindr", "xrv" or names separated by commas (a name with a comma in
    double quotes); the collection's own by default."""
    labels_from: str | None = None
    """File of mxa teach, whose probabilities are the labels of --data images."""
    merge: bool | None = None
    """Make labels that the collection lacks from others, such as Lung Lesion from Nodule and Mass (docs/data.md)."""
    views: str | None = None
    """frontal (the default), lateral, all, AP or PA."""
    uncertain: str | None = None
    """What an uncertain label becomes in training: U-Ones (the default), U-Zeros, U-Ignore or LSR; or by label,
    "U-Ones: Edema; U-Zeros"."""
    blank: str | None = None
    """What a blank label means: negative or ignore, also by label; the collection's convention by default."""
    test_fraction: float | None = None
    """Share of the patients to cut for a test split, where the collection has none, such as 0.2."""
    boxes: str | None = None
    """File of boxes around findings (docs/data.md), or "own": those that the collection has."""
    allow_pipe: bool = False
    """Run the command of --root pipe:COMMAND, which gives the files of shards; for the command line alone."""

    unused: ClassVar[tuple[str, ...]] = ()  # fields above that a command does not use
    of_the_command_line: ClassVar[tuple[str, ...]] = ("allow_pipe",)  # fields that no file sets

    def resolved(self, *runs: str | Path) -> Self:
        """Fills the fields that are None from the ``config.yaml`` of run folders, then with defaults.

        If ``data`` is not the collection that a run was trained on, ``root``, ``columns``, ``blank``, ``test_fraction``
        and ``boxes`` are not taken from it.

        Args:
            runs: The models that a command was given. What is not a folder (a timm name, a file of scores) is skipped.

        Raises:
            InputError: a field that the command does not use, runs that were trained on different data or with another
                test split, or a run folder that does not say what it was trained on.
        """
        if given := [name for name in self.unused if getattr(self, name) is not None]:
            raise InputError(f"{type(self).__name__} does not use {', '.join(given)}: leave it out")
        free = [k for k in self.data_fields() if getattr(self, k) is None and k not in self.unused]
        found = _shared({str(run): _trained_on(Path(run), self.data) for run in runs if Path(run).is_dir()}, free)
        taken = {k: found[k] for k in free if found.get(k) is not None}
        self._check_test_patients(runs)
        if "data" in taken:
            said = ", ".join(f"{k} {v}" for k, v in taken.items() if v is not False)
            _logger.info("data as %s was trained on: %s", runs[0], said)
        defaults = {k: v for k, v in _DEFAULTS.items() if k in free}
        return replace(self, **{**defaults, **taken})

    def _check_test_patients(self, runs: Sequence[str | Path]) -> None:
        """Refuses to cut test patients whom a run was trained on."""
        for run in runs if self.test_fraction is not None else ():
            if self.trained(run) and _said(Path(run))["test_fraction"] != self.test_fraction:
                raise InputError(
                    f"{run} was trained without --test-fraction {self.test_fraction}, on patients who would test it: "
                    "leave the option out, or train again with it"
                )

    def trained(self, run: str | Path) -> bool:
        """Says whether a run folder was trained on this collection, wherever it lies; False for another folder or file.

        A table, a folder and shards are known by the name of their root.
        """
        found = _said(Path(run))
        if found["data"] is None or self.data not in (None, found["data"]):
            return False
        roots = [root for root in (self.root, found["root"]) if root is not None]
        named = found["data"] not in ("table", "folder", "images", "shards")
        return named or len({Path(root).name for root in roots}) < 2

    def check_cut(self, run: str | Path, dataset: CXRDataset) -> None:
        """Refuses splits that are cut otherwise than when a run was trained on them, because the table has changed.

        Raises:
            InputError: images of training could be in the split.
        """
        path = Path(run) / "summary.json"
        if not (dataset.records.cut and path.is_file() and self.trained(run)):
            return
        if read_json(path).get("splits_sha256", dataset.records.cut) != dataset.records.cut:
            raise InputError(
                f"{self.where()} has changed since {run} was trained, and its splits are cut anew: images of training "
                f"could be in {dataset.records.split}. Put its rows back (--skip-bad leaves out images that do not "
                "read), give it a column split, or train again"
            )

    def check_boxes(self, run: str | Path, split: str) -> None:
        """Refuses to score a run on the images whose boxes it has learnt.

        Raises:
            InputError: the split holds training images of the collection of those boxes.
        """
        path = Path(run) / "config.yaml"
        said = read_settings(path) if path.is_file() else {}
        if said.get("boxes") is None or split not in ("train", "all"):
            return
        data = said.get("boxes_data") or said.get("data")
        root = said.get("boxes_root") if said.get("boxes_data") else said.get("root")
        if data == self.data and (None in (root, self.root) or Path(root).name == Path(self.root).name):
            raise InputError(
                f"{run} has learnt boxes of the training split of {self.where()}: give --split val or test"
            )

    def open(self, split: str | None, fold: tuple[int, int] | None = None) -> CXRDataset:
        """Opens a split with ``create_dataset``; the fields must be resolved."""
        from .create import create_dataset

        said = {k: v for k, v in self.data_fields().items() if k not in ("data", "root", "boxes") and v is not None}
        return create_dataset(self.data, self.root, split, fold=fold, **said)

    def data_fields(self) -> dict[str, Any]:
        """Returns the fields of this class by name, for another command on the same data."""
        return group(self, DataConfig)

    def where(self) -> str:
        """Names the collection and its root in a message."""
        return f"{self.data} {self.root}" if self.root else str(self.data)


def absolute_root(root: str | Path | None) -> str | None:
    """Makes a root absolute; a URL stays as it is."""
    return None if root is None else str(root) if is_url(root) else str(Path(root).resolve())


def _said(run: Path) -> dict[str, Any]:
    """Reads the data fields of a run's ``config.yaml``; None for what it does not say."""
    path = run / "config.yaml"
    settings = read_settings(path) if path.is_file() else {}
    names = [field.name for field in fields(DataConfig) if field.name not in DataConfig.of_the_command_line]
    found = checked_fields(DataConfig, {k: settings[k] for k in names if settings.get(k) is not None}, str(path))
    return dict.fromkeys(names) | found


def _trained_on(run: Path, data: str | None) -> dict[str, Any]:
    """Reads the data fields of a run's ``config.yaml``, without its collection's own if ``data`` is another."""
    found = _said(run)
    if data is None and found["data"] is None:
        raise InputError(f"{run} does not say what it was trained on: give --data (and --root)")
    if data not in (None, found["data"]):
        found = {k: v for k, v in found.items() if k not in _OF_ONE_COLLECTION}
    return found


def _shared(said: Mapping[str, dict[str, Any]], free: list[str]) -> dict[str, Any]:
    """Returns the fields that all runs share; ``data`` and ``root`` may differ only where an option gives them."""
    (first, found), *others = said.items() if said else [("", {})]
    for name, other in others:
        if differ := [k for k in ("data", "root") if k in free and other.get(k) != found.get(k)]:
            told = ", ".join(f"{k} {found.get(k)} and {other.get(k)}" for k in differ)
            raise InputError(f"{first} and {name} were trained on different data ({told}): give --data and --root")
    return {k: v for k, v in found.items() if all(other.get(k) == v for _, other in others)}
