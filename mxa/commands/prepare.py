"""Writes a collection as shards of small gray images, which load fast from any disk or URL."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..data.create import read_collection
from ..data.records import Records
from ..data.shards import MANIFEST, ROW_COLUMNS, ROWS, largest_shard
from ..labels import resolve_labels
from ..utils.errors import InputError
from ..utils.files import alone_in, atomic_write, digest, write_text
from ..utils.interrupt import follow_parent
from ..utils.json_files import read_json, to_json
from ..utils.on_ray import map_on_ray
from .bar import images_bar
from .config import PrepareConfig

__all__ = ["PrepareConfig", "prepare"]

_PROGRESS = ".prepare"  # folder for the progress: a file for each shard, and the settings


@dataclass(frozen=True)
class _Shard:
    """One shard to write. Its images are numbered from ``first``."""

    name: str
    records: Records
    first: int

    def keys(self) -> Iterator[str]:
        return (f"{i:09d}" for i in range(self.first, self.first + len(self.records)))


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Writes every split of a collection as shards; those that are there and whole are kept.

    The training split is shuffled with a fixed seed. Label cells are not changed: uncertain stays uncertain. The same
    rows and settings give the same bytes, interrupted or not.

    Returns:
        The manifest, as in ``manifest.json``: counts, labels, checksums, settings, and the images that did not read.

    Raises:
        InputError: bad input, another collection or other settings in ``output``, another process at work in it, or no
            image that reads.
    """
    if not (16 <= config.size <= 10_000 and config.shard_size >= 1 and (config.workers or 1) >= 1):
        raise InputError("--size must be between 16 and 10000, --shard-size and --workers at least 1")
    if config.ray and config.workers is not None:
        raise InputError("--ray has processes of its own: leave out --workers")
    config = config.resolved()
    labels = None if config.labels is None else resolve_labels(config.labels)
    records = read_collection(
        *(config.data, config.root, "every", labels, config.columns),
        test_fraction=config.test_fraction,
        allow_pipe=config.allow_pipe,
    )
    records = records if labels is None else records.with_labels(labels)
    records = records.subset(records.in_views(config.views))
    if len(records) == 0:
        raise InputError(f"{config.where()} has no image (views: {config.views})")
    folder, settings = Path(config.output), _settings(config, records)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file: give a folder")
    with alone_in(folder, "mxa prepare", within=(_PROGRESS,)):
        (folder / _PROGRESS).mkdir(exist_ok=True)
        return _prepare(config, records, folder, settings)


