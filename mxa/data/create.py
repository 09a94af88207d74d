"""Creates the dataset of any collection."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..labels import align, apply_policies, check_known, resolve_labels
from ..utils.errors import InputError
from .collections.chexpert import CheXpert, CheXpertCheXbert, CheXpertVisualCheXbert
from .collections.folder import Folder
from .collections.generic_table import Table, parse_columns
from .collections.images import Images, read_teacher
from .collections.mimic import Mimic, MimicNegBio
from .collections.nih import NIHChestXray14, NIHGoogle
from .collections.padchest import PadChest
from .collections.phantom import Phantom
from .collections.reader import CollectionReader
from .collections.vindr import VinDr
from .collections.xrv import read_xrv
from .dataset import CXRDataset
from .names import Collection, is_url
from .records import Records
from .shards import ShardDataset, ShardRecords, Shards, check_url
from .splits import check_disjoint, check_unique, divide, fold_splits, splits_sha256

__all__ = ["COLLECTIONS", "EmptySplit", "create_dataset", "from_xrv", "read_collection"]

_READERS = (Phantom, NIHChestXray14, NIHGoogle, CheXpert, CheXpertCheXbert, CheXpertVisualCheXbert, Mimic, MimicNegBio)
_READERS += (PadChest, VinDr, Table, Folder, Images, Shards)
COLLECTIONS: dict[str, type[CollectionReader]] = dict(zip(get_args(Collection), _READERS, strict=True))
_logger = logging.getLogger(__name__)


class EmptySplit(InputError):
    """A split has no image."""


def create_dataset(
    collection: str,
    root: str | Path | None = None,
    split: str | None = None,
    labels: str | Sequence[str] | None = None,
    uncertain: str | Mapping[str, str] = "U-Ones",
    blank: str | Mapping[str, str] | None = None,
    views: str | Sequence[str] = "frontal",
    merge: bool = False,
    columns: str | Mapping[str, str] | None = None,
    fold: tuple[int, int] | None = None,
    test_fraction: float | None = None,
    allow_pipe: bool = False,
    labels_from: str | Path | None = None,
) -> CXRDataset:
    """Creates the dataset of a collection.

    Args:
        collection: A name of ``COLLECTIONS``; ``"phantom"`` is drawn and has no files.
        root: The collection's folder; the CSV, Parquet or Excel file for ``"table"``.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``; CheXpert also has ``"valid"``, its official validation
            set. None is the test split, else the official validation set, else everything. Splits that the collection
            lacks are cut by patient, stratified by label: 10 % of the training patients validate.
        labels: Names in a sequence or separated by commas (a name with a comma in double quotes), or the name of a
            label space (``mxa.labels.LABEL_SPACES``). They are aligned by name, and masked where the collection lacks
            them. The collection's own by default.
        uncertain: Policy for uncertain labels in training, see ``mxa.labels.apply_policies``; in other splits they are
            masked.
        blank: Policy for blank cells; the collection's convention by default.
        views: ``"frontal"``, ``"lateral"``, ``"all"``, or a list of views. The number of images left out is logged.
        merge: Make those of ``labels`` that the collection lacks from others, as ``mxa.labels.MERGES`` says; logged.
            If the collection has only some of the labels to merge, the merged label has no negatives, whatever the
            policy for blank cells.
        columns: For a table, what its columns are called: ``"path=file,patient=MRN"`` or a mapping; ``findings`` is
            a column that names all findings.
        fold: Number (from 0) and count of the folds of a cross-validation by patient. That fold is the test split, the
            rest is divided into training and validation; the collection's own splits do not count.
        test_fraction: Share of the patients that is cut for a test split, for a collection that has none; stratified by
            label, as validation is.
        allow_pipe: For shards, run the command of a ``root`` such as ``"pipe:cat /data"``. Never set it for a root that
            comes from a file.
        labels_from: For ``"images"``, a file of ``mxa teach``: its probabilities are the labels of the training split.
            In every other split the positives are what the teacher calls: above its operating point where the file has
            one, else above 0.5.

    Raises:
        InputError: unknown collection, split, label, policy or view, a missing file or column, an image named twice, a
            patient in two splits, or an empty split.
    """
    wanted = None if labels is None else resolve_labels(labels)
    if labels_from is not None and collection != "images":
        raise InputError(f"--labels-from is for --data images; {collection} has labels of its own")
    if merge and wanted is None:
        raise InputError("--merge needs --labels: say which labels are to be made")
    records = read_collection(collection, root, split, wanted, columns, fold, test_fraction, allow_pipe)
    where = f"{collection} {root}" if root else collection
    if split is None:
        split = next((split for split in ("test", "valid") if (records.splits == split).any()), "all")
    if split == "test" and not (records.splits == "test").any():
        raise InputError(
            f"{where} has no test split: train with --test-fraction 0.2 to cut one, or use --split all; in mxa ablate "
            "--split val or --folds"
        )
    records = _keep(records, split, views, where)
    partial = []
    if merge:
        records, made, partial = records.with_merged(wanted)
        for name, merged in made.items():
            _logger.info("%s: %s is merged from %s", where, name, " or ".join(merged))
    policy = uncertain if split == "train" else "U-Ignore"
    apply_policies(records.targets[:0], records.labels, uncertain)  # a wrong policy is an error in every split
    targets = apply_policies(records.targets, records.labels, policy, blank or records.blank)
    for column in map(records.labels.index, partial):
        targets[np.isnan(records.targets[:, column]), column] = np.nan
    records = replace(records, targets=targets)
    if labels_from is not None:
        records = _of_teacher(records, labels_from, split)
    if isinstance(labels, str):
        check_known(wanted, records.labels)
    if wanted is not None:
        records = _with_labels(records, wanted, where)
    return ShardDataset(records) if isinstance(records, ShardRecords) else CXRDataset(records)


def from_xrv(
    dataset: Any, labels: str | Sequence[str] | None = None, views: str | Sequence[str] = "frontal"
) -> CXRDataset:
    """Makes a ``CXRDataset`` of a TorchXRayVision dataset; its own transforms are kept.

    Args:
        dataset: Any dataset object of TorchXRayVision, merged and filtered ones too.
        labels: As in ``create_dataset``; the dataset's pathologies by default.
        views: As in ``create_dataset``.

    Raises:
        InputError: not such a dataset, an unknown label or view, or no image left.
    """
    where = type(dataset).__name__
    records = _keep(read_xrv(dataset), "all", views, where)
    records = replace(records, targets=apply_policies(records.targets, records.labels, "U-Ignore", "ignore"))
    if labels is not None:
        records = _with_labels(records, resolve_labels(labels), where)
    return CXRDataset(records)


def read_collection(
    collection: str,
    root: str | Path | None,
    split: str | None = None,
    labels: Sequence[str] | None = None,
    columns: str | Mapping[str, str] | None = None,
    fold: tuple[int, int] | None = None,
    test_fraction: float | None = None,
    allow_pipe: bool = False,
) -> Records:
    """Reads a collection's tables and gives every row a split; label cells are not changed.

    Args:
        collection: As in ``create_dataset``.
        root: As in ``create_dataset``.
        split: Split to read, for a collection with a table for each split; ``"every"`` reads all tables.
        labels: Names of the labels wanted; all by default.
        columns: As in ``create_dataset``.
        fold: As in ``create_dataset``.
        test_fraction: As in ``create_dataset``.
        allow_pipe: As in ``create_dataset``.

    Raises:
        InputError: as ``create_dataset``.
    """
    if collection not in COLLECTIONS:
        raise InputError(f"unknown collection {collection!r}: give one of {', '.join(COLLECTIONS)}")
    if columns is not None and collection != "table":
        raise InputError(f"--columns is for --data table; {collection} has its own")
    kind = COLLECTIONS[collection](labels, parse_columns(columns) if isinstance(columns, str) else columns)
    if split not in (None, "every", *kind.splits):
        raise InputError(f"unknown split {split!r}: give one of {', '.join(kind.splits)}")
    if collection == "phantom" and root is not None:
        raise InputError(f"--data phantom is drawn and has no --root, got {root}")
    if collection != "phantom":
        if root is None:
            raise InputError(f"collection {collection!r} needs --root")
        if kind.reads_urls and is_url(root):
            check_url(root, allow_pipe)
        elif not Path(root).exists():
            raise InputError(f"no such folder or file: {root}")
    records = kind.read_all(root) if split == "every" or fold else kind.read(root, split)
    where = f"{collection} {root}"
    check_unique(records, where)
    check_disjoint(records, where)
    if test_fraction is not None:
        _check_fraction(test_fraction, records, collection, where, fold)
    percent = kind.test_percent if test_fraction is None else 100 * test_fraction
    if fold:
        divided = divide(fold_splits(records, *fold, kind.cut_by), 0, kind.cut_by)
    else:
        divided = divide(records, percent, kind.cut_by)
    if (count := records.without_patient()) and len(set(divided.splits.tolist())) > 1:
        warnings.warn(
            f"{where}: {count:,} of {len(records):,} images have no patient, and each counts as a patient of its own. "
            "If patients have several images, they may be in more than one split: give a table with patients",
            stacklevel=2,
        )
    if (divided.splits == records.splits).all():
        return divided
    return replace(divided, cut=splits_sha256(divided))


def _check_fraction(
    test_fraction: float, records: Records, collection: str, where: str, fold: tuple[int, int] | None
) -> None:
    """Refuses a share that is none, and one that would change a test split."""
    if not 0 < test_fraction < 1:
        raise InputError(f"--test-fraction is a share of the patients, between 0 and 1, got {test_fraction}")
    if fold:
        raise InputError("--test-fraction and --folds both say what tests: give one of them")
    if collection.startswith("chexpert"):
        raise InputError(
            f"{collection} has official sets to report: leave --test-fraction out, and score --split valid"
        )
    if np.isin(records.splits, ("test", "valid")).any():
        raise InputError(f"{where} has a test split of its own: leave --test-fraction out")


def _of_teacher(records: Records, path: str | Path, split: str) -> Records:
    """Takes the labels from a file of mxa teach."""
    labels, probabilities, points = read_teacher(Path(path), records)
    called = np.where(np.isnan(probabilities), np.nan, probabilities > points)
    targets = (probabilities if split == "train" else called).astype(np.float32)
    return replace(records, labels=labels, targets=targets)


def _with_labels(records: Records, wanted: Sequence[str], where: str) -> Records:
    """Re-orders the targets by name, and logs the labels that the collection lacks."""
    if lacking := [name for name, i in zip(wanted, align(records.labels, wanted), strict=True) if i is None]:
        _logger.info("%s has no %s: masked", where, ", ".join(lacking))
    return records.with_labels(wanted)


def _keep(records: Records, split: str, views: str | Sequence[str], where: str) -> Records:
    """Keeps one split and the views asked for; logs how many images are kept and how many other views left out."""
    inside, shown = records.in_split(split), records.in_views(views)
    views = views if isinstance(views, str) else ", ".join(views)
    kept = replace(records.subset(inside & shown), split=split)
    if len(kept) == 0:
        raise EmptySplit(
            f"{where}: split {split} has no image (views: {views}). "
            "Validation is 10 % of the patients; a table may say it in a column split"
        )
    out = int((inside & ~shown).sum())
    left = f"; {out:,} of other views left out (views: {views})" if out else ""
    _logger.info("%s: split %s has %s images%s", where, split, f"{len(kept):,}", left)
    return kept
