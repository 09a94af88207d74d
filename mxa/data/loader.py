"""timm's loader with our transform."""

from __future__ import annotations

from collections.abc import Callable

from timm.data import create_loader
from torch.utils.data import DataLoader

from .dataset import CXRDataset
from .shards import ShardDataset

__all__ = ["make_loader"]


def make_loader(
    dataset: CXRDataset, transform: Callable, batch_size: int, workers: int = 0, is_training: bool = False
) -> DataLoader:
    """Creates timm's loader over a dataset and gives the dataset its transform.

    In training the order is random and an incomplete last batch is dropped.

    Raises:
        InputError: fewer shards than nodes.
    """
    if isinstance(dataset, ShardDataset):
        workers = dataset.plan(batch_size, workers, is_training)
    loader = create_loader(
        dataset, input_size=1, batch_size=batch_size, is_training=is_training, num_workers=workers, use_prefetcher=False
    )
    dataset.transform = transform  # create_loader has set timm's own
    return loader
