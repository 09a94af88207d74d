"""Measures loading from files and from shards, and a large table, beside TorchXRayVision and libjpeg-turbo."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from ...data import create_dataset, create_transform, make_loader
from ...data.collections.phantom import LABELS, draw
from ...data.collections.xrv import shipped_table
from ...utils.errors import InputError
from ..prepare import PrepareConfig, prepare
from .config import BenchDataConfig
from .timing import alternate, kilobytes, peak_bytes, timed, write_record

__all__ = ["BenchDataConfig", "bench_data"]

_BATCH = 32


def bench_data(config: BenchDataConfig) -> list[dict]:
    """Measures how fast one worker process loads the same frontal images in batches of 32.

    TorchXRayVision's dataset resizes with its ``XRayResizer``; ours does what evaluation does. Shards are prepared
    first, with a shorter side of 256. Every contender's worker is started before its first round. The limit is a bare
    loop in this process: libjpeg-turbo (torchvision's) decodes the files to gray, at full size, and nothing else.

    ``startup_s`` and ``startup_mb`` are the cost of creating the dataset of CheXpert's real training table (223,414
    rows, shipped by TorchXRayVision) in a fresh process: seconds, and the growth of peak resident memory after the
    imports. ``worker_growth_mb`` is the private memory that a worker process gains when it reads every row of that
    table once, without images. Memory is measured on Linux; 1 MB is 10^6 bytes.

    Returns:
        One row per contender, TorchXRayVision's first: ``loader``, ``images_per_s`` with its ratio and quartiles, and
        the three costs above, ``"-"`` where they do not apply.

    Raises:
        InputError: fewer than 32 images, or ``root`` is not a CheXpert folder.
    """
    if config.images < _BATCH:
        raise InputError(f"--images must be at least {_BATCH}")
    with tempfile.TemporaryDirectory() as scratch:
        root = _subset(config, Path(scratch) / "chexpert")
        prepare(PrepareConfig(Path(scratch) / "shards", data="chexpert", root=str(root), views="all", shard_size=128))
        loaders = {
            "torchxrayvision": _xrv_loader(root, config.img_size),
            "mxa, files": _our_loader("chexpert", root, config.img_size),
            "mxa, shards": _our_loader("shards", Path(scratch) / "shards", config.img_size),
        }
        files = sorted((root / "train").rglob("*.jpg"))
        counts = {name: _exhaust(loader) for name, loader in loaders.items()} | {"libjpeg-turbo": len(files)}
        if len(set(counts.values())) != 1:
            raise InputError(f"the loaders do not give the same number of images: {counts}")
        contenders = [*(partial(_exhaust, loader) for loader in loaders.values()), partial(_decode, files)]
        rounds = alternate(contenders, config.repeats, torch.device("cpu"))
    count = next(iter(counts.values()))
    speeds = [[count / ms * 1e3 for ms in times] for times in rounds]
    none = dict.fromkeys(("startup_s", "startup_mb", "worker_growth_mb"), "-")
    costs = [_table_cost("xrv"), _table_cost("mxa"), none, none]
    rows: list[dict[str, Any]] = [
        {"loader": name} | timed("images_per_s", speeds, i) | costs[i] for i, name in enumerate(counts)
    ]
    write_record(config, rows, torch.device("cpu"))
    return rows


def _subset(config: BenchDataConfig, folder: Path) -> Path:
    """Makes a CheXpert folder of the images to load: links to those of ``root``, or drawn ones."""
    (folder / "train").mkdir(parents=True)
    rows = []
    if config.root is not None:
        dataset = create_dataset("chexpert", config.root, "all")
        files = [Path(name).resolve() for name in dataset.filenames()[: config.images]]
    for i in range(config.images if config.root is None else len(files)):
        inside = f"train/patient{i:05d}/study1/view1_frontal.jpg"
        path = folder / inside
        path.parent.mkdir(parents=True)
        if config.root is None:
            Image.fromarray(draw(i, 320).image).resize((390, 320)).save(path, quality=90)
        else:
            path.symlink_to(files[i])
        rows.append((f"CheXpert-v1.0-small/{inside}", "Female", 60, "Frontal", "AP", *["1.0"] * len(LABELS)))
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS), *rows])
    return folder


def _our_loader(collection: str, root: Path, size: int) -> DataLoader:
    transform = create_transform({"input_size": (3, size, size), "mean": (0.5,), "std": (0.5,)})
    return make_loader(create_dataset(collection, root, "all"), transform, _BATCH, workers=1)


def _xrv_loader(root: Path, size: int) -> DataLoader:
    xrv = _import_xrv()
    dataset = xrv.CheX_Dataset(
        str(root), str(root / "train.csv"), ["AP", "PA"], transform=xrv.XRayResizer(size), unique_patients=False
    )
    return DataLoader(dataset, _BATCH, num_workers=1, persistent_workers=True)


def _import_xrv() -> Any:
    with warnings.catch_warnings():  # importing it silences every warning of the process
        import torchxrayvision.datasets
    return torchxrayvision.datasets


def _exhaust(loader: DataLoader) -> int:
    return sum(len(batch["img"] if isinstance(batch, dict) else batch[0]) for batch in loader)


def _decode(files: list[Path]) -> None:
    for file in files:
        decode_jpeg(read_file(str(file)), ImageReadMode.GRAY)


def _table_cost(package: str) -> dict[str, float]:
    """Measures start-up and worker memory on the real table, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.csv.gz").symlink_to(shipped_table("chexpert_train.csv.gz"))
        code = "import sys; from mxa.commands.bench.data import _measure_table; _measure_table(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, package, folder], stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def _measure_table(package: str, folder: str) -> None:
    """Prints ``_table_cost`` of one package; run in a fresh process."""
    if package == "xrv":
        xrv = _import_xrv()
    before, start = peak_bytes(), time.perf_counter()
    if package == "xrv":
        every = ["AP", "PA", "L", "LL", "RL"]
        dataset = xrv.CheX_Dataset(folder, f"{folder}/train.csv.gz", every, unique_patients=False)
        row: Callable = lambda i: (dataset.csv["Path"].iloc[i], dataset.labels[i])  # noqa: E731
    else:
        dataset = create_dataset("chexpert", folder, "all", views="all")
        row = lambda i: (dataset.records.path(i), dataset.records.targets[i])  # noqa: E731
    seconds = time.perf_counter() - start
    growth = (peak_bytes() - before) / 1e6 or "-"
    loader = DataLoader(_Rows(row, len(dataset)), 1024, num_workers=1)
    private = torch.cat(list(loader))
    private = private[private > 0]
    gained = float(private[-1] - private[0]) / 1e6 if len(private) == 2 else "-"
    print(json.dumps({"startup_s": seconds, "startup_mb": growth, "worker_growth_mb": gained}, allow_nan=False))


class _Rows(Dataset):
    """Reads a table's rows. Samples 1000 and the last are the worker's private memory in bytes, all others 0."""

    def __init__(self, row: Callable[[int], tuple], count: int):
        self.row, self.count = row, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        self.row(index)
        return _private_bytes() if index in (1000, self.count - 1) else 0  # by 1000 the worker has started up


def _private_bytes() -> int:
    return kilobytes("/proc/self/smaps_rollup", "Private_Dirty:") * 1024
