"""The finding head against a slow reading of it, and on other people's networks."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import timm
import torch
from torch import nn

import mxa
from mxa.layers import FindingHead, attach_finding_head, detach_finding_head, graft, roi_resize, ungraft
from mxa.layers.attach import finding_rows
from mxa.models import save_pretrained
from mxa.models.load import load_model
from mxa.utils.errors import InputError

from ..contracts import randomise

MAPS = [(6, 8, 10), (9, 4, 5)]  # (C, H, W), the finest first


def a_head(labels: int = 3, **options) -> FindingHead:
    """A head whose every parameter counts, in double precision."""
    torch.manual_seed(0)
    head = FindingHead([c for c, _, _ in MAPS], labels, dim=8, prior_size=4, reduction=2, **options).double()
    for parameter in (head.prior, head.log_scale, head.refine, head.bias):
        nn.init.normal_(parameter, std=0.3)
    return head.eval()


def some_maps(batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, *shape, dtype=torch.float64) for shape in MAPS]


def around_peak(heat: torch.Tensor) -> torch.Tensor:
    """A heat map ``(H, W)`` weighted by a Gaussian around its highest cell, cell by cell."""
    height, width = heat.shape
    y, x = divmod(int(heat.argmax()), width)
    weighted = heat.clone()
    for i in range(height):
        for j in range(width):
            far = ((i - y) / height) ** 2 + ((j - x) / width) ** 2
            weighted[i, j] *= math.exp(-far / (2 * 0.2**2))
    return weighted / weighted.sum()


def expected_box(head: FindingHead, label: int, heat: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    corners = []
    for axis, cells in ((1, heat.sum(0)), (0, heat.sum(1))):
        at = (torch.arange(len(cells), dtype=torch.float64) + 0.5) / len(cells)
        mean = (at * cells).sum()
        spread = (3 * (((at - mean) ** 2 * cells).sum() + 1 / (12 * len(cells) ** 2))).sqrt()
        half = spread * (head.log_scale[label, 1 - axis] + seen[3 - axis]).exp()
        centre = (mean + seen[1 - axis] * half).clamp(0.025, 0.975)
        half = half.clamp(0.025, 1)
        corners.append(((centre - half).clamp(0, 1), (centre + half).clamp(0, 1)))
    return torch.stack([corners[0][0], corners[1][0], corners[0][1], corners[1][1]])


@torch.no_grad()
def test_each_label_and_image_by_itself():
    head, maps = a_head(), some_maps()
    found = head(maps)
    head.training = True  # its norms stay in evaluation mode
    cropped = head(maps).boxes
    for b in range(2):
        x = head.fuse([m[b : b + 1] for m in maps])[0]  # (C, H, W)
        prior = nn.functional.interpolate(head.prior, size=x.shape[1:], mode="bilinear")[0]
        for label in range(3):
            score = torch.einsum("chw,c->hw", x, head.score.weight[label, :, 0, 0]) + prior[label]
            torch.testing.assert_close(found.scores[b, label], score)
            heat = (score * head.log_sharpness[label].exp()).exp()
            heat = heat / heat.sum()
            seen = 2 * ((x * heat).sum((1, 2)) @ head.refine[label] / 2).tanh()
            crop_box, box = (expected_box(head, label, h, seen) for h in (heat, around_peak(heat)))
            torch.testing.assert_close(found.boxes[b, label], box)
            torch.testing.assert_close(cropped[b, label], crop_box)
            crop = head.cbam(roi_resize(x[None], crop_box[None], (4, 4)))
            logit = crop.mean((2, 3))[0] @ head.weight[label] + head.bias[label]
            torch.testing.assert_close(found.logits[b, label], logit)


def test_gradients():
    head, maps = a_head(2), some_maps(1)
    nn.init.constant_(head.log_scale, -1.5)  # no box at the clamp, which passes a gradient that its value has not
    nn.init.normal_(head.refine, std=0.02)
    for m in maps:
        m.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *maps: tuple(head(list(maps))), maps, atol=1e-4)
    head.train()
    sum(part.square().sum() for part in head(some_maps())).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_no_image_has_a_gradient_without_bound():
    """Adam divides by the largest gradient that it remembers: one such image would end the training of the head."""
    head = a_head(2)
    for strange in (1.0, 1e3, 1e6):
        maps = [strange * m for m in some_maps(1)]
        head.zero_grad()
        head.fuse = lambda maps: maps[0].repeat(1, 2, 1, 1)[:, :8]
        head(maps).boxes.square().sum().backward()
        assert all(p.grad.norm() < 100 for p in (head.refine, head.log_scale, head.prior))


def test_several_boxes_of_one_map():
    torch.manual_seed(0)
    x, low = torch.randn(2, 3, 6, 7), torch.rand(2, 5, 2) * 0.5
    boxes = torch.cat([low, low + 0.1 + torch.rand(2, 5, 2) * 0.4], dim=2)
    for size in (None, (3, 2), (6, 7)):
        one_by_one = torch.stack([roi_resize(x, boxes[:, i], size) for i in range(5)], dim=1)
        torch.testing.assert_close(roi_resize(x, boxes, size), one_by_one)


def test_the_box_follows_what_is_scored():
    head = FindingHead([4], 2, dim=4).eval()
    for x, y in ((3, 4), (12, 9), (8, 14)):
        maps = torch.zeros(1, 4, 16, 16)
        head.score.weight.data.zero_()
        head.fuse = lambda maps: maps[0]
        maps[0, 1, y - 1 : y + 2, x - 2 : x + 3] = 30.0
        maps[0, 1, y, x] += 0.01
        head.score.weight.data[1, 1] = 1.0
        box = head([maps]).boxes[0, 1]
        expected = torch.tensor([x - 2, y - 1, x + 3, y + 2]) / 16
        scale = head.log_scale[1].exp().detach()
        centre = (box[:2] + box[2:]) / 2
        torch.testing.assert_close(centre, (expected[:2] + expected[2:]) / 2, atol=2e-3, rtol=0)
        torch.testing.assert_close(box[2:] - box[:2], (expected[2:] - expected[:2]) * scale, atol=2e-2, rtol=0)


@torch.no_grad()
def test_a_second_peak_does_not_widen_the_box():
    head = FindingHead([4], 2, dim=4).eval()
    head.fuse = lambda maps: maps[0]
    head.score.weight.data.zero_()
    head.score.weight.data[1, 1] = 1.0
    maps = torch.zeros(1, 4, 16, 16)
    maps[0, 1, 2:5, 2:5] = 6.0
    alone = head([maps])
    maps[0, 1, 11:14, 11:14] = 5.9
    both = head([maps])
    torch.testing.assert_close(both.boxes[0, 1], alone.boxes[0, 1], atol=0.02, rtol=0)
    assert (head.train()([maps]).boxes[0, 1, 2:] > 0.6).all()  # what is cropped spans both


NETWORKS = ["efficientvit_ml_m0_mxa", "tf_efficientnet_lite0", "convnext_atto", "test_vit", "resnet10t"]


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_keeps_its_outputs_and_comes_back(name, tmp_path):
    model = timm.create_model(name, num_classes=5).eval()
    mxa.set_label_names(model, ["No Finding", "Mass", "Edema", "Nodule", "Hernia"])
    size = model.pretrained_cfg["input_size"]
    x, keys, kind = torch.randn(2, *size), set(model.state_dict()), type(model)
    before, cfg = model(x), dict(model.pretrained_cfg)
    attach_finding_head(model, ["Nodule", "mass"], dim=16)
    assert torch.equal(model(x), before) and finding_rows(model) == [3, 1]
    assert {k for k in model.state_dict() if k not in keys} == {
        f"finding_head.{k}" for k in model.finding_head.state_dict()
    }
    nn.init.ones_(model.finding_head.gate)
    after, found = model(x, return_findings=True)
    assert torch.equal((after != before).any(0), torch.tensor([False, True, False, True, False]))
    torch.testing.assert_close(after[:, [3, 1]], before[:, [3, 1]] + found.logits)
    assert found.boxes.shape == (2, 2, 4)
    save_pretrained(model, tmp_path)
    for loaded in (load_model(tmp_path), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()):
        assert torch.equal(loaded(x), after) and mxa.label_names(loaded) == mxa.label_names(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), after)
    detach_finding_head(model)
    assert type(model) is kind and set(model.state_dict()) == keys and model.pretrained_cfg == cfg
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_beside_grafted_blocks(tmp_path):
    model = graft(timm.create_model("test_vit", num_classes=3, global_pool="avg"), init_values=0.5)
    attach_finding_head(model, dim=8)
    randomise(model).eval()
    x = torch.randn(1, 3, 160, 160)
    save_pretrained(model, tmp_path)
    assert torch.equal(load_model(tmp_path)(x), model(x))
    with pytest.raises(ValueError, match="finding head that was added later: remove that first"):
        ungraft(model)
    ungraft(detach_finding_head(model))
    assert model.pretrained_cfg["architecture"] == "test_vit"


def test_a_plain_checkpoint_loads_and_half_a_head_does_not():
    model = attach_finding_head(timm.create_model("efficientvit_ml_m0", num_classes=2), dim=8)
    plain = timm.create_model("efficientvit_ml_m0", num_classes=2)
    own = model.finding_head.head.score.weight.clone()
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.finding_head.head.score.weight, own)
    with pytest.raises(RuntimeError, match=r"finding_head\.head"):
        model.load_state_dict({**plain.state_dict(), "finding_head.gate": torch.zeros(2)})


def test_what_cannot_be_attached():
    model = timm.create_model("efficientvit_ml_m0", num_classes=2)
    mxa.set_label_names(model, ["Mass", "No Finding"])
    for labels, message in (
        (["Edema"], "no output of Edema; it has Mass, No Finding"),
        ("Mass", "sequence of names"),
        ([2], "different outputs, 0 to 1"),
        ([0, 0], "different outputs"),
        ([], "different outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            attach_finding_head(model, labels)
    with pytest.raises(ValueError, match="gives no maps"):
        attach_finding_head(NoMaps())
    with pytest.raises(ValueError, match="has no outputs"):
        attach_finding_head(timm.create_model("efficientvit_ml_m0", num_classes=0))
    with pytest.raises(ValueError, match="at least one map and one label"):
        FindingHead([], 1)
    attach_finding_head(model)
    assert finding_rows(model) == [0]  # No Finding has no place
    with pytest.raises(ValueError, match="already"):
        attach_finding_head(model)
    with pytest.raises(ValueError, match="detach it first"):
        model.reset_classifier(3)
    with pytest.raises(ValueError, match="has no finding head"):
        detach_finding_head(detach_finding_head(model))


class NoMaps(nn.Module):
    """A network that timm has not made."""

    num_classes = 2


@torch.no_grad()
def test_a_network_of_another_stride():
    model = timm.create_model("vit_tiny_patch16_224", patch_size=14, depth=1, num_classes=2, img_size=56).eval()
    model.feature_info = [{**stage, "reduction": 14} for stage in model.feature_info]
    attach_finding_head(model, dim=8)
    assert model(torch.randn(1, 3, 56, 56), return_findings=True)[1].scores.shape == (1, 2, 4, 4)


def test_a_saved_recipe_is_checked(tmp_path):
    model = attach_finding_head(timm.create_model("efficientvit_ml_m0", num_classes=2), dim=8)
    save_pretrained(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"dim"', '"width"'))
    with pytest.raises(InputError, match=r"finding_head must be an object of arguments of mxa\.layers\.attach_finding"):
        load_model(tmp_path)


def test_it_exports_with_any_batch_size():
    model = attach_finding_head(timm.create_model("efficientvit_ml_m0", num_classes=3), dim=8).eval()
    nn.init.ones_(model.finding_head.gate)
    batch = torch.export.Dim("batch", min=1, max=64)
    x = torch.randn(2, 3, 224, 224)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        for count in (1, 3):
            y = torch.randn(count, 3, 224, 224)
            torch.testing.assert_close(program.module()(y), model(y), atol=1e-5, rtol=1e-5)
