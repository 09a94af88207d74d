"""A teacher whose last stages learn too: five networks, each on four fifths of the training patients.

The first stages of an ImageNet network stay frozen, so their maps of every version of ``versions.py`` are made once.
The stages behind learn from the labels and from the probe. The network of a fold is taught by regressions that have
seen neither its fold nor the image's own, so what it says of its fold is out of fold. A choice is made on these scores.

    python examples/study/finetune.py --root NIH8K --versions versions --start lite0 --output finetune

writes finetune/folds.csv: networks, probe, and their mean, out of fold. For ``mxa train --teacher`` it writes
finetune/teacher.parquet, logits of every version, and finetune/train.parquet, those of NIH8K's training images, each
the mean over its versions. For ``mxa evaluate`` it writes finetune/test.parquet and finetune/networks.parquet, the
scores of the test list by the mean and by the five networks alone.
"""

from __future__ import annotations

import argparse
import copy
import csv
import logging
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from probe import FOLDS, begin, fold_numbers, macro_of_common, platt
from timm.utils import ModelEmaV3
from torch import nn
from versions import CROPS, Maps, Regressions, Versions, batches, over_crops

from mxa.data import create_dataset
from mxa.data.records import Records
from mxa.evaluation.predictions import Predictions, of_records, read_predictions
from mxa.models.load import load_model

PAIRS = [(a, b) for a in range(FOLDS) for b in range(a, FOLDS)] + [()]  # folds that a regression has not seen
FROZEN = 4  # blocks of the network that stay as they are: those up to 14 x 14 cells
BATCH, WEIGHT_DECAY, DROPOUT, EMA = 64, 0.05, 0.2, 0.998
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the networks in the mean with the probe
logger = logging.getLogger("finetune")


class EarlyMaps(Maps):
    """The probe's maps, and the map ``(N, C, 14, 14)`` that the learning stages start from."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        early = self.model.blocks[:FROZEN](self.model.bn1(self.model.conv_stem(x)))
        return (*super().forward(x), early)


class Late(nn.Module):
    """The stages behind the frozen ones, with a head of their own."""

    def __init__(self, network: nn.Module, labels: int):
        super().__init__()
        self.blocks = copy.deepcopy(network.blocks[FROZEN:])
        self.conv, self.norm = copy.deepcopy(network.conv_head), copy.deepcopy(network.bn2)
        self.dropout, self.head = nn.Dropout(DROPOUT), nn.Linear(network.num_features, labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.norm(self.conv(self.blocks(x))).mean((2, 3))))


def frozen_maps(
    args: argparse.Namespace, teacher: Predictions, train: Records, test: Records, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Early maps ``(N, C, 14, 14)`` and scores ``(N, R, L)`` by the regressions of ``PAIRS``.

    Rows are the versions of the teacher's file, then the test images, whole, then their first crop, and so on.
    """
    maps_file, scores_file = args.versions / "early.npy", args.versions / "pairs.npy"
    if not scores_file.exists():
        frozen, draw = EarlyMaps(args.start), Versions()
        levels = [frozen.of([train.image(i) for i in part])[:-1] for part in batches(len(train))]
        levels = [torch.cat(level) for level in zip(*levels, strict=True)]
        regressions = Regressions(levels, torch.from_numpy(train.targets).float(), folds, args.ridge, PAIRS)
        del levels
        count = len(teacher) + (1 + CROPS) * len(test)
        maps, scores, started = None, np.zeros((count, len(PAIRS), len(train.labels)), np.float32), time.monotonic()
        for part in batches(count):
            pictures = []
            for row in part.tolist():
                if row < len(teacher):
                    pictures.append(Image.open(args.versions / "images" / Path(teacher.cases["image"][row]).name))
                else:
                    version, i = divmod(row - len(teacher), len(test))
                    pictures.append(draw.draw(test, i, version, i, 0.0))
            *levels, early = frozen.of(pictures)
            if maps is None:
                maps = np.lib.format.open_memmap(maps_file, "w+", np.float16, (count, *early.shape[1:]))
            maps[part], scores[part] = early.half().numpy(), regressions(levels)
            if part[0] // len(part) % 50 == 0:
                logger.info("%d of %d versions, %.0f s", part[0], count, time.monotonic() - started)
        np.save(scores_file, scores)
    return np.load(maps_file, mmap_mode="r"), np.load(scores_file)


