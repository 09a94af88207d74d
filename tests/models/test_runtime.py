"""Scripting, export, FX, compile, dtypes, devices, copies."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
from timm.layers import create_feature_extractor
from timm.models._manipulate import reinit_non_persistent_buffers
from timm.utils import ModelEmaV3

from mxa.layers import MXABlock, ROIHead

from ..contracts import images, randomise

NAMES = timm.list_models(module="efficientvit_ml")
PAIR = ("efficientvit_ml_m0", "efficientvit_ml_m0_mxa")


@pytest.fixture(params=PAIR)
def model(request):
    return randomise(timm.create_model(request.param)).eval()


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def with_mxa():
    return randomise(timm.create_model("efficientvit_ml_m0_mxa")).eval()


@torch.no_grad()
def test_script(with_mxa):
    scripted = torch.jit.script(with_mxa)
    assert_close(scripted(images()), with_mxa(images()))
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert_close(torch.jit.load(file)(images()), with_mxa(images()))


@torch.no_grad()
def test_script_of_a_model_in_training_trains(with_mxa):
    with_mxa.set_grad_checkpointing()  # scripted code cannot checkpoint and must not try
    scripted = torch.jit.script(copy.deepcopy(with_mxa).train())
    torch.testing.assert_close(scripted(images()), with_mxa.train()(images()), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_export_with_any_batch_size(with_mxa):
    program = torch.export.export(with_mxa, (images(2),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    for batch in (1, 3):
        assert_close(program.module()(images(batch)), with_mxa(images(batch)))


@torch.no_grad()
def test_fx_takes_a_layer_out(model):
    nodes = {"patch_embed.relu2": "stem", "stages.1.blocks.1.mixer": "mixer", "head.linear": "logits"}
    found = create_feature_extractor(model, nodes)(images())
    seen = {}
    for name, key in nodes.items():
        model.get_submodule(name).register_forward_hook(lambda m, args, out, key=key: seen.__setitem__(key, out))
    model(images())
    assert found.keys() == seen.keys()
    for key, value in seen.items():
        assert_close(found[key], value)


def test_fx_gradients(model):
    graph = create_feature_extractor(model, {"head.linear": "logits"})
    graph(images())["logits"].sum().backward()
    assert all(p.grad is not None for p in graph.parameters())


def compiled_agrees(model, backend, tolerance):
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(images())
        logits.square().mean().backward()
        results.append({"logits": logits.detach(), **{k: p.grad.clone() for k, p in model.named_parameters()}})
    for key, expected in results[0].items():
        assert (results[1][key] - expected).norm() <= tolerance * (1 + expected.norm()), key


def test_compile_in_one_graph(with_mxa, fresh_dynamo):
    compiled_agrees(with_mxa, "eager", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_name_compiles_in_training(name, fresh_dynamo):
    model = timm.create_model(name)
    logits = torch.compile(model, fullgraph=True, backend="aot_eager")(images())
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_every_name_compiles_with_inductor(name, fresh_dynamo):
    compiled_agrees(randomise(timm.create_model(name)).eval(), "inductor", 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_name_scripts_and_exports(name):
    model = randomise(timm.create_model(name)).eval()
    with torch.no_grad():
        expected = model(images())
        assert_close(torch.jit.script(model)(images()), expected)
        assert_close(torch.export.export(model, (images(),)).module()(images()), expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAIR)
def test_half_precision(name, dtype):
    model = timm.create_model(name, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    model.reset_classifier(5)
    assert {p.dtype for p in model.parameters()} == {dtype}
    full = randomise(timm.create_model(name, num_classes=5)).eval()
    model.load_state_dict(full.state_dict())
    logits, expected = model.eval()(images(dtype=dtype)), full(images())
    assert logits.dtype == dtype
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", PAIR)
def test_training_step_in_bfloat16(name):
    model = timm.create_model(name, dtype=torch.bfloat16)
    model(images(dtype=torch.bfloat16)).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images())
    logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16
    with torch.no_grad():
        expected = model(images())
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


def test_channels_last(model):
    expected = model(images())
    converted = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert converted.stages[1].downsample.patchmerge.conv1.conv.weight.is_contiguous(memory_format=torch.channels_last)
    logits = converted(images().to(memory_format=torch.channels_last))
    assert_close(logits, expected)
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in converted.parameters())


@pytest.mark.parametrize("name", PAIR)
def test_from_meta_device_to_numbers(name):
    kwargs = {"mxa_init_values": 0.25} if name.endswith("mxa") else {}
    built = timm.create_model(name, **kwargs)
    model = timm.create_model(name, device="meta", **kwargs)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 10**6)
    model.init_weights()
    assert all(t.isfinite().all() for t in [*model.parameters(), *model.buffers()])
    assert model(images()).isfinite().all()
    for (key, new), old in zip(model.named_modules(), built.modules(), strict=True):
        if isinstance(new, MXABlock):
            assert torch.equal(new.ls.gamma, old.ls.gamma), key
        if isinstance(new, ROIHead):
            assert torch.equal(new.log_scale, old.log_scale)
            assert not new.score[-1].weight.any()


@torch.no_grad()
def test_loading_into_a_model_from_the_meta_device(model):
    name = model.pretrained_cfg["architecture"]
    other = timm.create_model(name, device="meta").to_empty(device="cpu").eval()
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(model.state_dict())
    assert not torch.equal(other(images()), model(images()))  # the index of the position biases is not in the state
    assert reinit_non_persistent_buffers(other)
    assert torch.equal(other(images()), model(images()))


@torch.no_grad()
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_agree_and_share_nothing(model, duplicate):
    expected = model(images())
    twin = duplicate(model)
    assert torch.equal(twin(images()), expected)
    assert twin.label_names == model.label_names
    for p in twin.parameters():
        p.zero_()
    assert torch.equal(model(images()), expected)


@torch.no_grad()
def test_ema(model):
    ema = ModelEmaV3(model, decay=0.9)
    assert torch.equal(ema(images()), model(images()))
    before = {k: v.clone() for k, v in model.named_parameters()}
    for p in model.parameters():
        p.add_(1.0)
    ema.update(model)
    for key, value in ema.module.named_parameters():
        torch.testing.assert_close(value, before[key] + 0.1, atol=1e-4, rtol=1e-4)
    assert not ema.module.training
