"""The six feature maps are the same, whichever way a client asks for them."""

from __future__ import annotations

import pytest
import timm
import torch

from ..contracts import images, randomise

PAIR = ("efficientvit_ml_m0", "efficientvit_ml_m0_mxa")
CHANNELS = [8, 16, 32, 64, 128, 192]
SIDES = [112, 56, 28, 14, 7, 4]


@pytest.fixture(scope="module", params=PAIR)
def whole(request):
    """A model, its name, an input and its six maps."""
    model = randomise(timm.create_model(request.param)).eval()
    x = images()
    with torch.no_grad():
        return model, request.param, x, model.forward_intermediates(x, intermediates_only=True)


def same(found, expected):
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_forward_intermediates(whole):
    model, _, x, maps = whole
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip(CHANNELS, SIDES, strict=True)]
    final, again = model.forward_intermediates(x)
    assert same(again, maps)
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(final, maps[-1])


@torch.no_grad()
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize(("indices", "taken"), [([0], [0]), ([2, 3], [2, 3]), ([-2], [4]), (2, [4, 5]), (6, range(6))])
def test_indices_and_stopping_early(whole, indices, taken, stop_early):
    model, _, x, maps = whole
    ran = []
    hooks = [s.register_forward_hook(lambda *_: ran.append(1)) for s in model.stages]
    final, found = model.forward_intermediates(x, indices=indices, stop_early=stop_early)
    for hook in hooks:
        hook.remove()
    assert same(found, [maps[i] for i in taken])
    assert torch.equal(final, maps[max(taken)] if stop_early else maps[-1])
    assert len(ran) == (max(max(taken) - 2, 0) if stop_early else 3)
    assert same(model.forward_intermediates(x, indices, stop_early=stop_early, intermediates_only=True), found)


@pytest.mark.parametrize("indices", [[6], [-7], 7])
def test_there_is_no_seventh_map(whole, indices):
    with pytest.raises(AssertionError):
        whole[0].forward_intermediates(whole[2], indices=indices)


def test_other_layouts_are_refused(whole):
    with pytest.raises(AssertionError, match="NCHW"):
        whole[0].forward_intermediates(whole[2], output_fmt="NLC")


@torch.no_grad()
@pytest.mark.parametrize("feature_cls", [None, "dict", "hook", "getter", "fx"])
@pytest.mark.parametrize("out_indices", [None, (0, 1, 2), (-3, -2, -1), (1, 4)])
def test_features_only(whole, feature_cls, out_indices):
    model, name, x, maps = whole
    kwargs = {k: v for k, v in (("feature_cls", feature_cls), ("out_indices", out_indices)) if v}
    features = timm.create_model(name, features_only=True, **kwargs).eval()
    taken = [i % 6 for i in out_indices or range(6)]
    assert features.feature_info.channels() == [CHANNELS[i] for i in taken]
    assert features.feature_info.reduction() == [2 ** (i + 1) for i in taken]
    own = [v for k, v in model.state_dict().items() if not k.startswith("head.")]
    names = features.state_dict()  # the wrappers rename and cut off, and keep the order
    features.load_state_dict(dict(zip(names, own, strict=False)))
    found = features(x)
    assert same(list(found.values()) if isinstance(found, dict) else found, [maps[i] for i in taken])


@torch.no_grad()
@pytest.mark.parametrize(("indices", "taken"), [([0], [0]), ([0, 1], [0, 1]), ([2], [2]), ([1, 3], [1, 3]), (1, [5])])
def test_pruning_keeps_the_maps_and_the_names(whole, indices, taken):
    model, name, x, maps = whole
    pruned = timm.create_model(name).eval()
    pruned.load_state_dict(model.state_dict())
    assert pruned.prune_intermediate_layers(indices) == taken
    last = max(taken)
    assert len(pruned.stages) == max(last - 2, 0)
    assert set(pruned.state_dict()) <= set(model.state_dict())
    assert pruned.num_classes == 0
    assert pruned.num_features == CHANNELS[last]
    assert same(pruned.forward_intermediates(x, taken, intermediates_only=True), [maps[i] for i in taken])
    assert torch.equal(pruned.forward_intermediates(x, taken)[0], maps[last])
    assert torch.equal(pruned(x), maps[last])


@torch.no_grad()
def test_pruning_nothing_can_keep_the_head(whole):
    model, name, x, _ = whole
    pruned = timm.create_model(name).eval()
    pruned.load_state_dict(model.state_dict())
    pruned.prune_intermediate_layers(1, prune_head=False)
    assert torch.equal(pruned(x), model(x))
