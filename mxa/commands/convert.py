"""Checkpoints of other programs, made into a folder that timm loads."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import timm
import torch

from ..labels import CHEXPERT, resolve_labels
from ..models.efficientvit_ml import VARIANTS
from ..models.load import create, read_checkpoint
from ..models.weights import check_keys, save_pretrained, set_label_names
from ..task.teacher import XRV_RANGE
from ..utils.errors import InputError
from ..utils.files import alone_in, is_empty
from .config import ConvertConfig

__all__ = ["ConvertConfig", "convert"]

#: An architecture's name, the arguments in which a checkpoint differs from it, and its state in timm's names.
_Found = tuple[str, dict[str, object], dict[str, torch.Tensor]]


def convert(config: ConvertConfig) -> list[str]:
    """Writes a folder that ``timm.create_model("local-dir:OUTPUT", pretrained=True)`` loads.

    A pickle is opened with ``weights_only=True``. Of classes it may hold ``argparse.Namespace`` alone, in which the
    published code keeps its arguments.

    Returns:
        Sentences that say what was converted, and what differs from the original.

    Raises:
        InputError: the file is not such a checkpoint, the output folder is not empty, or it could not be written.
    """
    path, output = Path(config.checkpoint), Path(config.output)
    if output.is_file():
        raise InputError(f"--output {output} is in use: give another folder")
    with alone_in(output, "mxa convert"):
        if not is_empty(output):
            raise InputError(f"--output {output} is in use: give another folder")
        return _convert(config, path, output)


def _convert(config: ConvertConfig, path: Path, output: Path) -> list[str]:
    state, names = read_checkpoint(path, allowed=[argparse.Namespace])
    state = {k: v for k, v in state.items() if not k.endswith("attention_bias_idxs")}
    notes: list[str] = []
    own_names = names
    lite = any(key.startswith(("_conv_stem.", "_blocks.")) for key in state)
    kind = "EfficientNet-Lite" if lite else "EfficientViT"
    if lite and config.img_size is not None:
        raise InputError("--img-size is for an EfficientViT: leave it out, an EfficientNet-Lite takes any size")
    try:
        if any(key.startswith("blocks1.") for key in state) and not lite:
            state, names = _renamed(state, notes), names or CHEXPERT
        name, arguments, state = (_efficientnet_lite if lite else _efficientvit)(state, path)
        cfg = timm.get_pretrained_cfg(name)
        head, channels = state.get(f"{cfg.classifier}.weight"), state[f"{cfg.first_conv}.weight"].shape[1]
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"{path} is not a whole {kind}'s: {error}") from None
    if head is None or head.ndim != 2:
        raise InputError(f"{path} has no head ({cfg.classifier}.weight of two dimensions)")
    if channels not in ((3,) if lite else (1, 3)):
        raise InputError(f"{path} takes {channels} channels; an {kind} takes {'3' if lite else '1 or 3'}")
    outputs = head.shape[0]
    labels = tuple(names) if names and len(names) == outputs else None
    if config.labels is not None:
        labels = resolve_labels(config.labels)
        if len(labels) != outputs:
            raise InputError(f"--labels has {len(labels)} names for {outputs} outputs")
    elif own_names and labels is None:
        raise InputError(f"{path} names {len(own_names)} labels for {outputs} outputs: name them with --labels")
    model = create(name, config.img_size, num_classes=outputs, in_chans=channels, **arguments)
    if "mxa_roi_head" in arguments:  # the published MXA has no gate and one bias less
        own = model.state_dict()
        state |= {k: torch.ones_like(v) for k, v in own.items() if k not in state and k.endswith("mxa.ls.gamma")}
        state |= {k: torch.zeros_like(v) for k, v in own.items() if k not in state and k.endswith("head.conv1.bias")}
    try:
        check_keys(state, model)
    except RuntimeError as error:
        raise InputError(f"{path}: {error}{'' if lite else ' (another --img-size?)'}") from None
    model.load_state_dict(state)
    set_label_names(model, labels)
    if channels == 1:
        side = config.img_size or model.pretrained_cfg["input_size"][1]
        model.pretrained_cfg.update(XRV_RANGE, input_size=(1, side, side))
        notes.append("one channel: taken to be in [-1024, 1024], as the published code scales it")
    _save(model, output)
    named = ", ".join(labels) if labels else "not named (mxa.set_label_names)"
    return [f"{name} with {outputs} outputs: {named}", *notes]


def _save(model: torch.nn.Module, output: Path) -> None:
    """Fills the folder, or leaves it empty."""
    try:
        save_pretrained(model, output)
    except BaseException:
        for file in output.glob("[!.]*"):
            file.unlink()
        raise


#: Blocks, and channels before the last convolution, of each EfficientNet-Lite: no two agree in both.
_LITE_SIZES = {(16, 320): 0, (21, 320): 1, (21, 352): 2, (24, 384): 3, (30, 448): 4}
_LITE_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
#: A block that does not expand; timm counts its norms from 1.
_LITE_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _efficientnet_lite(state: dict[str, torch.Tensor], path: Path) -> _Found:
    """Finds which EfficientNet-Lite it is, and renames its keys from EfficientNet-PyTorch's names to timm's.

    EfficientNet-PyTorch counts the blocks through the network. timm counts them within each stage.
    """
    blocks = len({key.split(".")[1] for key in state if key.startswith("_blocks.")})
    size = blocks, state["_conv_head.weight"].shape[1]
    if size not in _LITE_SIZES:
        raise InputError(f"{path} has {blocks} blocks, the last of width {size[1]}, unlike EfficientNet-Lite0 to Lite4")
    name = f"tf_efficientnet_lite{_LITE_SIZES[size]}"
    with torch.device("meta"):
        stages = create(name).blocks
    places = [f"blocks.{i}.{j}" for i, stage in enumerate(stages) for j in range(len(stage))]
    modules = dict(_LITE_ENDS)
    for i, place in enumerate(places):
        block = _LITE_BLOCK if f"_blocks.{i}._expand_conv.weight" in state else _LITE_FIRST_BLOCK
        modules |= {f"_blocks.{i}.{theirs}": f"{place}.{ours}" for theirs, ours in block.items()}
    if unknown := [key for key in state if key.rpartition(".")[0] not in modules]:
        raise InputError(f"{path} is not an EfficientNet-Lite's alone: it holds {', '.join(unknown[:3])}")
    split = {key: key.rpartition(".") for key in state}
    return name, {}, {f"{modules[module]}.{leaf}": state[key] for key, (module, _, leaf) in split.items()}


_PUBLISHED_MXA = {
    "roi_predictor.0": "roi.head.conv1",
    "roi_predictor.2": "roi.head.conv2",
    "channel_attention.1": "cbam.channel.fc1",
    "channel_attention.3": "cbam.channel.fc2",
    "spatial_attention.0": "cbam.spatial.conv",
}


def _renamed(state: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Renames the keys of Microsoft's and of the published code to timm's, and adds to the notes what differs."""
    renamed = {_name(key): value for key, value in state.items()}
    if any(".mxa." in key for key in renamed):
        notes.append(
            "not exact: the published code runs the mixer twice and adds its residual twice; here it runs once, beside "
            "MXA (paper, section 2.2)"
        )
        notes.append("not exact: its boxes are rounded to whole cells; its channel attention has no maximum (E.1)")
    if "head_dist.linear.weight" in renamed:
        _fold_heads(renamed)
        notes.append("two heads, averaged as in its eval mode, became one")
    return renamed


