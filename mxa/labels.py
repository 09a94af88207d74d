"""Label spaces of the chest X-ray collections, and alignment between them by name.

A label space is a tuple of names in the order of a model's outputs. One space is mapped to another by name, never by
position.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .utils.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "CHEXPERT",
    "LABEL_SPACES",
    "MERGES",
    "NIH",
    "PADCHEST",
    "VINDR",
    "XRV",
    "align",
    "apply_policies",
    "canonical",
    "check_known",
    "label_names",
    "merge",
    "resolve_labels",
]

#: The 14 observations of CheXpert, in the order of its tables.
CHEXPERT = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

#: NIH ChestX-ray14: its 14 findings in the order of the paper (Wang et al., 2017), and No Finding.
NIH = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
    "No Finding",
)

#: The 18 outputs of TorchXRayVision's classifiers (``torchxrayvision.datasets.default_pathologies``).
XRV = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
    "Lung Lesion",
    "Fracture",
    "Lung Opacity",
    "Enlarged Cardiomediastinum",
)

#: PadChest's findings that other collections have too. ``mxa.data.collections.padchest`` says what each is made of.
PADCHEST = (
    "No Finding",
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Fracture",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural Effusion",
    "Pleural Thickening",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)

#: VinDr-CXR: 22 local and 6 global labels, in the order of its published tables.
VINDR = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other disease",
    "No finding",
)

#: MIMIC-CXR's tables have CheXpert's observations.
LABEL_SPACES = {"chexpert": CHEXPERT, "mimic": CHEXPERT, "nih": NIH, "padchest": PADCHEST, "vindr": VINDR, "xrv": XRV}

#: Other names of the same finding. A finding that is only a part of another is not a synonym: see ``MERGES``.
_ALIASES = {
    "airspace opacity": "lung opacity",
    "effusion": "pleural effusion",
    "infiltrate": "infiltration",
    "infiltrates": "infiltration",
    "nodule or mass": "nodule/mass",
    "normal": "no finding",
    "other diseases": "other disease",
    "pulmonary edema": "edema",
    "pulmonary fibrosis": "fibrosis",
}

#: From which findings a label that a collection lacks can be made. Each alternative is a set of findings, of which any
#: one is enough. The made label is narrower or a little different, so labels are made only where that is asked for.
MERGES = {
    "Lung Lesion": (("Nodule/Mass",), ("Nodule", "Mass")),
    "Nodule/Mass": (("Nodule", "Mass"),),
    "Pleural Other": (("Pleural Thickening", "Fibrosis"),),
    "Fracture": (("Rib fracture", "Clavicle fracture"),),
}

#: Policies for uncertain cells, and for blank cells.
UNCERTAIN = ("U-Ones", "U-Zeros", "U-Ignore", "LSR")
BLANK = ("negative", "ignore")
_OUTSIDE_QUOTES = r';(?=(?:[^"]*"[^"]*")*[^"]*$)'  # a semicolon


def label_names(model: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of a model's outputs in order, or None where they are unknown.

    It works on every timm model. The names come with the weights' configuration, or from ``set_label_names``.
    """
    cfg = getattr(model, "pretrained_cfg", {})
    names: Any = model.label_names if hasattr(model, "label_names") else cfg.get("label_names")
    return tuple(names) if names and len(names) == getattr(model, "num_classes", None) else None


def canonical(name: str) -> str:
    """Returns a key that is the same for all names of one finding.

    Case, underscores, hyphens, spaces and the encoding of accents make no difference; synonyms have the same key.

    >>> canonical("Effusion") == canonical("Pleural Effusion")
    True
    >>> canonical("Pleural_Thickening")
    'pleural thickening'
    """
    text = unicodedata.normalize("NFC", name).lower().replace("_", " ").replace("-", " ").replace("/", " / ")
    key = " ".join(text.split()).replace(" / ", "/")
    return _ALIASES.get(key, key)


