"""Where is the finding? Heads on the frozen features of one network, on five folds of images with drawn boxes.

Each arm is trained on four folds of the patients and scored on the fifth. The network's maps are computed once for each
image as it is and a few times as training varies it, so that a head is trained in minutes. The head, the losses and the
scores are those of the library; ``mxa train --freeze backbone --finding-head --boxes own`` trains the same on images.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mxa.commands.localize import baselines
from mxa.data import create_dataset, create_transform
from mxa.data.boxes import BoxedImage, boxed_images, reduced, transform_boxed
from mxa.data.dataset import derive_seed, seeded
from mxa.data.records import Records
from mxa.data.splits import fold_splits
from mxa.evaluation.predictions import of_records
from mxa.layers import FindingHead, FindingOutput, attach_finding_head
from mxa.layers.attach import AttachedFindingHead
from mxa.metrics.localization import covered_area, score_box, score_map
from mxa.metrics.localization_table import CaseScore, localization_table
from mxa.models import save_pretrained, set_label_names
from mxa.models.load import load_model
from mxa.task import masked_bce_with_logits, place_loss

LABELS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
FOLDS = 5
STRIDES = (8, 16, 32)
logger = logging.getLogger("where")


@dataclass
class Features:
    """Maps of every image in V versions, the first as it is: each ``(V, N, C, H, W)`` float16, the finest first."""

    records: Records
    images: list[BoxedImage]
    maps: list[torch.Tensor]
    pooled: torch.Tensor  # (V, N, C), what the network's classifier takes
    last: torch.Tensor  # (N, C, H, W), before the pooling, of the images as they are
    boxes: torch.Tensor  # (V, N, K, 5)


def read_features(args: argparse.Namespace) -> Features:
    """Computes the features of every stride, or reads them from the cache, and keeps some strides."""
    records = create_dataset("nih", args.root, "all", labels=LABELS, views="all").records
    images = boxed_images(records, "nih", args.root)
    cache = args.output / f"features-{args.size}.pt"
    if not cache.exists():
        torch.save(compute(records, images, args), cache)
    found = torch.load(cache, weights_only=True, mmap=True)
    maps = [m for m, stride in zip(found["maps"], STRIDES, strict=True) if stride in args.strides]
    return Features(records, images, maps, *(found[name] for name in ("pooled", "last", "boxes")))


@torch.inference_mode()
def compute(records: Records, images: list[BoxedImage], args: argparse.Namespace) -> dict:
    model, versions = load_model(args.start).eval(), args.versions
    cfg = {**model.pretrained_cfg, "input_size": (3, args.size, args.size)}
    transforms = [create_transform(cfg), create_transform(cfg, is_training=True)]
    last = {stage["reduction"]: i for i, stage in enumerate(model.feature_info)}
    drawn = {image.index: image.boxes for image in images}
    most = max((sum(map(len, boxes.values())) for boxes in drawn.values()), default=1)
    kept, pooled, final, boxes, started = [], [], [], [], time.monotonic()
    for version in range(versions):
        for i in range(len(records)):
            image = reduced(records.image(i), args.reduce)
            rows = [[*box, LABELS.index(f)] for f, some in drawn.get(i, {}).items() for box in some]
            rows = np.array(rows, dtype=np.float32).reshape(-1, 5)
            with seeded(version, i):
                x, moved = transform_boxed(transforms[version > 0], image, rows, most)
            boxes.append(moved)
            features, maps = model.forward_intermediates(x[None], indices=[last[stride] for stride in STRIDES])
            kept.append([m[0].half() for m in maps])
            final += [features[0].half()] if version == 0 else []
            pooled.append(model.forward_head(features, pre_logits=True)[0].half())
        logger.info("version %d of %d: %.0f s", version + 1, versions, time.monotonic() - started)
    shape = (versions, len(records))
    maps = [torch.stack(one).unflatten(0, shape) for one in zip(*kept, strict=True)]
    pooled, boxes = (torch.stack(one).unflatten(0, shape) for one in (pooled, boxes))
    return {"maps": maps, "pooled": pooled, "last": torch.stack(final), "boxes": boxes}


class Plain(nn.Module):
    """A linear classifier of the pooled features; its map is Grad-CAM, which is CAM for such a network."""

    def __init__(self, dims: list[int], width: int):
        super().__init__()
        self.linear = nn.Linear(width, len(LABELS))

    def forward(self, pooled: torch.Tensor, last: torch.Tensor | None, maps: list[torch.Tensor]):
        heat = None if last is None else torch.einsum("bchw,lc->blhw", last, self.linear.weight).relu()
        return self.linear(pooled), FindingOutput(None, heat, None)


class Pooled(nn.Module):
    """A score for each label in every cell of the finding head's map, pooled to a logit by PCAM or CSRA.

    PCAM: Ye et al., "Weakly supervised lesion localization with probabilistic-CAM pooling", 2020. CSRA: Zhu and Wu,
    "Residual attention", ICCV 2021 (one head, lambda 0.3, maximum).
    """

    def __init__(self, dims: list[int], width: int, kind: str):
        super().__init__()
        self.head, self.kind = FindingHead(dims, len(LABELS)), kind
        self.score = nn.Conv2d(self.head.score.in_channels, len(LABELS), 1)

    def forward(self, pooled: torch.Tensor, last: torch.Tensor | None, maps: list[torch.Tensor]):
        x = self.head.fuse(maps)
        scores = self.score(x)  # (B, L, H, W)
        if self.kind == "CSRA":
            flat = scores.flatten(2)
            return flat.mean(2) + 0.3 * flat.amax(2), FindingOutput(None, scores - scores.amin((2, 3), True), None)
        share = scores.sigmoid().flatten(2)
        share = share / share.sum(2, keepdim=True)
        seen = torch.bmm(share, x.flatten(2).transpose(1, 2))  # (B, L, C)
        logits = (seen * self.score.weight[:, :, 0, 0]).sum(2) + self.score.bias
        return logits, FindingOutput(None, scores.sigmoid(), None)


class Finding(nn.Module):
    """The plain classifier and a finding head beside it, as ``attach_finding_head`` puts it."""

    def __init__(self, dims: list[int], width: int):
        super().__init__()
        self.plain = Plain(dims, width)
        self.attached = AttachedFindingHead(FindingHead(dims, len(LABELS)), [], range(len(LABELS)), len(LABELS))

    def forward(self, pooled: torch.Tensor, last: torch.Tensor | None, maps: list[torch.Tensor]):
        logits, _ = self.plain(pooled, last, maps)
        return self.attached(logits, maps)


ARMS = {
    "plain": (Plain, False),
    "PCAM": (lambda dims, width: Pooled(dims, width, "PCAM"), False),
    "CSRA": (lambda dims, width: Pooled(dims, width, "CSRA"), False),
    "finding head, labels": (Finding, False),
    "finding head, boxes": (Finding, True),
}


def train(arm: str, data: Features, rows: np.ndarray, seed: int, args: argparse.Namespace) -> nn.Module:
    """Trains one arm on some images."""
    torch.manual_seed(seed)
    build, with_boxes = ARMS[arm]
    model = build([m.shape[2] for m in data.maps], data.pooled.shape[2]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    steps = len(rows) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.1)
    targets = torch.from_numpy(data.records.targets)
    boxes = data.boxes.clone()
    if args.boxes is not None:  # so many of the training images keep their boxes
        boxed = rows[(data.boxes[0, rows, :, 4] >= 0).any(1).numpy()]
        without = np.setdiff1d(boxed, np.random.default_rng(seed).permutation(boxed)[: args.boxes])
        boxes[:, without] = -1.0
    for epoch in range(args.epochs):
        rng = np.random.default_rng(derive_seed(seed, epoch))
        order, version = rng.permutation(rows), rng.integers(min(1, len(data.boxes) - 1), len(data.boxes), len(rows))
        for step in range(steps):
            part = slice(step * args.batch_size, (step + 1) * args.batch_size)
            logits, found, here = run(model, data, version[part], order[part], boxes)
            loss = masked_bce_with_logits(logits, targets[order[part]])
            if with_boxes:
                loss = loss + args.box_weight * place_loss(found, here)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def run(model: nn.Module, data: Features, version, rows, boxes: torch.Tensor):
    maps = [m[version, rows].float() for m in data.maps]
    last = None if model.training else data.last[rows].float()
    return *model(data.pooled[version, rows].float(), last, maps), boxes[version, rows]


@torch.inference_mode()
def score(model: nn.Module, data: Features, rows: np.ndarray) -> tuple[np.ndarray, list[CaseScore]]:
    """Logits of some images, and the scores of their drawn boxes by the map and, where there is one, the box."""
    drawn, logits, cases = {image.index: image for image in data.images}, [], []
    for part in np.array_split(rows, max(len(rows) // 64, 1)):
        z, found, _ = run(model, data, 0, part, data.boxes)
        logits.append(z)
        heat = found.scores
        if found.boxes is not None:
            heat = heat.flatten(2).softmax(2).view_as(heat)
        heat = F.interpolate(heat, scale_factor=8, mode="bilinear").numpy()  # as predict_findings enlarges it
        for place, i in enumerate(part.tolist()):
            for finding, box in drawn[i].boxes.items() if i in drawn else ():
                one, label = drawn[i], LABELS.index(finding)
                results = {"map": score_map(heat[place, label], box)}
                if found.boxes is not None:
                    results["box"] = score_box(found.boxes[place, label].numpy(), box)
                area = covered_area(box)
                for method, s in results.items():
                    who = one.name, one.patient, finding, method
                    cases.append(CaseScore(*who, s.pointing, s.iou, s.energy, area=area))
    return torch.cat(logits).numpy(), cases


def keep(model: Finding, start: str, size: int, strides: list[int], folder: Path) -> None:
    """Saves the network and the heads that were trained on its features as one model."""
    whole = load_model(start)
    whole.reset_classifier(len(LABELS))
    set_label_names(whole, LABELS)
    whole.pretrained_cfg.update(input_size=(3, size, size), crop_pct=1.0, crop_mode="squash")
    attach_finding_head(whole, range(len(LABELS)), strides)
    whole.finding_head.load_state_dict(model.attached.state_dict())
    whole.get_classifier().load_state_dict(model.plain.linear.state_dict())
    save_pretrained(whole, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder in NIH's layout, with BBox_List_2017.csv")
    parser.add_argument("--start", required=True, help="what mxa convert wrote of EfficientNet-Lite0, or a model")
    parser.add_argument("--name", help="of the network, added to the names of the arms")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--size", type=int, default=256, help="side of the input, in pixels")
    parser.add_argument("--reduce", type=int, help="side that images are reduced to first; none")
    parser.add_argument(
        "--strides", type=int, nargs="+", default=[16, 32], choices=STRIDES, help="of the maps that the heads take"
    )
    parser.add_argument("--versions", type=int, default=5, help="of each image, the first as it is")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--box-weight", type=float, default=1.0)
    parser.add_argument("--boxes", type=int, help="images of a fold's training part that keep their boxes; all of them")
    parser.add_argument("--whole", type=Path, help="folder for a finding head that all boxes have taught, seed 0")
    parser.add_argument("--without", type=Path, help="list of images whose patients do not teach that head")
    parser.add_argument("--keep", type=Path, help="folder for the finding heads of the first seed, a model a fold")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    data = read_features(args)
    folds = [np.flatnonzero(fold_splits(data.records, k, FOLDS).splits == "test") for k in range(FOLDS)]
    ending = "" if args.strides == [16, 32] else f", strides {' '.join(map(str, args.strides))}"
    ending += "" if args.boxes is None else f", {args.boxes} images"
    ending += f", {args.name}" if args.name else ""
    for arm, seed in ((arm, seed) for seed in args.seeds for arm in args.arms):
        path = args.output / f"{arm}{ending}-{args.size}-seed{seed}".replace(" ", "_").replace(",", "")
        if path.with_suffix(".csv").exists():
            continue
        started, logits, cases = time.monotonic(), np.zeros((len(data.records), len(LABELS)), np.float32), []
        for number, tested in enumerate(folds):
            model = train(arm, data, np.setdiff1d(np.arange(len(data.records)), tested), seed, args)
            if args.keep and seed == args.seeds[0] and isinstance(model, Finding):
                keep(model, args.start, args.size, args.strides, args.keep / f"{path.stem}-fold{number}")
            logits[tested], found = score(model, data, tested)
            cases += found
        metadata = {"arm": arm + ending, "size": args.size, "seed": seed, "seconds": round(time.monotonic() - started)}
        of_records(data.records, logits, metadata).save(path.with_suffix(".parquet"))
        write_cases(cases, path.with_suffix(".csv"))
        macro = {row["method"]: row for row in localization_table(cases, 1) if row["finding"] == "all"}
        said = "; ".join(f"{m}: pointing {r['pointing']:.3f}, IoU > 0.25 {r['hit_0.25']:.3f}" for m, r in macro.items())
        logger.info("%s, seed %d: %s (%d s)", arm + ending, seed, said, metadata["seconds"])
    if args.whole:
        left_out = set(args.without.read_text().split()) if args.without else ()
        patients = {name[:8] for name in left_out}  # NIH's names begin with the patient
        taught = np.flatnonzero([Path(path).name[:8] not in patients for path in data.records.paths])
        logger.info("%d of %d images teach the head in %s", len(taught), len(data.records), args.whole)
        model = train("finding head, boxes", data, taught, 0, args)
        keep(model, args.start, args.size, args.strides, args.whole)
    floors = baselines(data.images, LABELS)
    write_cases(floors, args.output / "no_model.csv")
    (args.output / "settings.json").write_text(json.dumps({k: str(v) for k, v in vars(args).items()}, indent=1))


def write_cases(cases: list[CaseScore], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CaseScore._fields)
        writer.writerows([[round(v, 5) if isinstance(v, float) else v for v in case] for case in cases])


if __name__ == "__main__":
    main()
