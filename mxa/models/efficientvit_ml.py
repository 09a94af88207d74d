"""EfficientViT for multi-label chest X-ray classification, with and without Medical X-ray Attention.

Papers:
    Rand and Ibrahim, "Beyond Conventional Transformers: A Medical X-ray Attention Block for Improved Multi-Label
    Diagnosis" (section 2, Table N.1).
    Liu et al., "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", CVPR 2023.

The backbone is timm's ``EfficientVitMsra``; parameter names of the backbone are timm's, MXA's are only added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models.efficientvit_msra import CascadedGroupAttention, EfficientVitMsra, ResidualDrop
from torch import nn

from ..labels import LABEL_SPACES
from ..layers.mxa_block import MXABlock
from .hub import config_of, load_own_copy, manifest, named, packaged, weights_of
from .weights import checkpoint_filter_fn, set_label_names

__all__ = ["VARIANTS", "EfficientVitMl"]


class CascadedGroupAttentionMl(CascadedGroupAttention):
    """timm's attention without its cache of the position biases in eval mode.

    The cache keeps an autograd graph between calls, so that a second backward fails. It also outlives
    ``load_state_dict``, so that old biases stay in use.
    """

    def train(self, mode: bool = True) -> CascadedGroupAttentionMl:
        nn.Module.train(self, mode)
        return self

    def get_attention_biases(self, device: torch.device) -> torch.Tensor:
        return self.attention_biases[:, self.attention_bias_idxs]


class Residual(nn.Module):
    """``x + m(x)``, with stochastic depth in the dtype of ``x``."""

    def __init__(self, m: nn.Module, drop_path: float = 0.0):
        super().__init__()
        self.m = m
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path(self.m(x))


class ResidualMXA(Residual):
    """``x + m(x) + mxa(x)`` (paper, section 2.2): MXA in parallel with self-attention."""

    def __init__(self, m: nn.Module, mxa: nn.Module, drop_path: float = 0.0):
        super().__init__(m, drop_path)
        self.mxa = mxa

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path(self.m(x) + self.mxa(x))


class EfficientVitMl(EfficientVitMsra):
    """Multi-label EfficientViT, ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``.

    Args:
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        mxa: Add an ``MXABlock`` beside the self-attention of every block.
        mxa_init_values: First value of MXA's gates; 1.0 is the paper's sum, 0.0 starts exactly as the plain backbone.
        mxa_roi_head: Box head of MXA, ``"softmax"`` or ``"mean"``.
        **kwargs: Arguments of timm's ``EfficientVitMsra``.

    Attributes:
        label_names: Names of the outputs, or None where they are unknown. Read it with ``mxa.label_names(model)``.
    """

    def __init__(
        self,
        *args: Any,
        drop_path_rate: float = 0.0,
        mxa: bool = False,
        mxa_init_values: float = 1.0,
        mxa_roi_head: str = "softmax",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, device=device, dtype=dtype, **kwargs)
        self.label_names: tuple[str, ...] | None = None
        for module in self.modules():
            if isinstance(module, CascadedGroupAttention):
                module.__class__ = CascadedGroupAttentionMl  # same parameters, built by timm's constructor
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, ResidualDrop):
                    setattr(module, name, Residual(child.m))
        blocks = [block for stage in self.stages for block in stage.blocks]
        rates = calculate_drop_path_rates(drop_path_rate, len(blocks))
        for block, rate in zip(blocks, rates, strict=True):
            for name, child in block.named_children():
                setattr(block, name, Residual(child.m, rate))
            if mxa:
                block.mixer = ResidualMXA(
                    block.mixer.m,
                    MXABlock(
                        block.mixer.m.dim,
                        init_values=mxa_init_values,
                        roi_head=mxa_roi_head,
                        device=device,
                        dtype=dtype,
                    ),
                    rate,
                )
        stem = [
            {
                "num_chs": self.patch_embed[2 * i].conv.out_channels,
                "reduction": 2 ** (i + 1),
                "module": f"patch_embed.relu{i + 1}",
            }
            for i in range(3)
        ]
        self.feature_info = stem + self.feature_info

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.linear if self.num_classes > 0 else self.head

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, label_names: Sequence[str] | None = None
    ) -> None:
        """Replaces the head; the names of its outputs are unknown unless given."""
        super().reset_classifier(num_classes, global_pool)
        set_label_names(self, label_names)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """Returns maps of the stem (reductions 2, 4, 8) and of the stages (16, 32, 64), indexed 0 to 5.

        Args:
            x: Images ``(B, in_chans, H, W)``.
            indices: Maps to return: the last n if an int, all if None.
            norm: Without effect, the stages end without a norm.
            stop_early: Stop after the last map asked for.
            output_fmt: ``"NCHW"``.
            intermediates_only: Return the maps alone.

        Returns:
            A list of maps ``(B, C, H, W)``, or the final features and that list.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        stem_taps = len(self.patch_embed) // 2
        take_indices, max_index = feature_take_indices(stem_taps + len(self.stages), indices)
        intermediates = []
        for i, layer in enumerate(self.patch_embed):
            if stop_early and i // 2 > max_index:
                break
            x = layer(x)
            if i % 2 == 1 and i // 2 in take_indices:
                intermediates.append(x)
        for i, stage in enumerate(self.stages):
            if stop_early and stem_taps + i > max_index:
                break
            x = checkpoint(stage, x) if self.grad_checkpointing and not torch.jit.is_scripting() else stage(x)
            if stem_taps + i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the maps asked for do not need, and returns their indices (see ``forward_intermediates``)."""
        count = len(self.patch_embed) // 2 + len(self.stages)
        take_indices, max_index = feature_take_indices(count, indices)
        for name, _ in list(self.patch_embed.named_children())[2 * (max_index + 1) :]:
            delattr(self.patch_embed, name)  # deleting a slice would rename what stays
        del self.stages[max(max_index - 2, 0) :]
        prune_end = max_index < count - 1
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "")
        return take_indices


def _cfg(**kwargs) -> dict:
    return {
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "first_conv": "patch_embed.conv1.conv",
        "classifier": "head.linear",
        "fixed_input_size": True,
        "pool_size": (4, 4),
        **kwargs,
    }


VARIANTS = {  # paper, Table N.1; the kernels are timm's
    "m0": {"embed_dim": (64, 128, 192), "depth": (1, 2, 3), "num_heads": (4, 4, 4), "kernels": (5, 5, 5, 5)},
    "m1": {"embed_dim": (128, 144, 192), "depth": (1, 2, 3), "num_heads": (2, 3, 3), "kernels": (7, 5, 3, 3)},
    "m2": {"embed_dim": (128, 192, 224), "depth": (1, 2, 3), "num_heads": (4, 3, 2), "kernels": (7, 5, 3, 3)},
    "m3": {"embed_dim": (128, 240, 320), "depth": (1, 2, 3), "num_heads": (4, 3, 4), "kernels": (5, 5, 5, 5)},
    "m4": {"embed_dim": (128, 256, 384), "depth": (1, 2, 3), "num_heads": (4, 4, 4), "kernels": (7, 5, 3, 3)},
    "m5": {"embed_dim": (192, 288, 384), "depth": (1, 3, 4), "num_heads": (3, 3, 4), "kernels": (7, 5, 3, 3)},
}


def _entry_cfg(entry: dict) -> dict:
    """Turns an entry of the manifest into a configuration of timm's; what timm has no field for is left out."""
    labels = entry["labels"]
    names = LABEL_SPACES[labels] if isinstance(labels, str) else tuple(labels)
    source = {}
    if file := packaged(entry):
        source = {"file": str(file)}
    elif entry["sha256"]:
        source = {"hf_hub_id": f"{entry['repo']}@{entry['revision']}", "hf_hub_filename": entry["file"]}
    preprocessing = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["preprocessing"].items()}
    return _cfg(num_classes=len(names), label_names=names, license=entry["license"], **source, **preprocessing)


