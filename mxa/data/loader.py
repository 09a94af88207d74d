"""Loaders: batches of a dataset, in order, or at random for training."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ..utils.distributed import rank, world_size
from ..utils.errors import InputError
from .dataset import CXRDataset
from .shards import ShardDataset
from .transforms import XrayTransform

__all__ = ["TrainSampler", "balanced_shares", "make_loader"]


def balanced_shares(targets: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Probability of each image, ``(N,)``, where a label is drawn, then a patient who has it, then an image of theirs.

    Each is drawn with equal chances. Images without a positive label are drawn as if they had one more label.

    Args:
        targets: ``(N, L)``; above 0.5 is positive.
        patients: Identifier of each row, ``(N,)``.
    """
    positive = targets > 0.5
    groups = np.column_stack([positive, ~positive.any(1)])
    groups = groups[:, groups.any(0)]
    _, patient = np.unique(patients, return_inverse=True)
    shares = np.zeros(len(targets))
    for group in groups.T:
        _, of, counts = np.unique(patient[group], return_inverse=True, return_counts=True)
        shares[group] += 1 / (len(counts) * counts[of])
    return shares / groups.shape[1]


class TrainSampler(Sampler[int]):
    """Rows of a training dataset in a random order, whole batches only.

    The order is a function of the dataset's seed and epoch. A global batch holds the same rows however many processes
    share it.

    Args:
        dataset: Where several processes train, its seed must be set.
        batch_size: Images of one batch of one process.
        shares: Probability of each row, ``(N,)``, for rows drawn with replacement; None for every row once an epoch.
    """

    def __init__(self, dataset: CXRDataset, batch_size: int, shares: np.ndarray | None = None):
        self.dataset, self.batch_size = dataset, batch_size
        self.shares = None if shares is None else torch.from_numpy(shares)
        self.start = 0  # batches to leave out: a resumed run has seen them
        if dataset.seed is None and world_size() > 1:
            raise InputError("set dataset.seed: several processes need one order")

    def __len__(self) -> int:
        return len(self.dataset) // (self.batch_size * world_size()) * self.batch_size

    def rows(self, batch: int) -> np.ndarray:
        """Rows of this process's share of a batch of the current epoch."""
        return self._batches()[batch]

    def __iter__(self) -> Iterator[int]:
        yield from self._batches()[self.start :].flatten().tolist()

    def _batches(self) -> np.ndarray:
        """This process's rows, ``(batches, batch_size)``."""
        generator = None
        if self.dataset.seed is not None:
            generator = torch.Generator().manual_seed(self.dataset.derived_seed())
        count = len(self) * world_size()
        if self.shares is None:
            whole = torch.randperm(len(self.dataset), generator=generator)[:count].numpy()
        else:
            whole = torch.multinomial(self.shares, count, replacement=True, generator=generator).numpy()
        return whole.reshape(-1, self.batch_size, world_size())[:, :, rank()]


class _Loader:
    """A ``DataLoader`` that moves each batch to a device and normalises it there.

    Worker processes and the copy to the device carry gray planes: as uint8 a twelfth of a normalised batch of three
    channels. Bad input in a worker is one line, not the worker's traceback. Other attributes are the ``DataLoader``'s.

    Args:
        loader: Gives planes, or finished images where there is nothing to normalise.
        device: Where the batches go.
        normalize: Planes ``(B, 1, H, W)`` on the device to images ``(B, C, H, W)``; None where they are finished.

    Attributes:
        skip: Batches to leave out at the start of the next epoch.
    """

    def __init__(
        self, loader: DataLoader, device: torch.device, normalize: Callable[[torch.Tensor], torch.Tensor] | None
    ):
        self.loader, self.device, self.normalize = loader, device, normalize
        self.skip = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        skip, self.skip = self.skip, 0
        if isinstance(self.loader.sampler, TrainSampler):
            self.loader.sampler.start, skip = skip, 0  # those images are not even read
        batches = iter(self.loader)  # the loader draws its seeds now, not when the first batch is wanted
        return self._batches(itertools.islice(batches, skip, None))

    def _batches(self, batches: Iterator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        try:
            for batch in batches:
                images, targets = (tensor.to(self.device, non_blocking=True) for tensor in batch)
                yield images if self.normalize is None else self.normalize(images), targets
        except InputError as error:  # of a worker, it holds the worker's traceback
            raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None


def _collate(samples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacks planes and targets. Where one plane is deeper than 8 bits, all become float32."""
    planes, targets = zip(*samples, strict=True)
    if len({plane.dtype for plane in planes}) > 1:
        planes = [plane.float() for plane in planes]
    return torch.stack(planes), torch.stack(targets)


def _outlive_sigterm(worker: int) -> None:
    """Makes a worker ignore SIGTERM, unless its own main process sends it.

    A scheduler sends SIGTERM to every process of a job. A worker that died of it would raise an error in the middle of
    a step, before the main process could write its checkpoint.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()


def make_loader(
    dataset: CXRDataset,
    transform: Callable,
    batch_size: int,
    workers: int = 0,
    is_training: bool = False,
    device: torch.device | str = "cpu",
    shares: np.ndarray | None = None,
) -> DataLoader:
    """Creates a loader that gives a dataset's samples through a transform.

    The loader holds a copy of the dataset, with the settings that it has now; only ``bad`` and the epoch are shared.
    So a dataset may have several loaders, and none of them changes it.

    In training the order is random (``TrainSampler``) and an incomplete last batch is dropped. Several processes share
    a global batch: each gets ``batch_size`` images of it. Otherwise every image comes, in order.

    Args:
        dataset: The samples.
        transform: From ``create_transform``, or any function from a PIL image to a tensor.
        batch_size: Images of one batch of one process.
        workers: Worker processes; 0, this process reads the images.
        is_training: See above.
        device: Where the batches go. Those of a ``create_transform`` go there as gray planes and are normalised there.
        shares: In training, the probability of each row, such as ``balanced_shares``; rows are drawn with replacement.

    Returns:
        A loader of ``(images, targets)`` on the device: ``(B, C, H, W)`` and ``(B, L)``, float32.

    Raises:
        InputError: fewer shards than nodes, or ``shares`` for shards, which are read in their order.
    """
    device = torch.device(device)
    planes = isinstance(transform, XrayTransform)
    own = copy.copy(dataset)
    own.transform = transform.to_planes() if planes else transform
    sampler = None
    if isinstance(own, ShardDataset):
        if shares is not None:
            raise InputError("--sampler needs images as files: shards are read in their order")
        workers = own.plan(batch_size, workers, is_training)
    elif is_training:
        sampler = TrainSampler(own, batch_size, shares)
    loader = DataLoader(
        own,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate if planes else None,
        pin_memory=device.type == "cuda",
        drop_last=is_training,
        worker_init_fn=_outlive_sigterm,
        persistent_workers=workers > 0,
    )
    return _Loader(loader, device, transform.to_tensor.normalizer(device) if planes else None)
