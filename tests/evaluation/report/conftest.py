"""Made predictions for the report's tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mxa.evaluation.predictions import Arm, Predictions
from mxa.metrics import sigmoid

LABELS = ("Edema", "Mass", "Fracture", "Hernia")
NAN = float("nan")


def predictions(
    n: int = 240, seed: int = 0, cases_seed: int = 0, skill: float = 1.0, split: str = "test"
) -> Predictions:
    """Edema is well known, Mass has masked cells and few positives, Fracture no positive, Hernia no known cell.

    Two images a patient; ``cases_seed`` draws the cases, ``seed`` the scores.
    """
    rng = np.random.default_rng(cases_seed)
    targets = np.zeros((n, 4))
    targets[:, 0] = rng.random(n) < 0.4
    targets[:, 1] = rng.random(n) < 0.07
    targets[::6, 1] = targets[:, 3] = NAN
    patients = np.arange(n) // 2
    cases = pd.DataFrame(
        {
            "image": [f"{split}/{i}.png" for i in range(n)],
            "patient": [f"{split}{p}" for p in patients],
            "study": [f"s{p}" for p in patients],
            "view": ["AP", "PA", "", "LATERAL"] * (n // 4),
            "sex": np.where(patients % 3 == 0, "F", "M"),
            "age": (20.0 + patients % 70),
            "split": split,
        }
    )
    noise = np.random.default_rng(1000 + seed).normal(size=(n, 4))
    logits = noise + skill * np.nan_to_num(targets) - 0.8
    return Predictions(LABELS, logits, targets, cases, {"model": f"m{seed}", "split": split})


@pytest.fixture
def arm() -> Callable[..., Arm]:
    """Builds an arm: ``arm("a", seeds=(0, 1), skill=1.5)``."""

    def build(name: str = "a", seeds: tuple[int, ...] = (0,), skill: float = 1.0, val: bool = True) -> Arm:
        scored = tuple(predictions(seed=s, skill=skill) for s in seeds)
        held = tuple(predictions(120, s + 50, 7, skill, "val") for s in seeds) if val else ()
        return Arm(name, scored, held)

    return build


def probabilities(one: Predictions) -> np.ndarray:
    return sigmoid(one.logits)