def _name(key: str) -> str:
    """Returns timm's name of a parameter of Microsoft's or of the published code."""
    key = re.sub(r"\.c\.", ".conv.", re.sub(r"\.l\.", ".linear.", key))
    if found := re.match(r"patch_embed\.(\d+)\.(.+)", key):
        return f"patch_embed.conv{int(found[1]) // 2 + 1}.{found[2]}"
    found = re.match(r"blocks(\d)\.(\d+)\.(.+)", key)
    if not found:
        return key
    stage, at, rest = int(found[1]) - 1, int(found[2]), found[3]
    if stage and at < 3:
        return f"stages.{stage}.downsample.{('res1', 'patchmerge', 'res2')[at]}.{rest}"
    rest = rest.replace("poi_predictor", "roi_predictor")
    for theirs, ours in _PUBLISHED_MXA.items():
        rest = re.sub(rf"^mxa\.(?:m\.)?{re.escape(theirs)}\.", f"mixer.mxa.{ours}.", rest)
    return f"stages.{stage}.blocks.{at - 3 * bool(stage)}.{rest}"


def _fold_heads(state: dict[str, torch.Tensor]) -> None:
    """Replaces two heads by one linear layer that gives the mean of both in eval mode.

    Each head is a batch norm and a linear layer. The batch norm of the new head is the identity.
    """
    weight, bias, eps = 0.0, 0.0, 1e-5
    for head in ("head", "head_dist"):
        bn = {k: state.pop(f"{head}.bn.{k}").double() for k in ("weight", "bias", "running_mean", "running_var")}
        state.pop(f"{head}.bn.num_batches_tracked", None)
        linear = {k: state.pop(f"{head}.linear.{k}").double() for k in ("weight", "bias")}
        scale = bn["weight"] / (bn["running_var"] + eps).sqrt()
        weight = weight + linear["weight"] * scale / 2
        bias = bias + (linear["bias"] + linear["weight"] @ (bn["bias"] - bn["running_mean"] * scale)) / 2
    width = weight.shape[1]
    state |= {"head.linear.weight": weight.float(), "head.linear.bias": bias.float()}
    state |= {"head.bn.weight": torch.full((width,), (1 + eps) ** 0.5), "head.bn.bias": torch.zeros(width)}
    state |= {"head.bn.running_mean": torch.zeros(width), "head.bn.running_var": torch.ones(width)}
    state["head.bn.num_batches_tracked"] = torch.tensor(0)


