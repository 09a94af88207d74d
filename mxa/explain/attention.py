"""Attention of the cascaded group attention, in the place of the image it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.efficientvit_msra import CascadedGroupAttention, LocalWindowAttention
from torch import nn

from ..layers.grid import Grid
from ..utils.errors import InputError
from .geometry import upsample
from .hooks import observe

__all__ = ["attention_maps", "attention_weights", "mean_attention"]


@dataclass
class _Windows:
    """Attention of one module, window by window.

    The map of h x w cells is padded at its right and bottom to a multiple of the window's side; a padded cell is a
    query that is thrown away, and a key that takes attention all the same.
    """

    weights: torch.Tensor  # (B, windows, heads, n, n), queries then keys, n = side * side
    grid: Grid

    def cells(self) -> tuple[torch.Tensor, int, int]:
        """Number of every cell of each window in the padded map ``(windows, n)``, and that map's height and width."""
        side = round(self.weights.shape[-1] ** 0.5)
        high, wide = (-(-c // side) * side for c in self.grid.cells)
        number = torch.arange(high * wide).view(high // side, side, wide // side, side)
        return number.transpose(1, 2).reshape(-1, side * side), high, wide


def _windows(model: nn.Module, images: torch.Tensor) -> dict[str, _Windows]:
    attentions = {n: m for n, m in model.named_modules() if isinstance(m, CascadedGroupAttention)}
    if not attentions:
        raise InputError("the model has no cascaded group attention: choose an efficientvit model, or use grad_cam")
    parents = {m.attn: m for m in model.modules() if isinstance(m, LocalWindowAttention)}
    found: dict[str, _Windows] = {}
    looks: dict[nn.Module, Callable[..., None]] = {}
    for name, module in attentions.items():
        parts: dict[str, list[torch.Tensor]] = {"weights": [], "k": []}

        def look_qkv(_, qkv, grid_of, module=module, parts=parts):
            parts["k"].append(qkv[:, module.key_dim : 2 * module.key_dim].flatten(2))

        def look_query(_, q, grid_of, module=module, parts=parts):
            head = len(parts["weights"])
            bias = module.attention_biases[head, module.attention_bias_idxs]
            score = (q.flatten(2) * module.scale).transpose(-2, -1) @ parts["k"][head] + bias
            parts["weights"].append(score.softmax(dim=-1))

        def look_map(x, _, grid_of, name=name, parts=parts):
            weights = torch.stack(parts["weights"], dim=1).float().cpu()  # (B * windows, heads, n, n)
            found[name] = _Windows(weights.unflatten(0, (len(images), -1)), grid_of(x))

        looks |= dict.fromkeys(module.qkvs, look_qkv) | dict.fromkeys(module.dws, look_query)
        looks[parents.get(module, module)] = look_map
    observe(model, images, looks)
    return found


def attention_weights(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Collects the softmax of every cascaded group attention, from hooked queries and keys.

    A window sees itself alone: between the cells of two windows the weight is 0. Where a map does not divide into
    windows, its padding takes attention too, so that a row sums to 1 less what went there; else to 1.

    Args:
        model: A model of timm's EfficientViT (MSRA) or ours.
        images: ``(B, C, H, W)``.

    Returns:
        Module name to ``(B, heads, N, N)`` float32: from a query (third axis) to a key (last), both cells of the
        module's map in reading order, N = h * w. The size grows with the fourth power of the image's side.

    Raises:
        InputError: the model has no cascaded group attention.
    """
    found = {}
    for name, windows in _windows(model, images).items():
        number, high, wide = windows.cells()
        batch, _, heads = windows.weights.shape[:3]
        every = torch.zeros(batch, heads, high * wide, high * wide)
        for w, cells in enumerate(number):
            every[:, :, cells[:, None], cells] = windows.weights[:, w]
        h, w = windows.grid.cells
        real = torch.arange(high * wide).view(high, wide)[:h, :w].flatten()
        found[name] = every[:, :, real[:, None], real]
    return found


def attention_maps(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Collects the attention that each cell receives: the mean over heads and over the queries of its window.

    Returns:
        Module name to ``(B, H, W)`` float32 at the size of the input: the value of a cell at its centre, bilinear
        between. The cells of a window sum to 1, less what its padding took.

    Raises:
        InputError: the model has no cascaded group attention.
    """
    found = {}
    for name, windows in _windows(model, images).items():
        number, high, wide = windows.cells()
        h, w = windows.grid.cells
        real = ((number // wide < h) & (number % wide < w)).float()  # (windows, n)
        queries = real / real.sum(1, keepdim=True)
        received = torch.einsum("bwqk,wq->bwk", windows.weights.mean(2), queries)
        cells = torch.zeros(len(received), high * wide)
        cells[:, number.flatten()] = received.flatten(1)
        found[name] = upsample(cells.view(-1, high, wide)[:, :h, :w], windows.grid)
    return found


def mean_attention(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """One attention map of a whole model, for comparing models: the mean of ``attention_maps``.

    Every module's map is first divided by its mean over the image, so that modules with few and with many cells count
    alike: 1 is even attention, 2 is twice that. The figure L.1 of the paper calls this the normalised attention score;
    it does not say of which block.

    Returns:
        ``(B, H, W)`` float32 with mean 1.
    """
    maps = attention_maps(model, images).values()
    return torch.stack([m / m.mean((1, 2), keepdim=True) for m in maps]).mean(0)


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes maps ``(B, H, W)`` of one image size to another, bilinearly."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
