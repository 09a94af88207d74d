"""What ends a training before it does harm, and what must be the same for it to go on."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..data import CXRDataset, Records
from ..data.boxes import BoxedDataset
from ..data.shards import ShardDataset
from ..metrics.operating import ENOUGH, count_cases
from ..utils.distributed import any_process, world_size
from ..utils.errors import InputError

__all__ = ["check_bad", "check_files", "check_labels", "check_losses", "few_positives", "fingerprint", "stack_losses"]


def check_labels(dataset: CXRDataset) -> None:
    """Refuses targets that are all masked, and warns of labels that cannot be learnt: all alike, but for shares."""
    targets = dataset.records.targets
    lacking = [
        name
        for name, column in zip(dataset.labels, targets.T, strict=True)
        if not (((column > 0) & (column < 1)).any() or ((column > 0.5).any() and (column <= 0.5).any()))
    ]
    if np.isnan(targets).all():
        raise InputError("every label of the training split is masked: there is nothing to learn")
    if lacking:
        warnings.warn(f"no positive or no negative in the training split: {', '.join(lacking)}", stacklevel=4)


def check_files(dataset: CXRDataset) -> None:
    """Says before the first epoch that a validation file is missing, not after it."""
    if type(dataset.records) is Records:
        for path in map(dataset.records.path, range(len(dataset))):
            if not Path(path).is_file():
                raise InputError(f"no image {path} (a validation image)")


def few_positives(dataset: CXRDataset) -> str:
    """Names the labels that decide a validation score with fewer than ``ENOUGH`` positives; "" where there are none."""
    positives, negatives, _ = count_cases(dataset.records.targets)
    counts = zip(dataset.labels, positives.tolist(), negatives.tolist(), strict=True)
    return ", ".join(f"{name} ({p})" for name, p, n in counts if 0 < p < ENOUGH and n)


def fingerprint(
    train_set: CXRDataset, boxed: BoxedDataset | None, teacher_metadata: dict[str, Any], workers: int
) -> dict[str, Any]:
    """Returns what must be the same for a run to go on; an error names what differs by its key."""
    digest = hashlib.sha256("\n".join(train_set.records.paths.tolist()).encode())
    digest.update(np.ascontiguousarray(train_set.records.targets).tobytes())
    names = {"images, labels or logits of the teacher": digest.hexdigest(), "label names": list(train_set.labels)}
    if boxed is not None:
        digest = hashlib.sha256("\n".join(boxed.records.paths.tolist()).encode())
        digest.update(b"".join(np.ascontiguousarray(rows).tobytes() for rows in boxed.boxes))
        names["images with boxes, or boxes"] = digest.hexdigest()
    if teacher_metadata:
        names["weights of the teacher (its SHA-256)"] = teacher_metadata["sha256"]
    if isinstance(train_set, ShardDataset):  # shards are dealt to processes and workers
        names["number of processes or --workers, with shards"] = [world_size(), workers]
    return names


def check_bad(dataset: CXRDataset, processes: int) -> None:
    """Ends a training in which more than 1 % of the images do not read: something is wrong with all of them.

    Each process counts those of its share of the images; a checkpoint puts the counts together.
    """
    bad = int(dataset.bad.sum())
    if bad > max(0.01 * len(dataset) / processes, 1 if processes > 1 else 0):
        first = dataset.bad_paths()[:3]
        raise InputError(
            f"{bad} of {len(dataset)} images do not read, more than 1 %: mend them or take them out of the table "
            f"({', '.join(first)}{', ...' if bad > 3 else ''})"
        )


def stack_losses(losses: list, device: torch.device) -> torch.Tensor:
    """Stacks losses, ``(N,)``: tensors, and numbers where a checkpoint held them."""
    return torch.stack([torch.as_tensor(x, device=device) for x in losses])


def check_losses(
    losses: list, first: int, epoch: int, loader: DataLoader, grad_accum: int, device: torch.device
) -> None:
    """Ends the training at the first loss that is not finite in any process, before anything of it is saved.

    Args:
        losses: Of the steps since the last check.
        first: Step of the first of them, from 0.
        epoch: From 0.
        loader: Of the training.
        grad_accum: Batches of the loader in a step.
        device: Where the processes meet.

    Raises:
        InputError: a loss is not finite; it names the step and, where the order is known, the images.
    """
    values = stack_losses(losses, device).cpu()
    if not any_process(not values.isfinite().all(), device):
        return
    if values.isfinite().all():
        raise InputError(f"the loss is not finite in another process, in epoch {epoch + 1}: it says where")
    bad = int((~values.isfinite()).int().argmax())
    at = first + bad
    images = ""
    if hasattr(loader.sampler, "rows"):
        rows = np.concatenate([loader.sampler.rows(at * grad_accum + i) for i in range(grad_accum)])
        names = [loader.dataset.records.path(int(row)) for row in rows]
        images = f" (its images: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    raise InputError(
        f"the loss became {float(values[bad])} in epoch {epoch + 1}, step {at + 1}{images}: lower --lr and start "
        "again; the checkpoint before it is kept"
    )
