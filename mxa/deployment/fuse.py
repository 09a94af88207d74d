"""A copy of a model for inference: BatchNorms folded into their neighbours, constants computed once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from timm.models.efficientvit_msra import CascadedGroupAttention
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..layers.cbam import ChannelAttention
from ..layers.roi import ROIHead, ROIPool, roi_resize

__all__ = ["deploy"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NOTHING = (nn.Identity, nn.Dropout)


def deploy(model: nn.Module) -> nn.Module:
    """Makes a copy of a model for inference on a CPU; its outputs are those of the model in eval mode within 1e-5.

    BatchNorms are folded into the convolution or linear layer before them, or into the linear layer behind them.
    EfficientViT's position biases are gathered once, and its scale goes into the weights. The memory format is
    channels_last. No parameter needs a gradient. The model itself is not changed; the copy is not for training, and
    its keys are other ones.

    Args:
        model: Any ``nn.Module``, such as timm's or a grafted one. What torch.fx cannot trace of it is folded only
            within ``nn.Sequential``.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    uses = Counter(id(module) for _, module in fused.named_modules(remove_duplicate=False))
    for first, second in _neighbours(fused):
        modules = dict(fused.named_modules())
        if first in modules and second in modules and uses[id(modules[first])] == uses[id(modules[second])] == 1:
            _fold(fused, first, second)
    for module in fused.modules():
        if isinstance(module, CascadedGroupAttention):
            _materialise(module)
        elif type(module) is ROIPool and type(module.head) is ROIHead:
            module.__class__ = _Pool
        elif type(module) is ChannelAttention:
            module.__class__ = _Channels
    return fused.to(memory_format=torch.channels_last)


class _Tracer(fx.Tracer):
    """Sees what timm's own feature extraction sees: some modules and functions are not looked into."""

    def __init__(self):
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, tuple(get_notrace_modules())) or super().is_leaf_module(module, name)


