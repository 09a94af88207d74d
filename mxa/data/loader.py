"""timm's loader with our transform."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.data import create_loader
from torch.utils.data import DataLoader

from ..errors import InputError
from .dataset import CXRDataset
from .shards import ShardDataset
from .transforms import ToXrayTensor, XrayTransform

__all__ = ["make_loader"]


class _Loader:
    """The loader it holds, but for two things: planes are normalised here, and a worker's bad input is one line.

    A worker sends gray planes, a twelfth of what the model takes.
    """

    def __init__(self, loader: DataLoader, to_tensor: ToXrayTensor | None):
        self.loader, self.to_tensor = loader, to_tensor

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.loader.dataset.as_planes = self.to_tensor is not None
        return self._batches(iter(self.loader))  # the loader draws its seeds now, not when the first batch is wanted

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


def make_loader(
    dataset: CXRDataset, transform: Callable, batch_size: int, workers: int = 0, is_training: bool = False
) -> DataLoader:
    """Creates timm's loader over a dataset and gives the dataset its transform.

    In training the order is random and an incomplete last batch is dropped.

    Returns:
        A loader of ``(images, targets)``: ``(B, C, H, W)`` and ``(B, L)``, float32.

    Raises:
        InputError: fewer shards than nodes.
    """
    if isinstance(dataset, ShardDataset):
        workers = dataset.plan(batch_size, workers, is_training)
    planes = isinstance(transform, XrayTransform)
    loader = create_loader(
        dataset,
        input_size=1,
        batch_size=batch_size,
        is_training=is_training,
        num_workers=workers,
        use_prefetcher=False,
        collate_fn=_collate if planes else None,
    )
    dataset.transform = transform  # create_loader has set timm's own
    return _Loader(loader, transform.to_tensor if planes else None)