def batch_of(maps: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(maps[rows]).float().contiguous(memory_format=torch.channels_last)


def learn(
    args: argparse.Namespace, network: nn.Module, maps: np.ndarray, rows: np.ndarray, targets: torch.Tensor, seed: int
) -> Late:
    """Trains the late stages on a version of each image an epoch.

    ``rows`` ``(images, versions)`` are places in ``maps``; ``targets`` are of the shape ``(images, versions, L)``.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    late = Late(network, targets.shape[-1]).to(memory_format=torch.channels_last).train()
    average = ModelEmaV3(late, decay=EMA, use_warmup=True)
    optimizer = torch.optim.AdamW(late.parameters(), args.lr, weight_decay=WEIGHT_DECAY)
    steps = args.epochs * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.1)
    step, started = 0, time.monotonic()
    for _ in range(args.epochs):
        order = rng.permutation(len(rows))
        for part in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
            version = rng.integers(rows.shape[1], size=len(part))
            x, y = batch_of(maps, rows[part, version]), targets[part, version]
            with torch.autocast("cpu", torch.bfloat16, enabled=args.amp):
                logits = late(x)
            loss = F.binary_cross_entropy_with_logits(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            average.update(late, step)
            if step % 100 == 0:
                logger.info("step %d of %d, loss %.4f, %.0f s", step, steps, loss.item(), time.monotonic() - started)
    return average.module.eval()


@torch.inference_mode()
def logits_of(late: Late, maps: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([late(batch_of(maps, rows[part])).numpy() for part in batches(len(rows), 256)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--versions", type=Path, required=True, help="what versions.py wrote")
    parser.add_argument("--start", required=True, help="run folder with ImageNet weights")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=0.7, help="share of the probe in what is learnt")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ridge", type=float, default=30.0)
    parser.add_argument("--amp", action="store_true", help="bfloat16, for processors that have it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--try-folds", type=int, default=FOLDS, help="of the five, to compare settings; fewer end there"
    )
    args = parser.parse_args()
    begin(args.output, args.threads)

    records = create_dataset("nih", args.root, "all").records
    train, test = (records.subset(np.flatnonzero(records.splits == name)) for name in ("train", "test"))
    folds = fold_numbers(train)
    teacher = read_predictions(args.versions / "teacher.parquet")
    maps, scores = frozen_maps(args, teacher, train, test, folds)

    names = [re.fullmatch(r"(\w+)-(\d)-(\d+)\.png", Path(name).name).groups() for name in teacher.cases["image"]]
    place = {(source, int(version), int(i)): row for row, (source, version, i) in enumerate(names)}
    count = 1 + CROPS  # versions of an image that are no mixtures
    rows = np.array([[place["train", version, i] for version in range(count)] for i in range(len(train))])
    test_rows = np.arange(len(teacher), len(maps)).reshape(count, -1).T
    labels = train.targets.astype(np.float32)

    # each row's fold: a training image's and its mixtures', FOLDS for all others
    row_fold = np.full(len(maps), FOLDS)
    for (source, _, i), row in place.items():
        if source == "train":
            row_fold[row] = folds[i]
    one = [PAIRS.index((fold, fold)) for fold in range(FOLDS)] + [len(PAIRS) - 1]
    probe = scores[np.arange(len(maps)), np.array(one)[row_fold]]
    probe = platt(probe[rows].mean(1), labels, probe)

    network, networks = load_model(args.start), np.zeros_like(probe)
    for fold in range(args.try_folds):
        inside = np.flatnonzero(folds != fold)
        pair = np.array([PAIRS.index(tuple(sorted((fold, other)))) for other in folds[inside]])
        taught = scores[rows[inside], pair[:, None]]  # (images, versions, L)
        taught = platt(taught.mean(1), labels[inside], taught.reshape(-1, taught.shape[-1])).reshape(taught.shape)
        taught = torch.from_numpy((taught + taught.mean(1, keepdims=True)) / 2).sigmoid()
        targets = args.alpha * taught + (1 - args.alpha) * torch.from_numpy(labels[inside])[:, None]
        late = learn(args, network, maps, rows[inside], targets, fold)
        scored = row_fold == fold
        if args.try_folds == FOLDS:
            scored |= row_fold == FOLDS
        networks[scored] += logits_of(late, maps, np.flatnonzero(scored))
    networks[row_fold == FOLDS] /= FOLDS

    tried = np.flatnonzero(folds < args.try_folds)
    found = []
    for share in SHARES:
        mixed = (1 - share) * probe + share * networks
        for crops in (1, count):
            auc = macro_of_common(mixed[rows[tried, :crops]].mean(1), labels[tried])
            setting = {name: getattr(args, name) for name in ("try_folds", "alpha", "epochs", "lr")}
            found.append(setting | {"networks": share, "versions": crops, "macro_auc": round(auc, 4)})
            logger.info("share of the networks %.2f, %d versions: %.4f", share, crops, auc)
    with open(args.output / "folds.csv", "a", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        if not file.tell():
            writer.writeheader()
        writer.writerows(found)
    if args.try_folds < FOLDS:
        return

    best = max((row for row in found if row["versions"] == count), key=lambda row: row["macro_auc"])["networks"]
    mixed = ((1 - best) * probe + best * networks).astype(np.float32)
    metadata = {"teacher": f"five networks of {Path(args.start).name} and the probe", "sha256": None, "share": best}
    image = [f"{source}-{i}" if int(version) < count else f"{source}-{version}-{i}" for source, version, i in names]
    logits = mixed[: len(teacher)]
    logits = ((logits + over_crops(logits, np.array(image))) / 2).astype(np.float32)
    columns = [train.labels.index(label) for label in teacher.labels]
    replace(teacher, logits=logits[:, columns], metadata=teacher.metadata | metadata).save(
        args.output / "teacher.parquet"
    )
    scored = (("train", train, mixed[rows]), ("test", test, mixed[test_rows]), ("networks", test, networks[test_rows]))
    for name, images, logits in scored:
        logits = logits.mean(1).astype(np.float32)
        of_records(images, logits, {**metadata, "model": name, "data": "nih"}).save(args.output / f"{name}.parquet")


if __name__ == "__main__":
    main()
