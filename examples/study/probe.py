"""A teacher that takes minutes: ridge regression on frozen maps of ImageNet networks, with out-of-fold logits.

The maps of each network's last three stages and of its last convolution are brought to grids of 1, 3 and 7 cells a
side. Their inner products, mean over maps and grids, are a kernel; kernels of several networks are averaged. The ridge
is chosen by five folds of the training patients. A training image gets the logits of the regression that has not seen
its patient, so a student is not taught a label by way of its teacher. Validation and test images get those of all
training patients.

    python examples/study/probe.py --root NIH8K --starts lite0 lite2 --output probe

writes probe/folds.csv (each ridge, for each network and all together), probe/teacher.parquet for ``mxa train
--teacher``, and probe/test.parquet, the scores of the test list for ``mxa evaluate``.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from mxa.data import create_dataset, create_transform, make_loader
from mxa.data.records import Records
from mxa.data.splits import fold_splits
from mxa.evaluation.predictions import of_records
from mxa.metrics import macro_auroc
from mxa.metrics.operating import ENOUGH
from mxa.models.load import load_model
from mxa.utils.allocator import keep_memory

FOLDS = 5
GRIDS = (1, 3, 7)
RIDGES = (10.0, 30.0, 100.0, 300.0)
SHARPNESS = 1.5  # logit of a component that lies a standard deviation above the mean
LARGEST = 8.0  # standard deviations, where a value is clipped
logger = logging.getLogger("probe")


def begin(output: Path, threads: int) -> None:
    """Starts the log, sets threads and the allocator, and makes the output folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    keep_memory()
    output.mkdir(parents=True, exist_ok=True)


def fold_numbers(records: Records) -> np.ndarray:
    """Each image's fold, 0 to 4."""
    folds = np.zeros(len(records), dtype=int)
    for number in range(FOLDS):
        folds[fold_splits(records, number, FOLDS).splits == "test"] = number
    return folds


def macro_of_common(scores: np.ndarray, targets: np.ndarray) -> float:
    """Macro AUC of the labels with enough positives to be counted in a report."""
    common = targets.sum(0) >= ENOUGH
    return macro_auroc(scores[:, common], targets[:, common])


