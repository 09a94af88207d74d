"""The study's own models: what a form claims to do to a map, what the published head gives."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from mxa.data import create_dataset
from mxa.layers import roi_resize
from mxa.models import save_pretrained
from mxa.models.load import load_model

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "study"))
import forms
import published_baseline

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
NAMES = ("paste", "2 boxes", "4 boxes", "zoom", "groups", "first stage")


def build(name: str, **kwargs) -> torch.nn.Module:
    return timm.create_model(name, num_classes=15, img_size=64, **kwargs)


def test_pasting_the_whole_map_changes_nothing():
    y = torch.randn(1, 3, 6, 7)
    torch.testing.assert_close(forms.paste(y, WHOLE), y)


def test_what_is_cropped_is_pasted_where_it_was():
    ramp = torch.linspace(0, 1, 24).expand(1, 1, 24, 24).clone()
    box = torch.tensor([[0.25, 0.5, 0.75, 0.9]])
    back = forms.paste(roi_resize(ramp, box), box)[0, 0]
    inside = back[13:21, 7:17]
    torch.testing.assert_close(inside, ramp[0, 0, 13:21, 7:17], atol=5e-3, rtol=0)
    assert back[:11].abs().max() == 0 and back[:, :5].abs().max() == 0 and back[:, 19:].abs().max() == 0


def test_zoom_sees_the_box_of_the_fine_map():
    fine_map = forms._Map()
    fine_map.value = torch.randn(2, 4, 8, 8)
    zoom = forms.Zoom(8, fine_map, 4).eval()
    del zoom.roi
    zoom.roi = SimpleNamespace(head=lambda x: WHOLE.expand(2, 4))
    zoom.cbam = zoom.ls = torch.nn.Identity()
    zoom.project = torch.nn.Identity()
    torch.testing.assert_close(zoom(torch.zeros(2, 8, 4, 4)), F.avg_pool2d(fine_map.value, 2))
    zoom.roi.head = lambda x: torch.tensor([[0.5, 0.2, 0.9, 0.6]]).expand(2, 4)
    fine_map.value = ((torch.arange(16) + 0.5) / 16).expand(2, 4, 16, 16)  # how far to the right
    seen = zoom(torch.zeros(2, 8, 4, 4))
    torch.testing.assert_close(seen, torch.tensor([0.55, 0.65, 0.75, 0.85]).expand_as(seen))


@pytest.mark.parametrize("form", NAMES)
def test_every_form_learns_everywhere_and_comes_back_the_same(form, tmp_path):
    torch.manual_seed(0)
    model, x = build("efficientvit_ml_m0_form", form=form).train(), torch.randn(2, 3, 64, 64)
    model(x).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    save_pretrained(model.eval(), tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(x), model(x))


def test_the_published_head_is_the_plain_networks_probability():
    torch.manual_seed(0)
    published = build("efficientvit_ml_m0_published")
    plain = build("efficientvit_ml_m0").eval()
    plain.load_state_dict(published.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        half = published.eval()(x)
        assert torch.equal(half, plain(x).half().sigmoid().float())
        published.head.linear.bias.fill_(-30.0)
        assert (published(x) == 0).all()


def test_marks_are_drawn_at_chexperts_rates(made_nih):
    dataset = create_dataset("nih", made_nih(lists=True), "train")
    rates = dict(zip(dataset.labels, published_baseline.uncertain_rates(dataset.labels), strict=True))
    assert rates["Atelectasis"] == pytest.approx(0.151, abs=1e-3) and rates["Hernia"] == rates["No Finding"] == 0
    assert rates["Effusion"] == pytest.approx(0.052, abs=1e-3)  # CheXpert's Pleural Effusion
    before, after = dataset.records.targets, published_baseline.mark(dataset).records.targets
    assert (after == -1).any() and np.isin(before, (0, 1)).all()
    assert np.array_equal(after[after != -1], before[after != -1])
    assert not (after[:, [rate == 0 for rate in rates.values()]] == -1).any()