def _prepare(config: PrepareConfig, records: Records, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    settings_file = folder / _PROGRESS / "settings.json"
    if settings_file.is_file():
        _check_same(folder, read_json(settings_file), settings)
    elif any(folder.glob("*.tar")) or (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds shards of something else (no {settings_file.name}): give another --output")
    _write_json(settings_file, settings)
    shards = list(_plan(records, config.shard_size))
    results = _write_all(config, folder, shards, len(records))
    if not any(result["keys"] for result in results.values()):
        raise InputError(f"none of the {len(records)} images reads, such as {next(iter(results.values()))['bad'][0]}")
    rows_sha256 = _write_rows(folder, shards, results)
    manifest = _manifest(records, settings, shards, results, rows_sha256)
    _write_json(folder / "_info.json", {"name": config.data, "splits": _timm_splits(manifest)})
    _write_json(folder / MANIFEST, manifest)
    return manifest


def _settings(config: PrepareConfig, records: Records) -> dict[str, Any]:
    names = ("data", "views", "size", "format", "shard_size")
    rows = hashlib.sha256(records.targets.tobytes())
    rows.update(records.ages.tobytes())
    for column in (records.paths, records.patients, records.studies, records.views, records.sexes, records.splits):
        rows.update("\n".join(column).encode())
    table = {"images": len(records), "labels": list(records.labels), "rows": rows.hexdigest()}
    return {name: value for name, value in asdict(config).items() if name in names} | table


def _check_same(folder: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [f"{k} was {held.get(k)!r}" for k, v in wanted.items() if held.get(k) != v and k != "rows"]
    if changed or held.get("rows") != wanted["rows"]:
        what = ", ".join(changed) or "the table has changed"
        raise InputError(f"{folder} holds shards of something else ({what}): give another --output")


def _plan(records: Records, size: int) -> Iterator[_Shard]:
    """Divides the rows of each split into shards; those of the training split are shuffled first."""
    first = 0
    for split in sorted(set(records.splits.tolist())):
        rows = np.flatnonzero(records.splits == split)
        if split == "train":
            rows = np.random.default_rng(0).permutation(rows)
        for number, start in enumerate(range(0, len(rows), size)):
            held = rows[start : start + size]
            yield _Shard(f"{split or 'other'}-{number:06d}.tar", records.subset(held), first)
            first += len(held)


def _write_all(config: PrepareConfig, folder: Path, shards: list[_Shard], images: int) -> dict[str, dict[str, Any]]:
    results = {shard.name: result for shard in shards if (result := _finished(folder, shard.name))}
    left = [shard for shard in shards if shard.name not in results]
    jobs = [(folder, shard, config.size, config.format) for shard in left]
    with images_bar(images) as advance:
        advance(images - sum(len(shard.records) for shard in left))
        found = map_on_ray(config.ray, _write_shard, jobs) if config.ray else _write_here(jobs, config.workers)
        for number, result in found:
            results[left[number].name] = result
            advance(len(left[number].records))
    return {shard.name: results[shard.name] for shard in shards}


def _write_here(jobs: Sequence[tuple], workers: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    with ProcessPoolExecutor(workers or os.cpu_count(), initializer=follow_parent) as pool:
        try:
            yield from enumerate(pool.map(_write_shard, jobs))
        except BrokenProcessPool:
            raise InputError("a worker process was killed (out of memory?): the same command goes on") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finished(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the result of a shard that was written before, if its file is whole."""
    try:
        result = read_json(folder / _PROGRESS / f"{name}.json")
        return result if digest(folder / name) == result["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def _write_shard(job: tuple[Path, _Shard, int, str]) -> dict[str, Any]:
    """Writes one shard, then its result: the keys, the images that did not read, the checksum and the size."""
    folder, shard, size, kind = job
    most = largest_shard()
    result: dict[str, Any] = {"keys": [], "bad": []}

    def write(path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i, key in enumerate(shard.keys()):
                try:
                    data = _encode(shard.records.image(i, (size, size)), size, kind)
                except InputError as error:
                    result["bad"].append(str(error))
                    continue
                metadata = to_json(_metadata(shard.records, i)).encode()
                for suffix, content in ((kind, data), ("json", metadata)):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                if tar.offset > most:
                    raise InputError(f"a shard would be larger than {most:,} bytes: give a smaller --shard-size")
                result["keys"].append(key)

    atomic_write(folder / shard.name, write)
    result |= {"sha256": digest(folder / shard.name), "bytes": (folder / shard.name).stat().st_size}
    _write_json(folder / _PROGRESS / f"{shard.name}.json", result)
    return result


def _encode(image: Image.Image, size: int, kind: str) -> bytes:
    scale = size / min(image.size)
    if scale < 1:
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    if image.mode != "L":
        image = Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, {"jpg": "JPEG", "png": "PNG"}[kind], quality=95)  # PNG ignores the quality
    return stream.getvalue()


def _metadata(records: Records, i: int) -> dict[str, Any]:
    """Makes the JSON beside an image. timm's reader takes ``positive``, the indices of the positive labels."""
    cells = {n: None if np.isnan(c) else int(c) for n, c in zip(records.labels, records.targets[i], strict=True)}
    return {
        "file": records.paths[i],
        "patient": _patient(records, i),
        "study": records.studies[i],
        "view": records.views[i],
        "sex": records.sexes[i],
        "age": None if np.isnan(records.ages[i]) else round(float(records.ages[i]), 2),
        "split": records.splits[i],
        "labels": cells,
        "positive": [n for n, cell in enumerate(cells.values()) if cell == 1],
    }


def _patient(records: Records, i: int) -> str:
    """Returns the patient of an image, ``""`` where it is unknown."""
    return records.patients[i] if records.patients[i] != records.paths[i] else ""


def _write_rows(folder: Path, shards: list[_Shard], results: dict[str, dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*ROW_COLUMNS, *shards[0].records.labels))
    for shard in shards:
        good = set(results[shard.name]["keys"])
        for i, key in enumerate(shard.keys()):
            if key in good:
                metadata = _metadata(shard.records, i)
                writer.writerow(
                    (shard.name, key, *(metadata[c] for c in ROW_COLUMNS[2:]), *metadata["labels"].values())
                )
    data = gzip.compress(text.getvalue().encode(), mtime=0)
    atomic_write(folder / ROWS, lambda path: path.write_bytes(data))
    return digest(folder / ROWS)


def _manifest(
    records: Records, settings: dict, shards: list[_Shard], results: dict[str, dict[str, Any]], rows_sha256: str
) -> dict[str, Any]:
    splits: dict[str, dict[str, Any]] = {}
    for shard in shards:
        split = splits.setdefault(shard.name.rpartition("-")[0], {"images": 0, "patients": set(), "positive": 0})
        first = shard.first
        good = np.array([int(key) - first for key in results[shard.name]["keys"]], dtype=int)
        split["images"] += len(good)
        split["patients"] |= set(shard.records.patients[good])
        split["positive"] += (shard.records.targets[good] == 1).sum(0)
    return {
        "made_by": f"mxa {__version__}",
        "settings": settings,
        "labels": list(records.labels),
        "blank": records.blank,
        "images": sum(split["images"] for split in splits.values()),
        "splits": {
            name: {
                "images": split["images"],
                "patients": len(split["patients"]),
                "positive": dict(zip(records.labels, split["positive"].tolist(), strict=True)),
            }
            for name, split in splits.items()
        },
        "bad": [reason for result in results.values() for reason in result["bad"]],
        "rows_sha256": rows_sha256,
        "shards": {
            name: {"images": len(r["keys"]), "bytes": r["bytes"], "sha256": r["sha256"]} for name, r in results.items()
        },
    }


def _timm_splits(manifest: dict[str, Any]) -> dict[str, Any]:
    """Describes the splits as timm's reader of WebDatasets expects them."""
    splits = {}
    for split, counts in manifest["splits"].items():
        held = {n: shard["images"] for n, shard in manifest["shards"].items() if n.rpartition("-")[0] == split}
        splits[split] = {
            "name": split,
            "num_samples": counts["images"],
            "filenames": list(held),
            "shard_lengths": list(held.values()),
        }
    return splits


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, to_json(content, 1) + "\n")
