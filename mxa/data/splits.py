"""Which images train, validate and test: always whole patients."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from ..labels import align, canonical
from ..utils.errors import InputError
from .records import Records, hash_keys

__all__ = ["check_disjoint", "check_unique", "cut", "divide", "fold_splits", "splits_sha256"]


def cut(patients: np.ndarray, targets: np.ndarray, percent: float, salt: str = "") -> np.ndarray:
    """Cuts a share of the patients, stratified by label, without a random number.

    Patients who share their rarest positive label, the one that the fewest patients have, form a stratum. From each
    stratum the patients with the lowest hashes are cut, at least one of three or more. If a label is then missing from
    the cut although its share is a patient or more, its patient with the lowest hash is cut too.

    Args:
        patients: Identifier of each row, ``(N,)``.
        targets: ``(N, L)``; 1 is positive, anything else is not. The order of the labels decides ties.
        percent: Share of the patients.
        salt: Another salt gives another cut.

    Returns:
        ``(N,)`` bool, True for the rows cut. It does not depend on the order of the rows or on the process.
    """
    _, first, inverse = np.unique(hash_keys(patients), return_index=True, return_inverse=True)
    names = patients[first]
    rank = np.argsort([hashlib.sha256(f"{salt}{name}".encode()).digest() for name in names]).argsort()
    positive = np.zeros((len(names), targets.shape[1]), dtype=bool)
    rows, columns = np.nonzero(targets == 1)
    positive[inverse[rows], columns] = True
    frequency = np.where(positive, positive.sum(0), len(names) + 1)
    stratum = np.where(positive.any(1), frequency.argmin(1), -1) if targets.shape[1] else np.full(len(names), -1)
    chosen = np.zeros(len(names), dtype=bool)
    for s in np.unique(stratum):
        members = np.flatnonzero(stratum == s)
        count = max(round(len(members) * percent / 100), int(len(members) > 2))
        chosen[members[np.argsort(rank[members])[:count]]] = True
    for have in positive.T if percent else ():
        if have.sum() * percent >= 100 and not chosen[have].any():
            chosen[np.flatnonzero(have)[rank[have].argmin()]] = True
    if percent and len(names) > 1 and not chosen.any():
        chosen[rank.argmin()] = True
    return chosen[inverse]


def divide(records: Records, test_percent: float = 0, labels: Sequence[str] | None = None) -> Records:
    """Cuts the splits that the collection lacks: validation (10 % of the patients), and test where asked.

    Args:
        records: Every row.
        test_percent: Percentage of the patients to cut for a test split, if no row is in one.
        labels: Labels that the cut is stratified by, whatever their order; all by default.
    """
    targets = _stratifying(records, labels)
    splits = records.splits.copy()
    for split, percent, salt in (("test", test_percent, "test-"), ("val", 10, "")):
        if percent and not (splits == split).any():
            train = np.flatnonzero(splits == "train")
            chosen = cut(records.patients[train], targets[train], percent, salt)
            splits[train[chosen]] = split
    return replace(records, splits=splits)


def splits_sha256(records: Records) -> str:
    """Returns the SHA-256 of which image is in which split, whatever the order of the rows."""
    rows = sorted(map("\t".join, zip(records.paths.tolist(), records.splits.tolist(), strict=True)))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def fold_splits(records: Records, number: int, count: int, labels: Sequence[str] | None = None) -> Records:
    """Makes one fold of a cross-validation by patient: it tests, the others train. The collection's splits are dropped.

    Args:
        records: Every row.
        number: Which fold, from 0.
        count: How many folds; every image tests in exactly one.
        labels: As for ``divide``.

    Raises:
        InputError: fewer than 2 folds, or no such fold.
    """
    if count < 2 or not 0 <= number < count:
        raise InputError(f"there is no fold {number} of {count}: 2 folds at least, counted from 0")
    targets = _stratifying(records, labels)
    left = np.arange(len(records))
    for n in range(number + 1):
        share = 100 / (count - n)
        last = n == count - 1
        chosen = (
            np.ones(len(left), bool) if last else cut(records.patients[left], targets[left], share, f"fold{count}-")
        )
        tested, left = left[chosen], left[~chosen]
    splits = np.full(len(records), "train", dtype=records.splits.dtype)
    splits[tested] = "test"
    return replace(records, splits=splits)


def _stratifying(records: Records, labels: Sequence[str] | None) -> np.ndarray:
    """Returns the targets that a cut is stratified by, in the order of their names."""
    names = sorted(records.labels if labels is None else labels, key=canonical)
    return records.targets[:, [i for i in align(records.labels, names) if i is not None]]


def check_disjoint(records: Records, where: str) -> None:
    """Refuses a patient in two splits.

    Raises:
        InputError: there is one. The message names two of the patient's images, not the patient.
    """
    names = [split for split in dict.fromkeys(records.splits.tolist()) if split]
    twice: dict[str, tuple[str, str]] = {}
    for pair in combinations(names, 2):
        one, other = (set(records.patients[records.splits == split].tolist()) for split in pair)
        twice |= dict.fromkeys(one & other, pair)
    if twice:
        patient = min(twice)
        theirs = records.patients == patient
        files = [records.paths[theirs & (records.splits == split)][0] for split in twice[patient]]
        raise InputError(
            f"{where}: {len(twice)} patient(s) are in more than one split, such as the one of {' and '.join(files)}: "
            "divide by patient"
        )


def check_unique(records: Records, where: str) -> None:
    """Refuses a path that stands in two rows.

    Raises:
        InputError: there is one.
    """
    _, counts = np.unique(hash_keys(records.paths), return_counts=True)
    if (counts == 1).all():
        return
    names, counts = np.unique(records.paths, return_counts=True)
    if len(twice := names[counts > 1]):
        raise InputError(f"{where}: {len(twice)} image(s) have more than one row, such as {twice[0]}")
