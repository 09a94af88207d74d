"""Does a map say anything about the model? The randomisation check of Adebayo et al. (2018)."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["rank_correlation", "shuffled"]


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Copies a model and permutes the values inside each of its parameters; batch statistics stay."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return model


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation of maps over their pixels, ties shared: two ``(..., H, W)`` to ``(...)`` in [-1, 1].

    NaN where a map is constant.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 5.0, 6.0]])).item()
    1.0
    """
    x, y = _ranks(a), _ranks(b)
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def _ranks(maps: torch.Tensor) -> torch.Tensor:
    """Centred ranks of the pixels ``(..., H * W)``, equal values with their mean rank."""
    flat = maps.flatten(-2).reshape(-1, maps.shape[-2:].numel())
    rows = []
    for row in flat:
        _, index, count = row.unique(return_inverse=True, return_counts=True)
        rank = (count.cumsum(0) - (count + 1) / 2).double()[index]
        rows.append(rank - rank.mean())
    return torch.stack(rows).view(*maps.shape[:-2], -1)
