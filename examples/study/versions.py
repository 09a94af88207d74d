"""A patient, consistent teacher: logits for many versions of each image, which a student then sees as they are.

A file of logits has one row an image, while the student sees another crop each time. Here the crops come first. Each
training image is written several times: as it is, cut and turned at random, and mixed with another image. The probe
of ``probe.py``, on EfficientNet-Lite0 alone, scores each version by the regression that has seen neither patient.
What a crop teaches is the mean of its own logits and of those of all crops of its image. Images of another collection
join without their labels, scored by the regression on all training patients.

    python examples/study/versions.py --root NIH8K --start lite0 --more NIH512 --output versions

writes versions/images, versions/table.csv for ``mxa train --data table``, versions/teacher.parquet for ``--teacher``,
and versions/test.parquet, the teacher's own scores of the test list: the mean over an image's crops, for ``mxa
evaluate``. It wants ``pip install "mxa[openvino]"``. The idea is that of Beyer et al., "Knowledge distillation: a good
teacher is patient and consistent", CVPR 2022.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import openvino
import pandas as pd
import torch
from PIL import Image
from probe import FOLDS, GRIDS, at_grid, begin, fold_numbers, platt, pooled_maps, standard

from mxa.data import create_dataset, create_transform
from mxa.data.boxes import reduced
from mxa.data.dataset import seeded
from mxa.data.records import Records
from mxa.evaluation.predictions import of_records
from mxa.models.load import load_model

CROPS, MIXTURES = 5, 2  # versions of an image beside itself
SIDE, SCALE = 160, (0.6, 1.0)  # pixels of a version, share of the area that a crop keeps
SHARPNESS = 128  # largest side in pixels, that of NIH8K, so that no collection is told by its sharpness
logger = logging.getLogger("versions")


class Maps(torch.nn.Module):
    """The frozen network: the probe's maps of images, by OpenVINO, which takes a fifth of PyTorch's time here."""

    def __init__(self, start: str):
        super().__init__()
        self.model = load_model(start).eval()
        self.transform = create_transform(self.model)
        example = torch.zeros(2, *self.model.pretrained_cfg["input_size"])
        self.compiled = openvino.compile_model(
            openvino.convert_model(self, example_input=example), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return pooled_maps(self.model, x)

    def of(self, images: list[Image.Image]) -> list[torch.Tensor]:
        """Maps ``(N, C, 7, 7)``, a tensor for each level."""
        x = torch.stack([self.transform(image) for image in images])
        return [torch.from_numpy(level.copy()) for level in self.compiled(x.numpy()).values()]


class Regressions:
    """Ridge regressions on the probe's kernel, as weights of the maps, each ``without`` some folds."""

    def __init__(
        self,
        levels: list[torch.Tensor],
        targets: torch.Tensor,
        folds: np.ndarray,
        ridge: float,
        without: Sequence[tuple[int, ...]],
    ):
        features = [at_grid(level, grid) for level in levels for grid in GRIDS]
        self.moments = [(x.mean(0), x.std(0)) for x in features]
        features = [standard(x, *m) for x, m in zip(features, self.moments, strict=True)]
        kernel = sum(x @ x.T / x.shape[1] for x in features)
        scale = kernel.diagonal().mean()
        duals = []
        for held in without:
            fitted = torch.from_numpy(np.flatnonzero(~np.isin(folds, held)))
            system = kernel[fitted][:, fitted] / scale
            system.diagonal().add_(ridge)
            centred = targets[fitted] - targets[fitted].mean(0)
            dual = torch.zeros_like(targets)
            dual[fitted] = torch.cholesky_solve(centred, torch.linalg.cholesky(system))
            duals.append(dual)
        weights = torch.cat(duals, 1)
        self.weights = [x.T @ weights / (x.shape[1] * scale) for x in features]
        self.count = len(without)

    def __call__(self, levels: list[torch.Tensor]) -> np.ndarray:
        """Scores ``(N, R, L)`` by each regression."""
        features = [at_grid(level, grid) for level in levels for grid in GRIDS]
        scores = sum(standard(x, *m) @ w for x, m, w in zip(features, self.moments, self.weights, strict=True))
        return scores.unflatten(1, (self.count, -1)).numpy()


class Versions:
    """Draws versions of images: 0 as it is, then crops, then mixtures."""

    def __init__(self):
        cfg = {"input_size": (1, SIDE, SIDE), "mean": (0.5,), "std": (0.5,)}
        self.cut = create_transform(cfg, is_training=True, scale=SCALE).to_planes()
        self.whole = create_transform(cfg).to_planes()

    def draw(self, source: Records, i: int, version: int, other: int, share: float) -> Image.Image:
        image = reduced(source.image(i), SHARPNESS)
        if version > CROPS:
            second = reduced(source.image(other), SHARPNESS).convert("L")
            image = Image.blend(image.convert("L"), second.resize(image.size, Image.Resampling.BICUBIC), share)
        with seeded(version, i):
            return Image.fromarray((self.cut if version else self.whole)(image)[0].numpy())

    def partners(self, folds: np.ndarray, version: int) -> tuple[np.ndarray, np.ndarray]:
        """Which image each is mixed with, one of its own fold, so one regression has seen neither; and its share."""
        rng = np.random.default_rng(version)
        partner = np.arange(len(folds))
        for fold in np.unique(folds):
            partner[folds == fold] = rng.permutation(partner[folds == fold])
        return partner, rng.uniform(0.2, 0.5, len(folds))


