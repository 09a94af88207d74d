import copy
import pickle

import pytest
import torch

from mxa.layers import MeanROIHead, MXABlock, ROIHead, roi_resize

HEADS = ["softmax", "mean"]

STATE = {
    "softmax": [
        "roi.head.log_scale",
        "roi.head.score.0.weight",
        "roi.head.score.1.weight",
        "roi.head.score.1.bias",
        "roi.head.score.1.running_mean",
        "roi.head.score.1.running_var",
        "roi.head.score.1.num_batches_tracked",
        "roi.head.score.3.weight",
        "roi.head.score.4.weight",
        "roi.head.score.4.bias",
        "roi.head.score.4.running_mean",
        "roi.head.score.4.running_var",
        "roi.head.score.4.num_batches_tracked",
        "roi.head.score.6.weight",
    ],
    "mean": ["roi.head.conv1.weight", "roi.head.conv1.bias", "roi.head.conv2.weight", "roi.head.conv2.bias"],
}
COMMON = ["cbam.channel.fc1.weight", "cbam.channel.fc2.weight", "cbam.spatial.conv.weight", "ls.gamma"]


def make(roi_head="softmax", **kwargs):
    """A block in eval mode whose parameters all have values that matter."""
    torch.manual_seed(0)
    block = MXABlock(16, reduction=4, roi_head=roi_head, **kwargs)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return block.eval()


def example(batch=2, size=(7, 9), **kwargs):
    return torch.randn(batch, 16, *size, generator=torch.Generator().manual_seed(1)).to(**kwargs)


@pytest.mark.parametrize("roi_head", HEADS)
@pytest.mark.parametrize("size", [(7, 9), (1, 1), (2, 14)])
def test_equals_its_parts_by_hand(roi_head, size):
    block, x = make(roi_head), example(size=size)
    expected = block.ls.gamma[:, None, None] * block.cbam(block.roi(x))
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape == x.shape


class TestFinerMap:
    def test_the_box_of_x_is_cut_from_it(self):
        block, x, source = make(source_dim=6), example(), torch.randn(2, 6, 28, 36)
        crop = block.project(roi_resize(source, block.roi.head(x), (7, 9)))
        torch.testing.assert_close(block(x, source), block.ls.gamma[:, None, None] * block.cbam(crop))

    @pytest.mark.parametrize("source_size", [(28, 36), (7, 9), (3, 5)])
    def test_every_parameter_gets_a_gradient(self, source_size):
        block, x = make(source_dim=6).train(), example()
        source = torch.randn(2, 6, *source_size, requires_grad=True)
        (block(x, source) * torch.randn_like(x)).sum().backward()
        assert [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()] == []
        assert source.grad.any()

    def test_tokens(self):
        torch.manual_seed(0)
        block = make(source_dim=6)
        tokens = make(source_dim=6, input_fmt="NLC", grid_size=(7, 9), num_prefix_tokens=1)
        tokens.load_state_dict(block.state_dict())
        x, source = example(), torch.randn(2, 6, 28, 36)
        rows = torch.cat([torch.randn(2, 1, 16), x.flatten(2).transpose(1, 2)], dim=1)
        torch.testing.assert_close(tokens(rows, source)[:, 1:], block(x, source).flatten(2).transpose(1, 2))

    def test_it_scripts_exports_and_compiles(self):
        block, x, source = make(source_dim=6), example(), torch.randn(2, 6, 28, 36)
        expected = block(x, source)
        torch.testing.assert_close(torch.jit.script(block)(x, source), expected)
        torch.testing.assert_close(torch.export.export(block, (x, source)).module()(x, source), expected)
        torch.testing.assert_close(torch.jit.script(make())(x), make()(x))

    def test_one_too_few_or_too_many(self):
        with pytest.raises(ValueError, match="takes a finer map beside x"):
            make(source_dim=6)(example())
        with pytest.raises(ValueError, match="give source_dim"):
            make()(example(), torch.randn(2, 6, 28, 36))


def test_gate_starts_at_one():
    block, x = MXABlock(16).eval(), example()
    assert torch.equal(block(x), block.cbam(block.roi(x)))


@pytest.mark.parametrize("roi_head", HEADS)
@pytest.mark.parametrize("mode", [True, False])
def test_closed_gate_gives_exactly_zero_and_can_open(roi_head, mode):
    block = make(roi_head).train(mode)
    torch.nn.init.zeros_(block.ls.gamma)
    assert block(1e3 * example()).count_nonzero() == 0
    block(example()).sum().backward()
    assert block.ls.gamma.grad.abs().min() > 0


@pytest.mark.parametrize("roi_head", HEADS)
def test_every_parameter_gets_a_gradient(roi_head):
    block, x = make(roi_head).train(), example()
    (block(x) * torch.randn_like(x)).sum().backward()
    for name, p in block.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def outcome(**kwargs):
    torch.manual_seed(0)
    block = MXABlock(16, **kwargs).eval()
    shapes = {name: (p.shape, p.dtype, p.device) for name, p in block.state_dict().items()}
    return shapes, block(example(device=kwargs.get("device"), dtype=kwargs.get("dtype")))