# timm's default would be the first tag with weights; the star makes .chexpert the default.
default_cfgs = generate_default_cfgs(
    {
        f"efficientvit_ml_{size}{suffix}.r224_in1k": _cfg(
            hf_hub_id=f"timm/efficientvit_{size}.r224_in1k", num_classes=1000, license="mit"
        )
        for size in VARIANTS
        for suffix in ("", "_mxa")
    }
    | {f"{name}*" if name.endswith(".chexpert") else name: _entry_cfg(entry) for name, entry in manifest().items()}
)


def _create_efficientvit_ml(
    variant: str,
    pretrained: bool = False,
    pretrained_cfg=None,
    pretrained_cfg_overlay: dict | None = None,
    label_names: Sequence[str] | None = None,
    **kwargs,
) -> EfficientVitMl:
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    config_of(cfg, kwargs.get("cache_dir"))
    if pretrained:
        copy = load_own_copy(variant, cfg, pretrained_cfg_overlay, label_names=label_names, **kwargs)
        if copy is not None:
            return copy
        state = weights_of(variant, cfg, kwargs.get("cache_dir"))
        overlay = dict(pretrained_cfg_overlay or {})
        without = {k: v for k, v in overlay.items() if k != "label_names"}
        cfg = resolve_pretrained_cfg(variant, pretrained_cfg, without)
        cfg = named(cfg, overlay, state, label_names, kwargs.get("num_classes"))
        pretrained_cfg_overlay = {
            **overlay,
            "state_dict": state,
            "source": None,
            "num_classes": cfg.num_classes,
            "label_names": cfg.label_names,
        }
    features_only = kwargs.get("features_only", False)
    model = build_model_with_cfg(
        EfficientVitMl,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"flatten_sequential": True, "out_indices": kwargs.pop("out_indices", tuple(range(6)))},
        **{**VARIANTS[variant.split("_")[2]], **kwargs},
    )
    if pretrained:
        model.pretrained_cfg.pop("state_dict")
        model.pretrained_cfg.update({"source": cfg.source} if cfg.source else {})
    if not features_only:
        stored = cfg.label_names
        set_label_names(model, label_names or (stored if stored and len(stored) == model.num_classes else None))
    return model


