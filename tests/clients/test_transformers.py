"""transformers, unmodified: a run folder is one of its models, and its pipeline is multi-label."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import mxa
from mxa.layers import graft
from mxa.models import save_pretrained, set_label_names
from mxa.models.load import create, load_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.clients

LABELS = ("Edema", "Mass", "No Finding")


@pytest.fixture(params=["efficientvit_ml_m0_mxa", "resnet10t", "grafted"])
def run(request, tmp_path):
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224" if request.param == "grafted" else request.param
    model = create(name, num_classes=3)
    if request.param == "grafted":
        graft(model)
    set_label_names(model, LABELS)
    torch.nn.init.normal_(model.get_classifier().weight)
    save_pretrained(model, tmp_path)
    return tmp_path


def test_a_run_is_a_model_of_transformers(run):
    theirs = transformers.AutoModelForImageClassification.from_pretrained(run).eval()
    ours = load_model(run)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, ours(images))
    assert list(theirs.config.id2label.values()) == list(LABELS) == list(mxa.label_names(ours))
    assert theirs.config.problem_type == "multi_label_classification"


def test_its_pipeline_gives_a_probability_to_each_label(run):
    image = Image.linear_gradient("L").resize((224, 224)).convert("RGB")
    found = transformers.pipeline("image-classification", model=str(run))(image, top_k=3)
    scores = {one["label"]: one["score"] for one in found}
    processor = transformers.AutoImageProcessor.from_pretrained(run)
    with torch.no_grad():
        wanted = load_model(run)(processor(image, return_tensors="pt")["pixel_values"])[0].sigmoid()
    assert scores == pytest.approx(dict(zip(LABELS, wanted.tolist(), strict=True)), abs=1e-5)
    assert sum(scores.values()) != pytest.approx(1)