def test_every_argument_matters():
    shapes, out = outcome()
    for name, value in {
        "reduction": 4,
        "kernel_size": 3,
        "roi_head": "mean",
        "device": "meta",
        "dtype": torch.float64,
    }.items():
        assert outcome(**{name: value})[0] != shapes, name
    for name, value in {"min_size": 0.9, "init_values": 0.5}.items():
        assert (outcome(**{name: value})[1] - out).abs().max() > 1e-3, name
    assert torch.equal(outcome()[1], out)
    assert [
        p.shape[-1] for n, p in MXABlock(16, kernel_size=5).named_parameters() if n == "cbam.spatial.conv.weight"
    ] == [5]


@pytest.mark.parametrize(("roi_head", "kind"), [("softmax", ROIHead), ("mean", MeanROIHead)])
def test_arguments_reach_their_layer(roi_head, kind):
    block = MXABlock(32, reduction=8, kernel_size=5, roi_head=roi_head, min_size=0.3, init_values=0.25)
    assert type(block.roi.head) is kind
    assert block.roi.head.min_size == 0.3
    assert block.cbam.channel.fc1.weight.shape == (4, 32, 1, 1)
    assert block.cbam.spatial.conv.kernel_size == (5, 5)
    assert block.ls.gamma.tolist() == [0.25] * 32


@pytest.mark.parametrize(("kwargs", "message"), [({"roi_head": "max"}, "roi_head"), ({"kernel_size": 4}, "odd")])
def test_bad_arguments_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MXABlock(16, **kwargs)


@pytest.mark.parametrize("roi_head", HEADS)
def test_device_reaches_every_layer(roi_head):
    block = MXABlock(16, roi_head=roi_head, device="meta")
    assert {t.device.type for t in block.state_dict().values()} == {"meta"}
    out = block(torch.empty(2, 16, 5, 6, device="meta"))
    assert out.device.type == "meta"
    assert out.shape == (2, 16, 5, 6)


@pytest.mark.parametrize("roi_head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_reaches_every_layer(roi_head, dtype):
    block = MXABlock(16, roi_head=roi_head, dtype=dtype)
    assert {t.dtype for t in block.state_dict().values() if t.is_floating_point()} == {dtype}
    reference = MXABlock(16, roi_head=roi_head).eval()
    reference.load_state_dict(block.state_dict())
    out = block.eval()(example(dtype=dtype))
    assert out.dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(out.float(), reference(example()), atol=tolerance, rtol=0)


@pytest.mark.parametrize("roi_head", HEADS)
def test_state_dict_keys(roi_head):
    assert sorted(MXABlock(16, roi_head=roi_head).state_dict()) == sorted(STATE[roi_head] + COMMON)


def snapshot(block):
    """Every attribute of every submodule."""
    return {
        name: {key: copy.copy(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in block.named_modules()
    }


@pytest.mark.parametrize("roi_head", HEADS)
def test_forward_keeps_no_state(roi_head):
    block = make(roi_head)
    attributes, tensors = snapshot(block), copy.deepcopy(block.state_dict())
    first = block(example())
    block(example(batch=3, size=(4, 4))).sum().backward()
    assert snapshot(block) == attributes
    torch.testing.assert_close(dict(block.state_dict()), dict(tensors), atol=0, rtol=0)
    assert torch.equal(block(example()), first)
    block.train()
    attributes = snapshot(block)
    block(example())
    assert snapshot(block) == attributes


@pytest.mark.parametrize("roi_head", HEADS)
def test_eval_backward_twice_and_batch_independence(roi_head):
    block, x = make(roi_head), example(batch=4)
    for _ in range(2):
        block(x).sum().backward()
    torch.testing.assert_close(block(x)[2:3], block(x[2:3]))


@pytest.mark.parametrize("roi_head", HEADS)
def test_script_agrees_with_eager(roi_head):
    block = make(roi_head)
    scripted = torch.jit.script(block)
    for x in (example(), example(batch=1, size=(5, 5))):
        torch.testing.assert_close(scripted(x), block(x))


@pytest.mark.parametrize("roi_head", HEADS)
def test_export_agrees_with_eager(roi_head):
    block = make(roi_head)
    dynamic = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}}
    exported = torch.export.export(block, (example(),), dynamic_shapes=dynamic).module()
    for x in (example(), example(batch=5, size=(12, 10))):
        torch.testing.assert_close(exported(x), block(x))


@pytest.mark.parametrize("roi_head", HEADS)
def test_compile_agrees_with_eager(roi_head):
    block, compiled_block = make(roi_head).train(), make(roi_head).train()
    compiled = torch.compile(compiled_block, fullgraph=True, backend="aot_eager")
    x = example()
    torch.testing.assert_close(compiled(x), block(x))
    block(x).square().sum().backward()
    compiled(x).square().sum().backward()
    for (name, p), q in zip(block.named_parameters(), compiled_block.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("roi_head", HEADS)
def test_autocast(roi_head):
    block, x = make(roi_head), example()
    with torch.autocast("cpu", torch.bfloat16):
        out, boxes = block(x), block.roi.head(x)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, block.roi.head(x), atol=2e-2, rtol=0)
    torch.testing.assert_close(out.float(), block(x), atol=1e-1, rtol=1e-1)
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("roi_head", HEADS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same(roi_head, clone):
    block = make(roi_head)
    block(example())
    twin = clone(block)
    assert torch.equal(twin(example()), block(example()))
    with torch.no_grad():
        twin.ls.gamma.zero_()
    assert block(example()).abs().max() > 0
