"""Five patient folds of a small NIH sample: each model is trained from scratch and scored on patients it has not seen.

    python examples/nih_sample_folds.py --root FOLDER --output runs/folds

FOLDER holds NIH's ``Data_Entry_2017.csv`` and ``images/``. Nothing is chosen on the scored patients: folds and seed are
fixed, and the last epoch's weights are scored. A fold that is done is not run again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from mxa.data import CXRDataset, create_dataset, create_transform, make_loader
from mxa.evaluation.inference import predict_logits
from mxa.metrics import auroc, patient_weights
from mxa.models.load import load_model
from mxa.train import TrainConfig, fit
from mxa.utils.distributed import pick_device

LABELS = ("No Finding", "Pneumonia", "Infiltration", "Atelectasis", "Edema", "Effusion")
FOLDS, SEED, REPLICATES = 5, 0, 1000


def assign_folds(patients: np.ndarray) -> np.ndarray:
    unique = np.unique(patients)
    fold_of = dict(zip(np.random.default_rng(SEED).permutation(unique), np.arange(len(unique)) % FOLDS, strict=True))
    return np.array([fold_of[p] for p in patients])


def run_fold(model: str, records, folds: np.ndarray, fold: int, output: Path, epochs: int, workers: int) -> np.ndarray:
    """Trains on the other folds if that is not done yet; returns the logits of the fold's images, ``(N, L)``."""
    saved = output / model / f"fold{fold}" / "logits.npy"
    if not saved.exists():
        config = TrainConfig(
            output=saved.parent,
            model=model,
            epochs=epochs,
            batch_size=16,
            warmup_epochs=2,
            seed=SEED,
            workers=workers,
            resume="auto",
        )
        fit(config, CXRDataset(records.subset(folds != fold)))
        device = pick_device(None)
        trained, held_out = load_model(saved.parent).to(device), CXRDataset(records.subset(folds == fold))
        loader = make_loader(held_out, create_transform(trained), 64, workers, device=device)
        np.save(saved, predict_logits(trained, loader))
    return np.load(saved)


def mean_auc(logits: np.ndarray, records, folds: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns the mean over folds and labels of the AUC within a fold, ``(R,)``, for each row of weights ``(R, N)``."""
    values = []
    for fold in np.unique(folds[rows]):
        inside = rows & (folds == fold)
        for label in LABELS:
            column = records.labels.index(label)
            values.append(auroc(logits[inside, column], records.targets[inside, column], weight[:, inside]))
    return np.nanmean(np.stack(values), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/folds"))
    parser.add_argument("--models", nargs="+", default=["efficientvit_ml_m0", "efficientvit_ml_m0_mxa"])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    records = create_dataset("nih", args.root, "all").records
    folds = assign_folds(records.patients)
    ones = np.ones((1, len(records)), dtype=np.float32)
    weights = np.concatenate(list(patient_weights(records.patients, REPLICATES)))
    views = {"all": np.ones(len(records), dtype=bool), "AP": records.views == "AP", "PA": records.views == "PA"}
    print(
        f"{len(records)} images, {len(np.unique(records.patients))} patients, {torch.get_num_threads()} torch threads"
    )
    results, replicates = {}, {}
    for model in args.models:
        logits = np.empty(records.targets.shape, dtype=np.float32)
        for fold in range(FOLDS):
            logits[folds == fold] = run_fold(model, records, folds, fold, args.output, args.epochs, args.workers)
        for view, rows in views.items():
            point = mean_auc(logits, records, folds, rows, ones)[0]
            draws = mean_auc(logits, records, folds, rows, weights)
            low, high = np.quantile(draws, (0.025, 0.975))
            replicates[model, view] = draws
            per_fold = [float(mean_auc(logits, records, folds, rows & (folds == f), ones)[0]) for f in range(FOLDS)]
            results[f"{model} {view}"] = {
                "auc": float(point),
                "interval": [float(low), float(high)],
                "folds": per_fold,
                "images": int(rows.sum()),
            }
            shown = " ".join(f"{value:.3f}" for value in per_fold)
            print(f"{model:24} {view:3} n={rows.sum():3}  AUC {point:.3f} ({low:.3f} to {high:.3f})  folds {shown}")
    if len(args.models) == 2:
        a, b = args.models
        for view in views:
            point = results[f"{b} {view}"]["auc"] - results[f"{a} {view}"]["auc"]
            low, high = np.quantile(replicates[b, view] - replicates[a, view], (0.025, 0.975))
            results[f"difference {view}"] = {"auc": point, "interval": [float(low), float(high)]}
            print(f"{b} minus {a}, {view}: {point:+.3f} ({low:+.3f} to {high:+.3f})")
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