def _efficientvit(state: dict[str, torch.Tensor], path: Path) -> _Found:
    """Finds which EfficientViT it is, its keys being timm's."""
    if "patch_embed.conv1.conv.weight" not in state or "stages.0.blocks.0.dw0.m.conv.weight" not in state:
        begins = ", ".join(list(state)[:3]) or "nothing"
        raise InputError(
            f"{path} is not an EfficientViT's: it begins with {begins}; nor is it an EfficientNet-Lite's in "
            "EfficientNet-PyTorch's names"
        )
    widths = tuple(state.get(f"stages.{i}.blocks.0.dw0.m.conv.weight", torch.empty(0)).shape[0] for i in range(3))
    found = [size for size, variant in VARIANTS.items() if variant["embed_dim"] == widths]
    if not found:
        raise InputError(f"{path} has widths {widths}, unlike EfficientViT M0 to M5")
    with_mxa = any(".mxa." in key for key in state)
    arguments: dict[str, object] = {}
    if any("mxa.roi.head.conv1" in key for key in state):
        arguments["mxa_roi_head"] = "mean"
    kernel = "stages.2.blocks.0.mixer.m.attn.dws.{}.conv.weight"
    kernels = tuple(state[kernel.format(i)].shape[-1] for i in range(4) if kernel.format(i) in state)
    if kernels != VARIANTS[found[0]]["kernels"][: len(kernels)]:
        arguments["kernels"] = (*kernels, *VARIANTS[found[0]]["kernels"][len(kernels) :])
    return f"efficientvit_ml_{found[0]}" + ("_mxa" if with_mxa else ""), arguments, state
