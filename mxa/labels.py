"""Label spaces of the chest X-ray collections, and alignment between them by name.

A label space is a tuple of names in the order of a model's outputs. Nothing here, and nothing above, ever maps one
space to another by position.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import InputError

__all__ = ["CHEXPERT", "LABEL_SPACES", "NIH", "XRV", "align", "canonical", "check_known", "resolve_labels"]

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

LABEL_SPACES = {"chexpert": CHEXPERT, "nih": NIH, "xrv": XRV}

_ALIASES = {"effusion": "pleural effusion", "normal": "no finding"}


def canonical(name: str) -> str:
    """Returns the key under which two spellings of one finding compare equal.

    Case, underscores and surrounding space do not count, and synonyms are folded.

    >>> canonical("Effusion") == canonical("Pleural Effusion")
    True
    >>> canonical("Pleural_Thickening")
    'pleural thickening'
    """
    key = " ".join(name.replace("_", " ").lower().split())
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


def resolve_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Turns a label space's name, a comma-separated list or a sequence into a tuple of names.

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
        labels = [name.strip() for name in labels.split(",") if name.strip()]
    names = tuple(labels)
    if not names:
        raise InputError("the list of labels is empty")
    align(names, ())
    return names


def check_known(names: Sequence[str], known: Sequence[str] = ()) -> None:
    """Refuses names that stand neither in a label space nor in ``known``.

    Raises:
        InputError: there is one; the message names it and what is known.
    """
    every = {canonical(name) for space in (*LABEL_SPACES.values(), known) for name in space}
    if unknown := [name for name in names if canonical(name) not in every]:
        here = f", or from {', '.join(known)}" if known else ""
        raise InputError(f"unknown label {', '.join(unknown)}: give names of {', '.join(LABEL_SPACES)}{here}")
