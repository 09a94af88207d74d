"""A copy of a model for inference: BatchNorms folded into their neighbours, constants computed once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from timm.models.efficientvit_msra import CascadedGroupAttention
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchvision.ops import roi_align

from ..layers import ROIPool

__all__ = ["deploy", "prepare_graph"]

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
    return fused.to(memory_format=torch.channels_last)


def prepare_graph(model: nn.Module) -> nn.Module:
    """Changes what ``deploy`` made into forms that ONNX Runtime and OpenVINO compute faster, and PyTorch slower."""
    for module in model.modules():
        if type(module) is _Attention and all(isinstance(qkv.bn, nn.Identity) for qkv in module.qkvs):
            sizes = [module.key_dim, module.key_dim, module.val_dim]
            module.qkvs = nn.ModuleList(_apart(qkv.conv, sizes) for qkv in module.qkvs)
            module.__class__ = _ApartAttention
        elif type(module) is ROIPool:
            module.__class__ = _AlignedROIPool
    return model


def _apart(conv: nn.Conv2d, sizes: list[int]) -> nn.ModuleList:
    """A 1x1 convolution as several, of so many channels each."""
    assert conv.bias is not None  # that of the norm that was folded into it
    parts = nn.ModuleList()
    for weight, bias in zip(conv.weight.split(sizes), conv.bias.split(sizes), strict=True):
        part = nn.Conv2d(conv.in_channels, len(weight), 1, device=weight.device, dtype=weight.dtype)
        part.weight, part.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        parts.append(part)
    return parts.requires_grad_(False)


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
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        if calls[node.target] == calls[before.target] == 1:
            yield str(before.target), str(node.target)


def _fold(model: nn.Module, first: str, second: str) -> None:
    """Folds two neighbours into one, where one of them is a BatchNorm with statistics and nothing more."""
    before, after = model.get_submodule(first), model.get_submodule(second)
    if isinstance(before, _LAYERS) and isinstance(after, _NORMS) and after.running_var is not None:
        if isinstance(before, nn.Linear):
            model.set_submodule(first, fuse_linear_bn_eval(before, after))
        else:
            model.set_submodule(first, fuse_conv_bn_eval(before, after))
        model.set_submodule(second, _what_is_left(after))
    elif isinstance(before, nn.BatchNorm1d) and type(after) is nn.Linear:
        if before.running_mean is None or before.running_var is None:
            return
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
            q, k, v = self._project(qkv, feat)
            scores = torch.baddbmm(self.bias[head], dws(q).flatten(2).transpose(1, 2), k.flatten(2))  # (B, N, N)
            feat = torch.bmm(v.flatten(2), scores.softmax(2).transpose(1, 2)).view(batch, -1, height, width)
            out.append(feat)
        return self.proj(torch.cat(out, dim=1))

    def _project(self, qkv: Any, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return qkv(x).split([self.key_dim, self.key_dim, self.val_dim], dim=1)


class _ApartAttention(_Attention):
    """The same with a convolution each for queries, keys and values: runtimes copy what a split gives."""

    def _project(self, qkv: Any, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return [conv(x) for conv in qkv]


class _AlignedROIPool(ROIPool):
    """The same crop as one operator, ROIAlign, which ONNX Runtime and OpenVINO have; a product in PyTorch is faster."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        boxes = self.head(x) * torch.tensor([width, height, width, height], device=x.device)
        number = torch.arange(x.shape[0], device=x.device)[:, None].to(boxes.dtype)
        return roi_align(x, torch.cat([number, boxes], 1), (height, width), sampling_ratio=1, aligned=True)


def _materialise(attention: CascadedGroupAttention) -> None:
    biases = attention.attention_biases[:, attention.attention_bias_idxs]
    attention.register_buffer("bias", biases.detach().clone())
    for dws in attention.dws:
        last = dws.bn if not isinstance(dws.bn, nn.Identity) else dws.conv
        last.weight.data *= attention.scale
        last.bias.data *= attention.scale
    del attention.attention_biases, attention.attention_bias_idxs
    attention.__class__ = _Attention
