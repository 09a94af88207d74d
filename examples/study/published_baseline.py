"""What two lines of the published code do to its baseline: the same network and recipe, with and without them.

``right`` is a multi-label EfficientViT-M0. ``double sigmoid`` returns probabilities that the loss takes for logits.
``targets of -1`` has CheXpert's uncertain marks, drawn on NIH's labels at the rates of CheXpert's training table, as
targets of -1. ``both`` is what the published naive branch does. Every arm trains for the same epochs, keeps the last
weights, and is scored as that branch does, in half precision; ``right, float32`` is the first arm without that.

    python examples/study/published_baseline.py --root NIH8K --output DIR

Scores are kept in ``DIR/scores.parquet``; a run that has them is not trained again, and other epochs or another size
need another DIR.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import forms  # noqa: F401
import numpy as np
import pandas as pd
import torch
import torchxrayvision

from mxa.data import CXRDataset, create_dataset
from mxa.evaluate import score_images, write_report
from mxa.evaluation.report.rows import label_rows, markdown, paired_rows, summary_rows
from mxa.evaluation.runs import Run, add_run, read_runs, runs_metadata
from mxa.labels import CHEXPERT, align
from mxa.models.load import load_model
from mxa.predictions import Arm, Predictions
from mxa.task import masked_bce_with_logits
from mxa.train import TrainConfig, fit

ARMS = {
    "right": ("efficientvit_ml_m0", False),
    "double sigmoid": ("efficientvit_ml_m0_published", False),
    "targets of -1": ("efficientvit_ml_m0", True),
    "both": ("efficientvit_ml_m0_published", True),
}


def uncertain_rates(labels: tuple[str, ...]) -> np.ndarray:
    """Share of uncertain cells of each label in CheXpert's training table; 0 for a label that it has not."""
    table = pd.read_csv(Path(torchxrayvision.__file__).parent / "data" / "chexpert_train.csv.gz")
    rates = (table.reindex(columns=list(CHEXPERT)) == -1).mean().to_numpy()
    return np.array([0.0 if i is None else rates[i] for i in align(CHEXPERT, labels)])


def mark(dataset: CXRDataset) -> CXRDataset:
    """Draws uncertain marks and writes them as the published code reads them: -1."""
    targets = dataset.records.targets.copy()
    drawn = np.random.default_rng(0).random(targets.shape) < uncertain_rates(dataset.labels)
    targets[drawn] = -1
    return type(dataset)(replace(dataset.records, targets=targets))


def in_half(found: Predictions) -> Predictions:
    """Scores as the published evaluation ranks them: the sigmoid of the model's output, both in half precision.

    What is rounded to one number is a tie. After a double sigmoid every number is 0.5 or more, where the numbers that
    half precision holds are 0.0005 apart: an output under 0.001 is 0.5.
    """
    with np.errstate(over="ignore"):
        p = (1 / (1 + np.exp(-found.logits.astype(np.float16)))).astype(np.float16).astype(np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(p) - np.log1p(-p)
    return replace(found, logits=np.clip(logits, -20, 20))  # the smallest probability that half holds is at -16.6


def zero_share(found: Predictions, published: bool) -> np.ndarray:
    """Share of the probabilities of each label that half precision rounds to exactly 0."""
    return ((found.logits == 0) if published else (in_half(found).logits == -20)).mean(0)


def loss(found: Predictions) -> float:
    """Cross-entropy as that code takes it: of the model's output as logits, which a double sigmoid's are not."""
    return masked_bce_with_logits(torch.tensor(found.logits), torch.tensor(found.targets)).item()


def tied_share(found: Predictions) -> np.ndarray:
    """Share of the images that have the commonest score of each label."""
    return np.array([np.unique(column, return_counts=True)[1].max() for column in found.logits.T]) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="what to train now")
    parser.add_argument("--img-size", type=int, default=160)
    parser.add_argument("--replicates", type=int, default=1000)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    kept = args.output / "scores.parquet"
    finished = runs_metadata(kept)
    for metadata in finished.values():
        if (metadata["run"]["epochs"], metadata["img_size"]) != (args.epochs, args.img_size):
            parser.error(f"{kept} is of other --epochs or another --img-size: give another --output")
    train_set, test = (create_dataset("nih", args.root, split) for split in ("train", "test"))
    recipe = {"batch_size": 64, "lr": 2e-3, "workers": 0, "channels_last": True, "resume": "auto"}
    for seed in args.seeds:
        for arm in args.arms:
            name, marked = ARMS[arm]
            run = Run(arm, seed)
            if run in finished:
                continue
            folder = args.output / "runs" / run.name
            config = TrainConfig(folder, name, img_size=args.img_size, epochs=args.epochs, seed=seed, **recipe)
            if fit(config, mark(train_set) if marked else train_set)["stopped"]:
                return
            summary = json.loads((folder / "summary.json").read_text())
            metadata = {"model": run.name, "split": "test", "img_size": args.img_size, "run": summary}
            add_run(kept, run, score_images(load_model(folder), test, metadata, 64, 0))

    runs = read_runs(kept)
    arms, zeros, ties, losses = [], {}, {}, {}
    for arm, (name, _) in ARMS.items():
        published = name.endswith("_published")
        found = [runs[run] for run in sorted(runs) if run.arm == arm]
        if not found:
            parser.error(f"no scores of {arm} in {kept}")
        if arm == "right":
            arms.append(Arm("right, float32", tuple(found)))
        halves = tuple(in_half(one) for one in found)
        arms.append(Arm(arm, halves))
        zeros[arm] = np.mean([zero_share(one, published) for one in found], axis=0)
        ties[arm] = np.mean([tied_share(one) for one in halves], axis=0)
        losses[arm] = f"{np.mean([loss(one) for one in found]):.3f}"
    note = "What the published baseline was: last epoch's weights, scored in half precision; see docs/results.md."
    result = write_report(args.output, arms, args.replicates, notes=[note])
    rates = uncertain_rates(test.labels)
    rows = [
        (
            label,
            f"{rates[i]:.3f}",
            *(label_rows(m)[1][i][3] for m in result["models"]),
            *(f"{share[i]:.2f}" for share in (*zeros.values(), *ties.values())),
        )
        for i, label in enumerate(test.labels)
    ]
    head = (
        "label",
        "marks",
        *(f"AUC, {m['name']}" for m in result["models"]),
        *(f"{what}, {arm}" for what in ("zeros", "tied") for arm in ARMS),
    )
    between, differences = paired_rows(result)
    means = [row for row in differences if not row[0].startswith("AUC of")]
    taken = (("", *losses), [("loss as that code takes it", *losses.values())])
    pages = [summary_rows(result), taken, (between, means), (head, rows)]
    (args.output / "table.md").write_text("\n".join(markdown(page) for page in pages))


if __name__ == "__main__":
    main()
