"""What every registered model must do. A test class inherits a contract and gives its tests a ``name``."""

from __future__ import annotations

import timm
import torch
from timm.models import get_pretrained_cfg, group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import mxa


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Moves every weight and statistic off its first value: zeros and ones hide what a branch computes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.1 * torch.randn(b.shape, generator=generator))
            elif name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=generator))
    return model


def images(batch: int = 2, channels: int = 3, size: tuple[int, int] = (224, 224), **kwargs) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1)).to(**kwargs)


def meta(name: str, **kwargs) -> nn.Module:
    """A model without numbers, for what is asked without a forward."""
    return timm.create_model(name, device="meta", **kwargs)


def holds(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    """Whether a model has these tensors, to the last bit."""
    own = model.state_dict()
    return bool(state) and all(torch.equal(own[k], v) for k, v in state.items())


@torch.no_grad()
def check_gray_stem(three: nn.Module, one: nn.Module, size: int) -> None:
    """One channel gives the first maps that three equal ones give, but for the border."""
    mean, std = (torch.tensor(three.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    x = torch.rand(2, 1, size, size)
    wanted = three.patch_embed.conv1((x - mean) / std)
    found = one.patch_embed.conv1((x - mean.mean()) / std.mean())
    torch.testing.assert_close(found[..., 1:, 1:], wanted[..., 1:, 1:], atol=1e-5, rtol=1e-4)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


class ModelContract:
    outputs = 14
    reductions = (2, 4, 8, 16, 32, 64)
    stages = 3

    def test_forward_and_every_gradient(self, name):
        model = randomise(timm.create_model(name))
        logits = model(images(3))
        assert logits.shape == (3, self.outputs)
        assert logits.isfinite().all()
        logits.square().sum().backward()
        dead = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not dead

    def test_cfg_says_what_the_model_is(self, name):
        cfg = get_pretrained_cfg(name)
        model = timm.create_model(name).eval()
        assert model.pretrained_cfg["architecture"] == name
        assert cfg.fixed_input_size
        assert model.get_submodule(cfg.first_conv).weight.shape[1] == cfg.input_size[0]
        assert model.get_submodule(cfg.classifier) is model.get_classifier()
        assert model.get_classifier().weight.shape == (cfg.num_classes, model.num_features)
        assert len(mxa.label_names(model)) == cfg.num_classes == model.num_classes == self.outputs
        with torch.no_grad():
            assert model.forward_features(images(1)).shape[-2:] == cfg.pool_size

    @torch.no_grad()
    def test_num_classes_at_the_start_and_later(self, name):
        model = timm.create_model(name)
        for num_classes in (5, 0, 3):
            model.reset_classifier(num_classes)
            assert model.eval()(images(1)).shape == (1, num_classes or model.num_features)
            start = meta(name, num_classes=num_classes)
            assert shapes(start) == shapes(model)
            assert start.num_classes == model.num_classes == num_classes
            for head in (start.get_classifier(), model.get_classifier()):
                assert head.out_features == num_classes if num_classes else isinstance(head, nn.Identity)

    @torch.no_grad()
    def test_global_pool_at_the_start_and_later(self, name):
        model = timm.create_model(name).eval()
        features = model.forward_features(images(1))
        for pool, times in (("catavgmax", 2), ("max", 1), ("avg", 1)):
            model.reset_classifier(5, pool)
            width = model.num_features * times
            assert model.forward_head(features, pre_logits=True).shape == (1, width)
            assert torch.equal(model.forward_head(features), model(images(1)))
            start = meta(name, num_classes=5, global_pool=pool)
            assert shapes(start) == shapes(model)
            for pooled in (start, model):
                assert pooled.get_classifier().weight.shape == (5, width)
                assert pooled.head_hidden_size == width
        model.reset_classifier(0, "")
        assert torch.equal(model(images(1)), features)
        assert torch.equal(model.forward_head(features, pre_logits=True), features)
        assert shapes(meta(name, num_classes=0, global_pool="")) == shapes(model)

    @torch.no_grad()
    def test_other_sizes_at_the_start_and_later(self, name):
        model = timm.create_model(name).eval()
        for size in ((320, 320), (384, 384), (256, 192)):
            model.set_input_size(size)
            assert shapes(meta(name, img_size=size)) == shapes(model)
            features = model.forward_features(images(1, size=size))
            assert features.shape[-2:] == tuple(-(-side // self.reductions[-1]) for side in size)
            assert model.forward_head(features).shape == (1, self.outputs)

    @torch.no_grad()
    def test_one_channel(self, name):
        model = timm.create_model(name, in_chans=1).eval()
        assert model(images(1, channels=1)).shape == (1, self.outputs)
        assert model.in_chans == 1

    @torch.no_grad()
    def test_features_only_gives_every_map(self, name):
        model = timm.create_model(name, features_only=True).eval()
        assert tuple(model.feature_info.reduction()) == self.reductions
        maps = model(images(1))
        assert [m.shape[1] for m in maps] == model.feature_info.channels()
        assert [m.shape[-1] for m in maps] == [-(-224 // r) for r in self.reductions]
        stages = timm.create_model(name, features_only=True, out_indices=tuple(range(-self.stages, 0))).eval()
        assert tuple(stages.feature_info.reduction()) == self.reductions[-self.stages :]
        assert [m.shape for m in stages(images(1))] == [m.shape for m in maps[-self.stages :]]

    def test_every_parameter_has_its_layer(self, name):
        model = meta(name)
        groups = list(group_parameters(model, model.group_matcher(), reverse=False).values())
        names = [k for group in groups for k in group]
        assert sorted(names) == sorted(k for k, _ in model.named_parameters())
        assert all(k.startswith("patch_embed.") for k in groups[0])
        assert all(k.startswith("head.") for k in groups[-1])
        blocks = sum(len(stage.blocks) for stage in model.stages)
        assert len(groups) == 1 + blocks + 1
        assert all(any(k.startswith("stages.") and ".blocks." in k for k in group) for group in groups[1:-1])

    def test_layer_decay_falls_towards_the_stem(self, name):
        model = meta(name)
        optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.75)
        where = {id(p): k for k, p in model.named_parameters()}
        scale = {where[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
        assert scale.keys() == set(where.values())
        assert scale["head.linear.weight"] == 1.0
        assert scale["patch_embed.conv1.conv.weight"] == min(scale.values()) < 0.5
        decayed = {where[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
        assert "head.linear.weight" in decayed
        assert not {k for k in decayed if k in model.no_weight_decay() or model.get_parameter(k).ndim < 2}

    def test_no_weight_decay_names_the_position_biases(self, name):
        model = meta(name)
        biases = {k for k, _ in model.named_parameters() if k.endswith("attention_biases")}
        assert model.no_weight_decay() == biases
        assert len(biases) == sum(len(stage.blocks) for stage in model.stages)