def over_crops(scores: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The mean ``(N, L)`` of the rows that belong to the same image."""
    places = np.unique(images, return_inverse=True)[1]
    total = np.zeros((places.max() + 1, scores.shape[1]))
    np.add.at(total, places, scores)
    return (total / np.bincount(places)[:, None])[places]


def batches(count: int, size: int = 64) -> Iterator[np.ndarray]:
    if count:
        yield from np.array_split(np.arange(count), max(count // size, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--start", required=True, help="run folder with ImageNet weights")
    parser.add_argument("--more", help="folder in NIH's layout whose images join without labels")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ridge", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    begin(args.output, args.threads)
    (args.output / "images").mkdir(exist_ok=True)

    records = create_dataset("nih", args.root, "all").records
    train, val, test = (records.subset(np.flatnonzero(records.splits == name)) for name in ("train", "val", "test"))
    folds = fold_numbers(train)
    maps, versions = Maps(args.start), Versions()
    levels = [maps.of([train.image(i) for i in part]) for part in batches(len(train))]
    levels = [torch.cat(level) for level in zip(*levels, strict=True)]
    without = [(fold,) for fold in range(FOLDS)] + [()]  # the last is on all training patients
    regressions = Regressions(levels, torch.from_numpy(train.targets).float(), folds, args.ridge, without)
    own = regressions(levels)[np.arange(len(train)), folds]
    del levels
    rows, scores, started = [], [], time.monotonic()

    def write(source: Records, name: str, version: int, folds: np.ndarray, labelled: bool) -> None:
        partner, shares = versions.partners(folds, version)
        for part in batches(len(source)):
            pictures = [versions.draw(source, i, version, partner[i], shares[i]) for i in part.tolist()]
            for i, picture in zip(part.tolist(), pictures, strict=True):
                path = args.output / "images" / f"{name}-{version}-{i:05d}.png"
                picture.save(path, compress_level=1)
                crop = version <= CROPS
                row = {"path": f"images/{path.name}", "patient": source.patients[i], "split": source.splits[i]}
                known = source.targets[i].astype(int) if labelled and crop else [""] * len(train.labels)
                image = f"{name}-{i}" if crop else path.name
                rows.append(row | {"image": image} | dict(zip(train.labels, known, strict=True)))
            scores.append(regressions(maps.of(pictures))[np.arange(len(part)), folds[part]])
        logger.info("%s, version %d: %.0f s", name, version, time.monotonic() - started)

    for version in range(1 + CROPS + MIXTURES):
        write(train, "train", version, folds, labelled=True)
    write(val, "val", 0, np.full(len(val), FOLDS), labelled=True)
    if args.more:
        more = create_dataset("nih", args.more, "all", labels=train.labels).records
        held = set(val.patients.tolist()) | set(test.patients.tolist())
        more = more.subset(np.flatnonzero([patient not in held for patient in more.patients]))
        more.splits[:] = "train"
        for version in range(1 + CROPS + MIXTURES):
            write(more, "more", version, np.full(len(more), FOLDS), labelled=False)

    table = pd.DataFrame(rows)
    logits = platt(own, train.targets, np.concatenate(scores))
    logits = ((logits + over_crops(logits, table.pop("image").to_numpy())) / 2).astype(np.float32)
    table.to_csv(args.output / "table.csv", index=False)
    written = create_dataset("table", str(args.output / "table.csv"), "all").records
    place = {path: n for n, path in enumerate(table["path"])}
    order = [place[str(path)] for path in written.paths]
    metadata = {"teacher": f"probe of {Path(args.start).name}, over crops", "sha256": None, "ridge": args.ridge}
    logits = logits[order][:, [train.labels.index(label) for label in written.labels]]
    of_records(written, logits, {**metadata, "model": "probe", "data": "table"}).save(args.output / "teacher.parquet")

    scores = np.zeros((len(test), len(train.labels)), dtype=np.float32)
    for version in range(1 + CROPS):
        for part in batches(len(test)):
            pictures = [versions.draw(test, i, version, i, 0.0) for i in part.tolist()]
            scores[part] += regressions(maps.of(pictures))[:, FOLDS] / (1 + CROPS)
    logits = platt(own, train.targets, scores)
    of_records(test, logits, {**metadata, "model": "probe", "data": "nih"}).save(args.output / "test.parquet")


if __name__ == "__main__":
    main()