@register_model
def efficientvit_ml_m0(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M0."""
    return _create_efficientvit_ml("efficientvit_ml_m0", pretrained, **kwargs)


@register_model
def efficientvit_ml_m0_mxa(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M0 with Medical X-ray Attention."""
    return _create_efficientvit_ml("efficientvit_ml_m0_mxa", pretrained, mxa=True, **kwargs)


@register_model
def efficientvit_ml_m1(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M1."""
    return _create_efficientvit_ml("efficientvit_ml_m1", pretrained, **kwargs)


@register_model
def efficientvit_ml_m1_mxa(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M1 with Medical X-ray Attention."""
    return _create_efficientvit_ml("efficientvit_ml_m1_mxa", pretrained, mxa=True, **kwargs)


@register_model
def efficientvit_ml_m2(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M2."""
    return _create_efficientvit_ml("efficientvit_ml_m2", pretrained, **kwargs)


@register_model
def efficientvit_ml_m2_mxa(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M2 with Medical X-ray Attention."""
    return _create_efficientvit_ml("efficientvit_ml_m2_mxa", pretrained, mxa=True, **kwargs)


@register_model
def efficientvit_ml_m3(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M3."""
    return _create_efficientvit_ml("efficientvit_ml_m3", pretrained, **kwargs)


@register_model
def efficientvit_ml_m3_mxa(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M3 with Medical X-ray Attention."""
    return _create_efficientvit_ml("efficientvit_ml_m3_mxa", pretrained, mxa=True, **kwargs)


@register_model
def efficientvit_ml_m4(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M4."""
    return _create_efficientvit_ml("efficientvit_ml_m4", pretrained, **kwargs)


@register_model
def efficientvit_ml_m4_mxa(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M4 with Medical X-ray Attention."""
    return _create_efficientvit_ml("efficientvit_ml_m4_mxa", pretrained, mxa=True, **kwargs)


@register_model
def efficientvit_ml_m5(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M5."""
    return _create_efficientvit_ml("efficientvit_ml_m5", pretrained, **kwargs)


@register_model
def efficientvit_ml_m5_mxa(pretrained=False, **kwargs) -> EfficientVitMl:
    """Multi-label EfficientViT-M5 with Medical X-ray Attention."""
    return _create_efficientvit_ml("efficientvit_ml_m5_mxa", pretrained, mxa=True, **kwargs)
