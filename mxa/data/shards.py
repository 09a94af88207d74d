"""Prepared shards: tar files of small gray images in the WebDataset layout, on a disk or behind a URL.

``mxa prepare`` writes them. A shard is read whole and in one go: slow disks and networks are best at that. The table
``rows.csv.gz`` says what is in the shards, so that splits, labels, views and policies are chosen as for any other
collection.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from ..utils.distributed import rank, world_size
from ..utils.errors import InputError, require
from .collections.reader import CollectionReader
from .dataset import CXRDataset
from .image_io import read_image
from .names import is_url
from .records import Records
from .tables import read_table_file

__all__ = [
    "MANIFEST",
    "ROWS",
    "ROW_COLUMNS",
    "ShardDataset",
    "ShardRecords",
    "Shards",
    "check_url",
    "largest_shard",
]

MANIFEST, ROWS = "manifest.json", "rows.csv.gz"
ROW_COLUMNS = ("shard", "key", "file", "patient", "study", "view", "sex", "age", "split")
_SHARD = re.compile(r"\w[\w.-]*\.tar")  # a name that leads nowhere else and that no shell takes for a command
_LARGEST = 2**28  # bytes of a shard or of the table, unless MXA_MAX_SHARD_BYTES says otherwise
_MANIFEST_BYTES, _MEMBERS, _CELLS = 2**24, 200_000, 10**8
_URL = re.compile(r"(?!pipe:)[a-z][a-z0-9+.-]*://[\w.~:/?#@!$&()*+,;=%-]*", re.ASCII)
MIXED = 4  # shards whose images a training process mixes: some 60 MB in memory at 1,000 images a shard


def check_url(url: str | Path, allow_pipe: bool) -> None:
    """Refuses a URL that runs a command, or could.

    webdataset opens most URLs with a program such as curl. So a URL has only signs that no shell takes for its own.

    Raises:
        InputError: it starts with ``pipe:``, unless that is allowed, or has other signs.
    """
    if str(url).startswith("pipe:"):
        if not allow_pipe:
            raise InputError(f"{url} runs a command: add --allow-pipe (allow_pipe=True in Python) if it is your own")
    elif not _URL.fullmatch(str(url)):
        raise InputError(f"{url} is not a URL that is opened: give its scheme in small letters, other signs as %XX")


def largest_shard() -> int:
    """Returns how many bytes a shard or the table may have.

    Raises:
        InputError: the environment says it in a way that is no number.
    """
    said = os.environ.get("MXA_MAX_SHARD_BYTES", str(_LARGEST))
    if not (said.isdecimal() and len(said) < 16):
        raise InputError(f"MXA_MAX_SHARD_BYTES must be a number of bytes, got {said!r}")
    return int(said)


def _too_large(where: str, most: int) -> InputError:
    return InputError(
        f"{where} is larger than {most:,} bytes: prepare it with a smaller --shard-size, or raise MXA_MAX_SHARD_BYTES"
    )


def _fetch(root: str, name: str, sha256: str | None = None, most: int = _MANIFEST_BYTES) -> bytes:
    """Reads a file of the folder or URL whole, and checks what it should be.

    Raises:
        InputError: it does not open, is larger than ``most`` bytes, or is not what the manifest says.
    """
    where = f"{root.rstrip('/')}/{name}"
    try:
        if is_url(root):
            with require("webdataset", "data").gopen(where) as stream:
                data = stream.read(most + 1)
        else:
            with Path(where).open("rb") as stream:
                data = stream.read(most + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{where} does not open: {error}") from None
    if len(data) > most:
        raise _too_large(where, most)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(
            f"{where} is not what the manifest says ({len(data)} bytes, another SHA-256): prepare it again"
        )
    return data


@dataclass(frozen=True)
class ShardRecords(Records):
    """Records whose images lie in shards; ``paths`` are ``SHARD/KEY``, ``checksums`` the SHA-256 of each shard."""

    checksums: dict[str, str] = field(default_factory=dict)

    def load(self, shard: str) -> dict[str, memoryview]:
        """Reads a shard; returns the encoded image of every key.

        Raises:
            InputError: it does not open, is too large, or is not what the manifest says or ``mxa prepare`` writes.
        """
        data = _fetch(self.root, shard, self.checksums[shard], largest_shard())
        try:
            return {name.partition(".")[0]: content for name, content in _members(data) if not name.endswith(".json")}
        except tarfile.TarError as error:
            raise InputError(f"{self.root}/{shard} is not a tar file of `mxa prepare`: {error}") from None

    def image(self, index: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Reads one image, and for that its whole shard."""
        return self.decode(self.load(self.place(index)[0]), index, size)

    def place(self, index: int) -> tuple[str, str]:
        """Returns the shard and the key of one image."""
        shard, _, key = self.paths[index].partition("/")
        return shard, key

    def decode(self, images: dict[str, memoryview], index: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Decodes one image of a shard that is loaded.

        Raises:
            InputError: it does not decode.
        """
        try:
            return read_image(BytesIO(images[self.place(index)[1]]), size)
        except (InputError, KeyError):
            raise InputError(f"{self.path(index)} does not decode as an image") from None


def _members(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """Gives the name and content of each member of an uncompressed tar file, without a copy.

    Only plain files are read: compressed, sparse and extended members can claim any size, or hide in each other.

    Raises:
        tarfile.TarError: a member of another kind, one that is cut short, or too many.
    """
    whole, at, count = memoryview(data), 0, 0
    while any(block := whole[at : at + tarfile.BLOCKSIZE]):
        member = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        at, count = at + tarfile.BLOCKSIZE, count + 1
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise tarfile.TarError("a member is no plain file")
        if not 0 <= member.size <= len(data) - at:
            raise tarfile.TarError("a member is cut short")
        if count > _MEMBERS:
            raise tarfile.TarError(f"it has more than {_MEMBERS:,} members")
        yield member.name, whole[at : at + member.size]
        at += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


class Shards(CollectionReader):
    """The folder or URL that ``mxa prepare`` has filled: ``manifest.json``, ``rows.csv.gz`` and the shards."""

    splits = ("train", "val", "valid", "test", "all")
    reads_urls = True

    def read(self, root: str | Path, split: str | None = None) -> ShardRecords:
        """See ``CollectionReader.read``."""
        manifest = _read_manifest(str(root))
        labels = tuple(manifest["labels"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.csv"
            path.write_bytes(_read_rows(str(root), manifest["rows_sha256"]))
            table = read_table_file(path, ROW_COLUMNS, labels)
        if unknown := set(table["shard"]) - set(manifest["shards"]):
            raise InputError(f"{root}/{ROWS} names shards that {MANIFEST} does not, such as {min(unknown)}")
        paths = [f"{shard}/{key}" for shard, key in zip(table["shard"], table["key"], strict=True)]
        return ShardRecords(
            labels,
            paths,
            table[list(labels)].to_numpy(np.float32),
            (patient or path for patient, path in zip(table["patient"], paths, strict=True)),
            studies=table["study"],
            views=table["view"],
            sexes=table["sex"],
            ages=pd.to_numeric(table["age"], errors="coerce"),
            splits=table["split"],
            blank=manifest["blank"],
            root=str(root),
            checksums={name: shard["sha256"] for name, shard in manifest["shards"].items()},
        )


def _read_rows(root: str, sha256: str) -> bytes:
    """Reads the table as CSV.

    Raises:
        InputError: it does not open, is not what the manifest says, or is too large.
    """
    most = largest_shard()
    try:
        with gzip.open(BytesIO(_fetch(root, ROWS, sha256, most))) as file:
            data = file.read(most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{root}/{ROWS} does not open: {error}") from None
    if len(data) > most:
        raise _too_large(f"{root}/{ROWS}", most)
    cells = max(data.count(b"\n"), data.count(b"\r")) * (data.partition(b"\n")[0].count(b",") + 1)
    if cells > _CELLS:
        raise InputError(f"{root}/{ROWS} has {cells:,} cells, more than {_CELLS:,}")
    return data


def _read_manifest(root: str) -> dict[str, Any]:
    try:
        manifest = json.loads(_fetch(root, MANIFEST))
    except InputError as error:
        raise InputError(f"{error}; `mxa prepare` writes it when all shards are done") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{root}/{MANIFEST} is not a manifest of `mxa prepare`: {error}") from None
    try:
        labels, shards = manifest["labels"], manifest["shards"]
        texts = [*labels, manifest["blank"], manifest["rows_sha256"], *(shard["sha256"] for shard in shards.values())]
        if all(isinstance(text, str) for text in texts) and all(map(_SHARD.fullmatch, shards)):
            return manifest
    except (AttributeError, KeyError, TypeError):
        pass
    raise InputError(
        f"{root}/{MANIFEST} is not a manifest of `mxa prepare`: it lacks fields, or a shard's name is not valid"
    )


class ShardDataset(CXRDataset, IterableDataset):
    """A ``CXRDataset`` whose samples are streamed from shards, in the order that a loader needs.

    ``plan`` tells it the loader. Without training the images come in the order of the records, whatever the number of
    workers.

    In training each shard goes to one worker of one process, another one in every epoch. A worker mixes the images of
    ``MIXED`` shards at a time. Every worker gives whole batches, as many as the others or one fewer; where its shards
    hold too few images, it repeats some. The order is a function of seed, epoch, and the numbers of processes
    and workers.
    """

    batch_size, is_training = 1, False

    def plan(self, batch_size: int, workers: int, is_training: bool) -> int:
        """Sets this dataset up for one loader; ``make_loader`` does so with its own copy.

        Returns:
            The number of workers to use: in training no more than there are shards for this process.

        Raises:
            InputError: training, and there are fewer shards than processes.
        """
        self.batch_size, self.is_training = batch_size, is_training
        nodes = world_size()
        shards = len(self._rows)
        if is_training and shards < nodes:
            raise InputError(
                f"{nodes} processes need {nodes} shards of the training split at least; {self.records.root} has "
                f"{shards}: prepare it with a smaller --shard-size"
            )
        return min(workers, shards // nodes) if is_training else workers

    def __len__(self) -> int:
        """Images that this process's loader gives in an epoch."""
        rows = len(self.records)
        return rows // (world_size() * self.batch_size) * self.batch_size if self.is_training else rows

    def __iter__(self) -> Iterator[tuple]:
        """Goes through this worker's samples of the epoch."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return self._train(worker, workers) if self.is_training else self._in_order(worker, workers)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Rows of each shard; they follow each other in the records."""
        runs = groupby(range(len(self.records)), key=lambda row: self.records.place(row)[0])
        return {shard: np.array(list(rows)) for shard, rows in runs}

    def _in_order(self, worker: int, workers: int) -> Iterator[tuple]:
        """Gives this worker's samples: a loader takes a batch from each of its workers in turn."""
        for shard, rows in self._rows.items():
            mine = rows[rows // self.batch_size % workers == worker]
            images = self.records.load(shard) if len(mine) else {}
            for row in mine.tolist():
                yield self._sample(row, self._image(row, partial(self.records.decode, images)))

    def _train(self, worker: int, workers: int) -> Iterator[tuple]:
        node, nodes = rank(), world_size()
        batches = len(self) // self.batch_size
        wanted = (batches // workers + (worker < batches % workers)) * self.batch_size
        turn = 0
        while wanted > 0:
            before = wanted
            for row, image in self._mixed(node * workers + worker, nodes * workers, turn):
                if image is not None or self.on_bad != "replace":
                    yield self._sample(row, image)
                    wanted -= 1
                    if wanted == 0:
                        return
            if wanted == before:
                self.check()
                raise InputError(f"{self.records.root}: a worker's shards hold no image of this split")
            turn += 1

    def _mixed(self, reader: int, readers: int, turn: int) -> Iterator[tuple[int, Image.Image | None]]:
        """Gives the images of one reader's shards, mixed; another ``turn`` mixes them in another way."""
        key = (self.seed or 0, int(self._epoch))
        dealt = np.random.default_rng(key).permutation(list(self._rows))[reader::readers]
        rng = np.random.default_rng((*key, reader, turn))
        for start in range(0, len(dealt), MIXED):
            held = [
                (row, images)
                for shard in dealt[start : start + MIXED]
                if (images := self.records.load(shard))
                for row in self._rows[shard].tolist()
            ]
            for i in rng.permutation(len(held)):
                row, images = held[i]
                yield row, self._image(row, partial(self.records.decode, images))