def align(source: Sequence[str], target: Sequence[str]) -> tuple[int | None, ...]:
    """Finds every target label in a source label space, by name.

    Args:
        source: Names of the columns at hand; ``""`` marks a column without a meaning.
        target: Names wanted.

    Returns:
        For each target name its index in ``source``, or None where the source does not have it.

    Raises:
        InputError: two columns of ``source`` have the same meaning.

    >>> align(("Effusion", "", "Edema"), ("Edema", "Pleural Effusion", "Fracture"))
    (2, 0, None)
    """
    index: dict[str, int] = {}
    for i, name in enumerate(source):
        if name and index.setdefault(canonical(name), i) != i:
            raise InputError(f"labels {source[index[canonical(name)]]!r} and {name!r} mean the same; keep one of them")
    return tuple(index.get(canonical(name)) for name in target)


def split_names(text: str) -> list[str]:
    """Splits names at commas; a name that holds a comma stands in double quotes.

    Raises:
        InputError: a quote is not closed.

    >>> split_names('"Effusion, left", Edema')
    ['Effusion, left', 'Edema']
    """
    if text.count('"') % 2:
        raise InputError(f'{text!r}: put a whole name in double quotes, such as "Effusion, left",Edema')
    names = next(csv.reader([" ".join(text.splitlines())], skipinitialspace=True), [])
    return [name.strip() for name in names if name.strip()]