def pooled_maps(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Maps of the last three stages and of the last convolution, ``(N, C, 7, 7)``, a tensor for each level."""
    final, stages = model.forward_intermediates(images, indices=3)
    return tuple(F.adaptive_avg_pool2d(x, GRIDS[-1]) for x in (*stages, final))


def at_grid(level: torch.Tensor, grid: int) -> torch.Tensor:
    """Maps ``(N, C, H, W)`` as features ``(N, C grid grid)``."""
    return F.adaptive_avg_pool2d(level.float(), grid).flatten(1)


def standard(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    return ((x - mean) / (std + 1e-6)).clamp_(-LARGEST, LARGEST)


@torch.inference_mode()
def read_maps(start: str, root: str) -> list[torch.Tensor]:
    """Maps of every image at the network's own size, ``(N, C, 7, 7)`` float16, a tensor for each level."""
    model = load_model(start).eval().to(memory_format=torch.channels_last)
    dataset = create_dataset("nih", root, "all")
    levels, started = [], time.monotonic()
    for images, _ in make_loader(dataset, create_transform(model), 32):
        images = images.contiguous(memory_format=torch.channels_last)
        levels.append([x.half() for x in pooled_maps(model, images)])
        if len(levels) % 20 == 0:
            logger.info(
                "%s: %d of %d images, %.0f s", start, len(levels) * 32, len(dataset), time.monotonic() - started
            )
    return [torch.cat(level) for level in zip(*levels, strict=True)]


@torch.inference_mode()
def kernel(levels: list[torch.Tensor], train: torch.Tensor) -> torch.Tensor:
    """Inner products of all images with the training images, ``(N, M)``; 1 on average of an image with itself."""
    total = torch.zeros(len(levels[0]), len(train))
    for level in levels:
        for grid in GRIDS:
            x = at_grid(level, grid)
            x = standard(x, x[train].mean(0), x[train].std(0))
            total += x @ x[train].T / x.shape[1]
    return total / total[train].diagonal().mean()


def ridge(K: torch.Tensor, targets: torch.Tensor, fitted: torch.Tensor, value: float) -> torch.Tensor:
    """Scores ``(N, L)`` of all images by the regression on the training images ``fitted``, places in columns of ``K``.

    Args:
        K: ``(N, M)``, the training images' own rows first.
        targets: ``(M, L)``.
    """
    mean = targets[fitted].mean(0)
    system = K[fitted][:, fitted]
    system.diagonal().add_(value)
    weights = torch.cholesky_solve(targets[fitted] - mean, torch.linalg.cholesky(system))
    return K[:, fitted] @ weights


def out_of_fold(K: torch.Tensor, targets: torch.Tensor, folds: list[torch.Tensor], value: float) -> torch.Tensor:
    """Scores ``(M, L)`` of the training images, each by the regression that has not seen its patient."""
    scores = torch.empty_like(targets)
    every = torch.arange(len(targets))
    for held in folds:
        scores[held] = ridge(K[: len(targets)], targets, every[~torch.isin(every, held)], value)[held]
    return scores


def components(K: torch.Tensor, train: torch.Tensor, count: int) -> np.ndarray:
    """The images' principal components in the kernel's space, ``(N, count)``, of unit variance over ``train``."""
    _, vectors = torch.linalg.eigh(K[train] - K[train].mean(0) - K[train].mean(1, keepdim=True) + K[train].mean())
    vectors = vectors[:, -count:].flip(1)
    found = (K - K[train].mean(0)) @ (vectors - vectors.mean(0))
    return (found / found[train].std(0)).numpy()


def platt(scores: np.ndarray, targets: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Logits of ``every`` score, by the line that fits each label's scores to its targets."""
    logits = np.empty_like(every)
    for column in range(every.shape[1]):
        scale = scores[:, column].std()
        line = LogisticRegression(C=1e4).fit(scores[:, column : column + 1] / scale, targets[:, column])
        logits[:, column] = line.decision_function(every[:, column : column + 1] / scale)
    return logits


def write_components(folder: Path, records: Records, logits: np.ndarray, found: np.ndarray) -> None:
    """Writes a table of the findings and of components without labels, and the logits of both to teach."""
    names = [f"component {n:03d}" for n in range(found.shape[1])]
    paths = [records.path(i) for i in range(len(records))]
    table = pd.DataFrame({"path": paths, "patient": records.patients, "split": records.splits})
    findings = pd.DataFrame(records.targets.astype(int), columns=records.labels)
    blank = pd.DataFrame("", index=table.index, columns=names)
    pd.concat([table, findings, blank], axis=1).to_csv(folder / "table.csv", index=False)
    both = np.concatenate([logits, SHARPNESS * found], 1)
    masked = np.full(found.shape, np.nan, dtype=np.float32)
    every = replace(records, labels=(*records.labels, *names), targets=np.concatenate([records.targets, masked], 1))
    of_records(every, both, {"teacher": "probe, components", "sha256": None}).save(folder / "components.parquet", False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--starts", nargs="+", required=True, help="run folders with ImageNet weights")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--components", type=int, default=0, help="of the frozen maps, to teach beside the findings")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    begin(args.output, args.threads)

    records = create_dataset("nih", args.root, "all").records
    train = torch.from_numpy(np.flatnonzero(records.splits == "train"))
    order = torch.cat([train, torch.from_numpy(np.flatnonzero(records.splits != "train"))])
    records, train = records.subset(order.numpy()), torch.arange(len(train))
    targets = torch.from_numpy(records.targets[: len(train)]).float()
    fold = fold_numbers(records.subset(train.numpy()))
    folds = [torch.from_numpy(np.flatnonzero(fold == number)) for number in range(FOLDS)]

    kernels = {}
    for start in args.starts:
        cache = args.output / f"kernel-{Path(start).name}.pt"
        if not cache.exists():
            levels = [level[order] for level in read_maps(start, args.root)]
            torch.save(kernel(levels, train), cache)
        kernels[Path(start).name] = torch.load(cache)
    if len(kernels) > 1:
        kernels["all"] = torch.stack(list(kernels.values())).mean(0)

    found, held_out = [], {}
    for name, K in kernels.items():
        for value in RIDGES:
            held_out[name, value] = out_of_fold(K, targets, folds, value).numpy()
            auc = macro_of_common(held_out[name, value], targets.numpy())
            found.append({"kernel": name, "ridge": value, "macro_auc": round(auc, 4)})
            logger.info("%s, ridge %g: %.4f", name, value, auc)
    with open(args.output / "folds.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)

    name, K = list(kernels.items())[-1]  # all together, where there are several
    best = max((row for row in found if row["kernel"] == name), key=lambda row: row["macro_auc"])
    mine = held_out[name, best["ridge"]]
    scores = ridge(K, targets, train, best["ridge"]).numpy()
    scores[: len(train)] = mine
    logits = platt(mine, targets.numpy(), scores)
    if args.components:
        write_components(args.output, records, logits, components(K, train, args.components))
    metadata = {
        "teacher": "probe of " + " and ".join(Path(start).name for start in args.starts),
        "sha256": None,
        "ridge": best["ridge"],
    }
    predictions = of_records(records, logits, {**metadata, "model": "probe", "data": "nih"})
    predictions.save(args.output / "teacher.parquet")
    predictions.rows(records.splits == "test").save(args.output / "test.parquet")


if __name__ == "__main__":
    main()
