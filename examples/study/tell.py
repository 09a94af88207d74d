"""Does looking help to tell? Heads on the frozen maps of one network: labels of one collection, boxes of another.

Three arms learn the labels of NIH8K's training patients from the same maps: a linear classifier; the same with a
finding head for the eight labels that have boxes; and with a finding head that sees a batch of NIH512's boxed images
beside every batch, none of them of a patient whom NIH8K validates or tests. All 15 labels are scored on NIH8K's test
list. Images of NIH512 are reduced to the 128 px of NIH8K.

    python examples/study/tell.py --root NIH8K --boxed NIH512 --start lite0 --output tell

``mxa evaluate`` makes the table of the scores (docs/results.md).
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from where import LABELS, compute

from mxa.data import create_dataset
from mxa.data.boxes import boxed_images
from mxa.data.dataset import derive_seed
from mxa.data.records import Records
from mxa.evaluation.predictions import of_records
from mxa.layers import FindingHead
from mxa.layers.attach import AttachedFindingHead
from mxa.task import masked_bce_with_logits, place_loss

ARMS = ("plain", "labels", "boxes")
logger = logging.getLogger("tell")


class Network(nn.Module):
    """A linear classifier of the pooled features, with a finding head for some of its outputs or without."""

    def __init__(self, dims: list[int], width: int, outputs: tuple[str, ...], finding: bool):
        super().__init__()
        self.linear = nn.Linear(width, len(outputs))
        rows = [outputs.index(label) for label in LABELS]
        self.attached = AttachedFindingHead(FindingHead(dims, len(rows)), [], rows, len(outputs)) if finding else None

    def forward(self, pooled: torch.Tensor, maps: list[torch.Tensor]):
        logits = self.linear(pooled)
        return (logits, None) if self.attached is None else self.attached(logits, maps)


def batch(found: dict, version: np.ndarray | int, rows: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return found["pooled"][version, rows].float(), [m[version, rows].float() for m in found["maps"]]


def train(arm: str, seed: int, data: dict, records: Records, boxed: dict, args: argparse.Namespace) -> Network:
    """Trains one arm on the training split; ``boxed`` are the features that have boxes."""
    torch.manual_seed(seed)
    model = Network([m.shape[2] for m in data["maps"]], data["pooled"].shape[2], records.labels, arm != "plain").train()
    rows, targets = np.flatnonzero(records.splits == "train"), torch.from_numpy(records.targets)
    steps = len(rows) // args.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.1)
    with_boxes = np.flatnonzero((boxed["boxes"][0, :, :, 4] >= 0).any(1).numpy())
    for epoch in range(args.epochs):
        rng = np.random.default_rng(derive_seed(seed, epoch))
        order, version = rng.permutation(rows), rng.integers(1, args.versions, len(rows))
        for step in range(steps):
            part = slice(step * args.batch_size, (step + 1) * args.batch_size)
            logits, _ = model(*batch(data, version[part], order[part]))
            loss = masked_bce_with_logits(logits, targets[order[part]])
            if arm == "boxes":
                some, which = rng.choice(with_boxes, args.batch_size), rng.integers(1, args.versions, args.batch_size)
                found = model(*batch(boxed, which, some))[1]
                loss = loss + place_loss(found, boxed["boxes"][which, some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def features(root: str, args: argparse.Namespace, reduce: int | None, held: set[str]) -> tuple[Records, dict]:
    """Records without the patients ``held``, and their features, computed or read."""
    records = create_dataset("nih", root, "all").records
    records = records.subset(np.flatnonzero([patient not in held for patient in records.patients]))
    cache = args.output / f"features-{Path(root).name}.pt"
    if not cache.exists():
        args.reduce = reduce
        torch.save(compute(records, boxed_images(records.with_labels(LABELS), "nih", root), args), cache)
    return records, torch.load(cache, weights_only=True, mmap=True)


@torch.inference_mode()
def score(model: Network, data: dict, rows: np.ndarray) -> np.ndarray:
    """Logits ``(N, 15)`` of some images as they are."""
    return torch.cat([model(*batch(data, 0, part))[0] for part in np.array_split(rows, 32)]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--boxed", required=True, help="folder in NIH's layout, with BBox_List_2017.csv")
    parser.add_argument("--start", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--size", type=int, default=160, help="side of the input, in pixels")
    parser.add_argument("--versions", type=int, default=3, help="of each image, the first as it is")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    records, data = features(args.root, args, None, set())
    held = set(records.patients[records.splits != "train"].tolist())
    _, boxed = features(args.boxed, args, 128, held)
    kept = np.flatnonzero(records.splits != "train")
    for seed in args.seeds:
        for arm in args.arms:
            path, started = args.output / f"{arm}-seed{seed}.parquet", time.monotonic()
            if path.exists():
                continue
            logits = score(train(arm, seed, data, records, boxed, args), data, kept)
            metadata = {"model": f"{Path(args.start).name}, {arm}", "data": "nih", "seed": seed}
            of_records(records.subset(kept), logits, metadata).save(path)
            logger.info("%s, seed %d: %d s", arm, seed, time.monotonic() - started)


if __name__ == "__main__":
    main()