def _neighbours(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of modules of which the second takes the output of the first, and nothing else does."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            inner = [n for n, m in module.named_children() if not isinstance(m, _NOTHING)]
            yield from ((f"{name}.{a}".lstrip("."), f"{name}.{b}".lstrip(".")) for a, b in pairwise(inner))
    try:
        nodes = [node for node in _Tracer().trace(model).nodes if node.op == "call_module"]
    except Exception:  # fx raises one of many classes for code whose path depends on its input
        return
    calls = Counter(node.target for node in nodes)
    for node in nodes:
        before = node.args[0] if node.args else None
        alone = isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1
        if alone and calls[node.target] == calls[before.target] == 1:
            yield before.target, node.target


def _fold(model: nn.Module, first: str, second: str) -> None:
    """Folds two neighbours into one, where one of them is a BatchNorm with statistics and nothing more."""
    before, after = model.get_submodule(first), model.get_submodule(second)
    if isinstance(before, _LAYERS) and isinstance(after, _NORMS) and after.running_var is not None:
        fuse = fuse_linear_bn_eval if isinstance(before, nn.Linear) else fuse_conv_bn_eval
        model.set_submodule(first, fuse(before, after))
        model.set_submodule(second, _what_is_left(after))
    elif isinstance(before, nn.BatchNorm1d) and type(after) is nn.Linear and before.running_var is not None:
        if not isinstance(_what_is_left(before), nn.Identity):
            return
        ones, zeros = torch.ones_like(before.running_var), torch.zeros_like(before.running_var)
        scale = (ones if before.weight is None else before.weight) * torch.rsqrt(before.running_var + before.eps)
        shift = (zeros if before.bias is None else before.bias) - before.running_mean * scale
        linear = nn.Linear(after.in_features, after.out_features, device=scale.device, dtype=scale.dtype)
        linear.weight.data = after.weight * scale
        linear.bias.data = after.weight @ shift + (0 if after.bias is None else after.bias)
        model.set_submodule(first, nn.Identity())
        model.set_submodule(second, linear.requires_grad_(False))


def _what_is_left(norm: nn.Module) -> nn.Module:
    """What a BatchNorm does beside its norm: timm's have an activation."""
    rest = [m for m in norm.children() if not isinstance(m, _NOTHING)]
    return nn.Sequential(*rest) if rest else nn.Identity()


class _Attention(CascadedGroupAttention):
    """timm's attention with its position biases ``(heads, N, N)`` as a constant, and its scale in the weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        parts, out = x.chunk(self.num_heads, dim=1), []
        feat = parts[0]
        for head, (qkv, dws) in enumerate(zip(self.qkvs, self.dws, strict=True)):
            feat = feat + parts[head] if head else feat
            q, k, v = qkv(feat).split([self.key_dim, self.key_dim, self.val_dim], dim=1)
            scores = torch.baddbmm(self.bias[head], dws(q).flatten(2).transpose(1, 2), k.flatten(2))  # (B, N, N)
            feat = torch.bmm(v.flatten(2), scores.softmax(2).transpose(1, 2)).view(batch, -1, height, width)
            out.append(feat)
        return self.proj(torch.cat(out, dim=1))


def _materialise(attention: CascadedGroupAttention) -> None:
    biases = attention.attention_biases[:, attention.attention_bias_idxs]
    attention.register_buffer("bias", biases.detach().clone())
    for dws in attention.dws:
        last = dws.bn if not isinstance(dws.bn, nn.Identity) else dws.conv
        last.weight.data *= attention.scale
        last.bias.data *= attention.scale
    del attention.attention_biases, attention.attention_bias_idxs
    attention.__class__ = _Attention


_FEW = 64  # cells of a map up to which one product with a larger matrix is faster than two


class _Pool(ROIPool):
    """``ROIPool`` for inference, in few operations: no gradient has to pass the edges of a box."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        boxes = self._boxes(x)
        if height * width > _FEW:
            return roi_resize(x, boxes)
        at = boxes @ self._points(x)  # (B, W' + H'), in cells
        cols, rows = (_hats(part - 0.5) for part in at.split([width, height], dim=1))  # (B, W', W), (B, H', H)
        both = (rows[:, :, None, :, None] * cols[:, None, :, None, :]).reshape(-1, height * width, height * width)
        return torch.matmul(x.flatten(2), both.transpose(1, 2)).unflatten(2, (height, width))

    def _boxes(self, x: torch.Tensor) -> torch.Tensor:
        head, sizes = self.head, (x.shape[3], x.shape[2])
        heat = head.score(x).flatten(1).softmax(1)  # (B, H W)
        axes = [(torch.arange(n, device=x.device, dtype=heat.dtype) + 0.5) / n - 0.5 for n in sizes]
        at = torch.stack([axes[0].repeat(sizes[1]), axes[1].repeat_interleave(sizes[0])], dim=1)  # (H W, 2)
        mean, square = (heat @ torch.cat([at, at.square()], dim=1)).chunk(2, dim=1)
        cell = torch.tensor([1 / (12 * n * n) for n in sizes], device=x.device, dtype=heat.dtype)
        scale = head.log_scale.clamp(-20.0, 20.0).exp()
        half = ((square - mean.square() + cell).sqrt() * (3**0.5 * scale)).clamp(head.min_size / 2, 1.0)
        centre = (mean + 0.5).clamp(head.min_size / 2, 1 - head.min_size / 2)
        return torch.cat([centre - half, centre + half], dim=1).clamp(0.0, 1.0)

    @staticmethod
    def _points(x: torch.Tensor) -> torch.Tensor:
        """Where each cell of the output lies, in cells of the map from its edge, as weights of the corners."""
        height, width = x.shape[2:]
        share = [(np.arange(n) + 0.5) / n for n in (width, height)]
        start, stop = ((width * x, height * y) for x, y in ([1 - s for s in share], share))
        weights = [np.concatenate(row) for a, b in (start, stop) for row in ((a, 0 * b), (0 * a, b))]
        return torch.tensor(np.stack(weights).tolist(), device=x.device, dtype=x.dtype)  # (4, W' + H')


def _hats(at: torch.Tensor) -> torch.Tensor:
    """Weights of the N cells of an axis at N points of it, ``(B, N)`` to ``(B, N, N)``."""
    size = at.shape[1]
    cells = torch.arange(size, device=at.device, dtype=at.dtype)
    return (1 - (at.clamp(0, size - 1)[:, :, None] - cells).abs()).relu()


class _Channels(ChannelAttention):
    """``ChannelAttention`` whose two pooled vectors go through the MLP as one batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], dim=3)  # (B, C, 1, 2)
        hidden = self.fc2(self.act(self.fc1(pooled)))
        return x * self.gate(hidden.sum(3, keepdim=True))
