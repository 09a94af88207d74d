"""The loaders of training and of everything else."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from timm.data import create_loader
from torch.utils.data import DataLoader, Sampler

from ..utils.distributed import rank, world_size
from ..utils.errors import InputError
from .dataset import CXRDataset
from .shards import ShardDataset
from .transforms import ToXrayTensor, XrayTransform

__all__ = ["TrainSampler", "make_loader"]


class TrainSampler(Sampler[int]):
    """Rows of a training dataset in a random order, whole batches only.

    The order is a function of the dataset's seed and epoch, and a global batch holds the same rows however many
    processes share it.

    Args:
        dataset: Its seed must be set where several processes train.
        batch_size: Images of one batch of one process.
    """

    def __init__(self, dataset: CXRDataset, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size
        self.start = 0  # batches to leave out, of a run that is resumed
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
        order = torch.randperm(len(self.dataset), generator=generator).numpy()
        whole = order[: len(self) * world_size()]
        return whole.reshape(-1, self.batch_size, world_size())[:, :, rank()]


class _Loader:
    """The loader it holds, but that planes are normalised here, that a worker's bad input is one line, and ``skip``.

    A worker sends gray planes, a twelfth of what the model takes.
    """

    def __init__(self, loader: DataLoader, to_tensor: ToXrayTensor | None):
        self.loader, self.to_tensor = loader, to_tensor
        self.skip = 0  # batches that the next epoch leaves out
        self.open: Callable[[], Iterator | None] = lambda: None

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if left := self.open():
            left.close()  # an epoch that was left early, which would end after this one has begun
        self.loader.dataset.as_planes = self.to_tensor is not None
        skip, self.skip = self.skip, 0
        if isinstance(self.loader.sampler, TrainSampler):
            self.loader.sampler.start, skip = skip, 0
        batches = iter(self.loader)  # the loader draws its seeds now, not when the first batch is wanted
        epoch = self._batches(itertools.islice(batches, skip, None))
        self.open = weakref.ref(epoch)
        return epoch

    def _batches(self, batches: Iterator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        try:
            for images, targets in batches:
                yield images if self.to_tensor is None else self.to_tensor.normalize(images), targets
        except InputError as error:  # of a worker, it holds the worker's traceback
            raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
        finally:
            self.loader.dataset.as_planes = False


def _collate(samples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacks planes and targets; where one plane is deeper than 8 bits all become float32."""
    planes, targets = zip(*samples, strict=True)
    if len({plane.dtype for plane in planes}) > 1:
        planes = [plane.float() for plane in planes]
    return torch.stack(planes), torch.stack(targets)


def _outlive_sigterm(worker: int) -> None:
    """Makes a worker end at SIGTERM from its own main process alone.

    A scheduler warns every process of a job; a worker that died of it would raise an error in the middle of a step.
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
    dataset: CXRDataset, transform: Callable, batch_size: int, workers: int = 0, is_training: bool = False
) -> DataLoader:
    """Creates a loader over a dataset and gives the dataset its transform.

    In training the order is random (``TrainSampler``), an incomplete last batch is dropped, and several processes share
    each batch of ``batch_size`` times their number; otherwise it is timm's loader, over every image in order.

    Returns:
        A loader of ``(images, targets)``: ``(B, C, H, W)`` and ``(B, L)``, float32.

    Raises:
        InputError: fewer shards than nodes.
    """
    if isinstance(dataset, ShardDataset):
        workers = dataset.plan(batch_size, workers, is_training)
    planes = isinstance(transform, XrayTransform)
    collate = _collate if planes else None
    if is_training:
        sampler = None if isinstance(dataset, ShardDataset) else TrainSampler(dataset, batch_size)
        loader = DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
            persistent_workers=workers > 0,
        )
    else:
        loader = create_loader(
            dataset,
            input_size=1,
            batch_size=batch_size,
            num_workers=workers,
            use_prefetcher=False,
            collate_fn=collate,
        )
    loader.worker_init_fn = _outlive_sigterm
    dataset.transform = transform  # create_loader has set timm's own
    return _Loader(loader, transform.to_tensor if planes else None)