def resolve_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Turns a label space's name, a list as ``split_names`` reads it or a sequence into a tuple of names.

    Raises:
        InputError: the list is empty or repeats a label.

    >>> resolve_labels("chexpert") == CHEXPERT
    True
    >>> resolve_labels("Edema, Mass")
    ('Edema', 'Mass')
    """
    if isinstance(labels, str):
        if labels.lower() in LABEL_SPACES:
            return LABEL_SPACES[labels.lower()]
        labels = split_names(labels)
    names = tuple(labels)
    if not names:
        raise InputError("the list of labels is empty")
    align(names, ())
    return names


def check_known(names: Sequence[str], known: Sequence[str] = ()) -> None:
    """Refuses names that are neither in a label space nor in ``known``.

    Raises:
        InputError: a name is unknown; the message says which, and where known names come from.
    """
    every = {canonical(name) for space in (*LABEL_SPACES.values(), known) for name in space}
    if unknown := [name for name in names if canonical(name) not in every]:
        here = f", or from {', '.join(known)}" if known else ""
        pairs = [f"{one}, {other}" for one, other in pairwise(names)]
        whole = next((pair for pair in pairs if canonical(pair) in every), "")
        hint = f"; put a name that holds a comma in double quotes, '\"{whole}\"'" if whole else ""
        raise InputError(f"unknown label {', '.join(unknown)}: give names of {', '.join(LABEL_SPACES)}{here}{hint}")


def merge(
    cells: np.ndarray, labels: Sequence[str], wanted: Sequence[str]
) -> tuple[np.ndarray, dict[str, tuple], list[str]]:
    """Makes columns for labels that are wanted but missing, from the findings that ``MERGES`` lists.

    A cell is positive where any of the findings is. Otherwise it is uncertain where any of them is, negative where all
    of them are, and else blank.

    Args:
        cells: ``(N, L)``: 1 positive, 0 negative, -1 uncertain, NaN blank.
        labels: Names of the L columns.
        wanted: Names wanted.

    Returns:
        The M columns made, ``(N, M)`` float32; their names, each with the findings that it was made from; and the names
        of those for which some findings were missing, which have no negative.

    >>> merge(np.float32([[1, 0], [0, 0], [0, np.nan]]), ("Nodule", "Mass"), ("Lung Lesion", "Edema"))
    (array([[ 1.],
           [ 0.],
           [nan]], dtype=float32), {'Lung Lesion': ('Nodule', 'Mass')}, [])
    """
    merges = {canonical(name): alternatives for name, alternatives in MERGES.items()}
    columns, made, halves = [], {}, []
    for name, held in zip(wanted, align(labels, wanted), strict=True):
        for parts in merges.get(canonical(name), ()) if held is None else ():
            found = [cells[:, i] for i in align(labels, parts) if i is not None]
            if found:
                part = np.stack(found)
                zero = (part == 0).all(0) & (len(found) == len(parts))
                rest = np.where((part == -1).any(0), -1, np.where(zero, 0, np.nan))
                columns.append(np.where((part == 1).any(0), 1, rest))
                made[name] = tuple(p for p, i in zip(parts, align(labels, parts), strict=True) if i is not None)
                halves += [name] if len(found) < len(parts) else []
                break
    return np.array(columns, dtype=np.float32).reshape(len(columns), len(cells)).T, made, halves


def apply_policies(
    cells: np.ndarray,
    labels: Sequence[str],
    uncertain: str | Mapping[str, str] = "U-Ones",
    blank: str | Mapping[str, str] = "negative",
) -> np.ndarray:
    """Turns cells into targets.

    Args:
        cells: ``(N, L)``: 1 positive, 0 negative, -1 uncertain, NaN blank.
        labels: Names of the L columns.
        uncertain: What -1 becomes: ``"U-Ones"`` (the paper's U-1) 1, ``"U-Zeros"`` 0, ``"U-Ignore"`` masked,
            ``"LSR"`` a value drawn from [0.55, 0.85] (label smoothing; seeded). Policies by label are one line, which
            ends with the policy of the rest, ``"U-Ones: Atelectasis, Edema; U-Zeros"``; or a mapping from label to
            policy with a ``"default"``.
        blank: What a blank becomes: ``"negative"`` 0, ``"ignore"`` masked; by label in the same way.

    Returns:
        ``(N, L)`` float32 in [0, 1], NaN where masked.

    Raises:
        InputError: unknown policy or label.
    """
    of_uncertain = _policy_of_each(uncertain, labels, UNCERTAIN, "uncertain")
    of_blank = _policy_of_each(blank, labels, BLANK, "blank")
    smooth = np.random.default_rng(0).uniform(0.55, 0.85, cells.shape) if "LSR" in of_uncertain else cells
    targets = np.array(cells, dtype=np.float32)
    for i in range(len(labels)):
        one = {"U-Ones": 1.0, "U-Zeros": 0.0, "U-Ignore": np.nan, "LSR": smooth[:, i]}[of_uncertain[i]]
        targets[:, i] = np.where(cells[:, i] == -1, one, cells[:, i])
        if of_blank[i] == "negative":
            targets[np.isnan(cells[:, i]), i] = 0
    return targets


def _policy_of_each(
    policy: str | Mapping[str, str], labels: Sequence[str], known: Sequence[str], kind: str
) -> list[str]:
    """Finds the policy of every label."""
    by_label: dict[str, str] = {}
    if isinstance(policy, Mapping):
        by_label.update(policy)
        default = by_label.pop("default", known[0])
    else:
        default = ""
        for clause in filter(str.strip, re.split(_OUTSIDE_QUOTES, policy)):
            name, colon, of = (part.strip() for part in clause.partition(":"))
            if not colon and default:
                raise InputError(f"{kind}: two policies for the rest, {default} and {name}, in {policy!r}")
            default = default if colon else name
            by_label |= dict.fromkeys(split_names(of), name)
        if not default:
            raise InputError(f"{kind}: {policy!r} says nothing for the rest: end it with one of {', '.join(known)}")
    policies = [default] * len(labels)
    for (label, name), i in zip(by_label.items(), align(labels, tuple(by_label)), strict=True):
        if i is None:
            raise InputError(f"{kind}: unknown label {label!r}; known: {', '.join(labels)}")
        policies[i] = name
    if unknown := sorted(set(policies) - set(known)):
        raise InputError(f"unknown policy {', '.join(unknown)} for {kind} labels: give one of {', '.join(known)}")
    return policies
