"""Boxes, heat maps and gates of MXA, planted where they can be computed by hand."""

from __future__ import annotations

import pytest
import timm
import torch

from mxa.explain import gate_maps, predict_rois, roi_heat_maps
from mxa.layers import MXABlock
from mxa.layers.grid import Grid, to_image
from mxa.utils.errors import InputError

BLOCKS = [f"stages.{s}.blocks.{b}.mixer.mxa" for s, n in enumerate((1, 2, 3)) for b in range(n)]


def test_every_block_gives_a_box_a_heat_map_and_a_gate(mxa, images):
    boxes, heat, gates = predict_rois(mxa, images), roi_heat_maps(mxa, images), gate_maps(mxa, images)
    assert list(boxes) == list(heat) == [f"{block}.roi.head" for block in BLOCKS]
    assert list(gates) == BLOCKS
    for found in (*heat.values(), *gates.values()):
        assert found.shape == (2, 160, 160) and found.dtype == torch.float32 and not found.requires_grad
    again = gate_maps(mxa, images)
    assert all(torch.equal(gates[name], again[name]) for name in gates)


def test_gates_fill_their_boxes_and_nothing_else(mxa, images):
    boxes, gates = predict_rois(mxa, images), gate_maps(mxa, images)
    for block in BLOCKS:
        for box, gate in zip(boxes[f"{block}.roi.head"] * 160, gates[block], strict=True):
            at = torch.arange(160) + 0.5
            x, y = (at >= box[0]) & (at <= box[2]), (at >= box[1]) & (at <= box[3])
            inside = y[:, None] & x
            assert ((gate > 0) & (gate < 1))[inside].all()
            assert (gate[~inside] == 0).all()


def test_the_gate_is_the_one_that_the_block_multiplies_with(mxa, images):
    """A first block whose box is the whole map: the placed gate has the module's own values at the cells."""
    block = mxa.get_submodule(BLOCKS[0])
    seen = {}
    handles = [
        block.roi.head.register_forward_hook(lambda m, i, boxes: torch.tensor([[0.0, 0, 1, 1]] * 2)),
        block.cbam.spatial.register_forward_hook(lambda m, i, output: seen.update(ratio=output / i[0])),
    ]
    gate = gate_maps(mxa, images)[BLOCKS[0]]
    for handle in handles:
        handle.remove()
    assert torch.allclose(gate[:, ::16, ::16], seen["ratio"].nanmean(1), atol=1e-4)


def test_a_box_in_a_corner_is_drawn_there(images):
    """A head that scores one cell far above the rest puts heat and box there."""
    model = timm.create_model("efficientvit_ml_m0_mxa", img_size=160, num_classes=2).eval()
    head = model.get_submodule(f"{BLOCKS[0]}.roi.head")
    score = torch.zeros(2, 1, 10, 10)
    score[:, :, 2, 7] = 50
    handle = head.score.register_forward_hook(lambda m, i, o: score)
    boxes, heat = predict_rois(model, images), roi_heat_maps(model, images)
    handle.remove()
    name = f"{BLOCKS[0]}.roi.head"
    x1, y1, x2, y2 = (boxes[name][0] * 160).tolist()
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((7 * 16 + 0.5, 2 * 16 + 0.5), abs=1e-3)
    assert divmod(int(heat[name][0].argmax()), 160) == (32, 112)
    assert heat[name][0].max() == pytest.approx(1)


def test_a_graft_into_another_network_is_found_where_it_is(images):
    """MXA after the second layer of a ConvNeXt, whose patches are not centred on the first pixel."""
    model = timm.create_model("convnext_atto", num_classes=2)
    model.stages[1].add_module("mxa", MXABlock(80))
    forward = type(model.stages[1]).forward
    model.stages[1].forward = lambda x: (y := forward(model.stages[1], x)) + model.stages[1].mxa(y)
    box = predict_rois(model, images)["stages.1.mxa.roi.head"]
    grid = Grid((20, 20), (8.0, 8.0), (3.5, 3.5), (160, 160))
    centred = torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    assert torch.allclose(box[:1], to_image(centred, grid), atol=0.02)
    assert torch.allclose(to_image(centred, grid), centred)  # whole patches: cells divide the image evenly
    assert gate_maps(model, images)["stages.1.mxa"].shape == (2, 160, 160)


def test_models_without(plain, images):
    for function in (predict_rois, gate_maps, roi_heat_maps):
        with pytest.raises(InputError, match="no MXA block"):
            function(plain, images)
    mean = timm.create_model("efficientvit_ml_m0_mxa", img_size=160, mxa_roi_head="mean")
    assert len(gate_maps(mean, images)) == 6
    with pytest.raises(InputError, match="softmax head"):
        roi_heat_maps(mean, images)
