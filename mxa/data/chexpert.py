"""CheXpert, in its published layout, and what its uncertain and blank cells become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..labels import CHEXPERT, align
from .records import Records, in_validation, read_csv

__all__ = ["POLICIES", "apply_policies", "read_chexpert"]

POLICIES = ("U-Ones", "U-Zeros", "U-Ignore", "LSR")


def apply_policies(
    cells: np.ndarray,
    labels: tuple[str, ...],
    uncertain: str | Mapping[str, str] = "U-Ones",
    blank: str = "negative",
) -> np.ndarray:
    """Turns cells into targets.

    Args:
        cells: ``(N, L)``: 1 positive, 0 negative, -1 uncertain, NaN blank.
        labels: Names of the L columns.
        uncertain: What -1 becomes: ``"U-Ones"`` (the paper's U-1) 1, ``"U-Zeros"`` 0, ``"U-Ignore"`` masked,
            ``"LSR"`` a value drawn from [0.55, 0.85] (label smoothing; seeded). A mapping gives policies by label
            name, ``"default"`` the rest.
        blank: What a blank becomes: ``"negative"`` 0, ``"ignore"`` masked.

    Returns:
        ``(N, L)`` float32 in [0, 1], NaN where masked.

    Raises:
        InputError: unknown policy or label.
    """
    by_label = dict(uncertain) if isinstance(uncertain, Mapping) else {"default": uncertain}
    default = by_label.pop("default", "U-Ones")
    index = align(labels, tuple(by_label))
    if None in index:
        raise InputError(f"uncertain: unknown label {list(by_label)[index.index(None)]!r}; known: {', '.join(labels)}")
    policies = [default] * len(labels)
    for i, policy in zip(index, by_label.values(), strict=True):
        policies[i] = policy
    if unknown := set(policies) - set(POLICIES):
        raise InputError(f"unknown policy {', '.join(unknown)} for uncertain labels: give one of {', '.join(POLICIES)}")
    if blank not in ("negative", "ignore"):
        raise InputError(f"unknown policy {blank!r} for blank labels: give negative or ignore")
    smooth = np.random.default_rng(0).uniform(0.55, 0.85, cells.shape)
    targets = cells.astype(np.float32)
    for column, policy in enumerate(policies):
        value = {"U-Ones": 1.0, "U-Zeros": 0.0, "U-Ignore": np.nan, "LSR": smooth[:, column]}[policy]
        targets[:, column] = np.where(cells[:, column] == -1, value, cells[:, column])
    return np.where(np.isnan(cells), 0.0 if blank == "negative" else np.nan, targets).astype(np.float32)


def read_chexpert(
    root: Path,
    split: str | None = None,
    uncertain: str | Mapping[str, str] = "U-Ones",
    blank: str = "negative",
) -> Records:
    """Reads the folder that holds ``train.csv`` and ``valid.csv`` (and ``test.csv`` where present).

    Args:
        root: That folder; paths in the tables begin with its published name, which is not needed.
        split: ``"train"`` and ``"val"`` (10 % of the patients, by a hash) of ``train.csv``; ``"valid"``, the official
            validation set; ``"test"``; ``"all"``, every row of ``train.csv``; None, ``test.csv`` where present, else
            ``valid.csv``.
        uncertain: Policy for the training part (see ``apply_policies``). Elsewhere uncertain cells are masked, never
            remapped.
        blank: Policy for blank cells of ``train.csv``.

    Raises:
        InputError: a missing table or column, an unknown policy, or a cell that is not 1, 0, -1 or blank.
    """
    root = Path(root)
    if split is None:
        split = "test" if (root / "test.csv").is_file() else "valid"
    path = root / f"{split if split in ('valid', 'test') else 'train'}.csv"
    table = read_csv(path, ("Path", *CHEXPERT))
    try:
        cells = table[list(CHEXPERT)].replace("", "nan").to_numpy(np.float32)
    except ValueError as error:
        raise InputError(f"{path}: a label cell is no number ({error})") from None
    strange = ~(np.isnan(cells) | np.isin(cells, (-1, 0, 1)))
    if strange.any():
        row, column = np.argwhere(strange)[0]
        raise InputError(
            f"{path}: {CHEXPERT[column]} of {table['Path'].iloc[row]} is {cells[row, column]:g} (1, 0, -1 or blank)"
        )
    parts = [p.split("/") for p in table["Path"]]
    inside = ["/".join(p[1:] if p[0].startswith("CheXpert") else p) for p in parts]
    patients = [next((name for name in p if name.startswith("patient")), p[-1]) for p in parts]
    lateral = np.array(["lateral" in p[-1].lower() for p in parts])
    views = table["AP/PA"].to_numpy(str) if "AP/PA" in table else np.full(len(table), "")
    views = np.where(lateral, "LATERAL", np.where(np.isin(views, ("AP", "PA")), views, "")).astype(str)
    records = Records(CHEXPERT, np.array([str(root / p) for p in inside]), cells, np.array(patients), views)
    if split in ("train", "val"):
        validation = in_validation(records.patients)
        records = records.subset(validation if split == "val" else ~validation)
    policy = uncertain if split == "train" else "U-Ignore"
    return replace(records, targets=apply_policies(records.targets, CHEXPERT, policy, blank), split=split)
