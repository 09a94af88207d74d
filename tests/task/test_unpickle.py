"""TorchXRayVision's files in both of torch's formats, and hostile ones, whose code may not run."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import tarfile
import warnings

import pytest
import torch
from torch import nn
from torch.nn.backends import thnn

from mxa.task import unpickle
from mxa.task.unpickle import PickledModule, read_content, tensors
from mxa.utils.errors import InputError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture(scope="module")
def xrv():
    with warnings.catch_warnings():
        import torchxrayvision.models as models
    return models


def saved(content, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def small(xrv) -> nn.Module:
    return xrv.DenseNet(growth_rate=4, block_config=(1, 2), num_init_features=8, bn_size=2)


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def legacy_pickle(body: bytes) -> bytes:
    """A legacy file whose object is ``body``, an opcode stream of protocol 2 without its head and end."""
    header = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
    return b"".join(pickle.dumps(part, 2) for part in header) + b"\x80\x02" + body + b"." + pickle.dumps([], 2)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@FORMATS
def test_state_is_the_modules(xrv, zipped):
    model = small(xrv)
    content = read_content(saved(model, zipped), "f.pt")
    assert isinstance(content, PickledModule)
    assert content.attributes["apply_sigmoid"] is False
    state, expected = tensors(content, "f.pt"), model.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)
        assert not state[key].requires_grad


@FORMATS
def test_state_dict(xrv, zipped):
    expected = small(xrv).state_dict()
    state = tensors(read_content(saved(expected, zipped), "f.pt"), "f.pt")
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert len(state) == len(expected)


def test_legacy_needs_this(xrv):
    """Were weights_only able to open a legacy module whose classes are all allowed, this module could go."""
    allowed = [getattr(xrv, name) for name in unpickle._MODULES["torchxrayvision.models"]]
    allowed += [nn.ReLU, nn.BatchNorm2d, nn.Sequential, nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.MaxPool2d, set]
    with torch.serialization.safe_globals(allowed):
        assert isinstance(torch.load(io.BytesIO(saved(small(xrv))), weights_only=True), xrv.DenseNet)
        with pytest.raises(pickle.UnpicklingError, match="Only persistent_load of storage is allowed"):
            torch.load(io.BytesIO(saved(small(xrv), zipped=False)), weights_only=True)


def test_oldest_modules(xrv):
    """Before torch 1.2 modules held their backend; before 1.6 not the set of non-persistent buffers."""
    model = small(xrv)
    keys = set(model.state_dict())
    for module in model.modules():
        del module.__dict__["_non_persistent_buffers_set"]
        module._backend = Calls(thnn._get_thnn_function_backend)
    assert set(tensors(read_content(saved(model, False), "f.pt"), "f.pt")) == keys


@FORMATS
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("posix.system", lambda marker: Calls(os.system, f"touch {marker}")),
        ("builtins?__?.eval", lambda marker: Calls(eval, f"open({str(marker)!r}, 'w')")),
        ("io.open", lambda marker: Calls(open, str(marker), "w")),
        ("torch.serialization.load", lambda marker: Calls(torch.load, str(marker), None, None)),
        ("torch.hub.load", lambda marker: Calls(torch.hub.load, str(marker.parent), "entry")),
        ("torch._utils._import_dotted_name", lambda marker: Calls(torch._utils._import_dotted_name, "os.system")),
        ("torch.jit._serialization.load", lambda marker: Calls(torch.jit.load, str(marker))),
        ("torch.nn.modules.activation.GELU", lambda marker: nn.GELU()),
        ("builtins?__?.getattr", lambda marker: Calls(getattr, "", "join")),
        ("torchxrayvision.models.get_weights", lambda marker: Calls(_xrv_function("get_weights"), "chex")),
    ],
)
def test_refused_by_name(tmp_path, zipped, name, make):
    data = saved({"state": make(tmp_path / "ran")}, zipped)
    pattern = rf"f\.pt is not loaded: it refers to (__)?{name}, which"
    with pytest.raises(InputError, match=pattern):
        read_content(data, "f.pt")
    assert not list(tmp_path.iterdir())


def _xrv_function(name):
    with warnings.catch_warnings():
        import torchxrayvision.models as models
    return getattr(models, name)


def test_dotted_names_do_not_reach_further():
    """Protocol 4 looks up attributes of what a module holds."""
    body = b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93."
    head = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
    with pytest.raises(InputError, match=r"collections\.OrderedDict\.__init__"):
        read_content(b"".join(pickle.dumps(part, 2) for part in head) + body, "f.pt")


def test_names_in_the_header(tmp_path):
    """A legacy file is several pickles, the first of them read before its magic number is known."""
    data = pickle.dumps(Calls(os.system, f"touch {tmp_path / 'ran'}"), 2)
    with pytest.raises(InputError, match=r"system"):
        read_content(data, "f.pt")
    assert not (tmp_path / "ran").exists()


def test_network_is_not_constructed(xrv, tmp_path):
    """``DenseNet(weights=, cache_dir=)`` unpickles another file without limits: the name is allowed, the call not."""
    url = xrv.model_urls["chex"]["weights_url"]
    (tmp_path / url.rpartition("/")[2]).write_bytes(saved(Calls(os.system, f"touch {tmp_path / 'ran'}")))
    arguments = (32, (6, 12, 24, 16), 64, 4, 0, 18, 1, "chex", str(tmp_path))
    for zipped in (True, False):
        with pytest.raises(InputError):
            read_content(saved(Calls(xrv.DenseNet, *arguments), zipped), "f.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["ctorch._utils\n_rebuild_tensor_v2\n", "ccollections\nOrderedDict\n", "ctorch.nn.modules.conv\nConv2d\n"]
)
@pytest.mark.parametrize("slots", [True, False])
def test_attributes_of_what_is_shared(name, slots):
    """A file cannot change a function or class for those who use it after."""
    before = vars(PickledModule).copy(), torch._utils._rebuild_tensor_v2.__defaults__
    state = b"}" + text("dump_patches") + b"\x88s"  # {"dump_patches": True}
    state = b"N" + state + b"\x86" if slots else state  # (None, {...}): set by setattr
    with pytest.raises(InputError):
        read_content(legacy_pickle(name.encode() + state + b"b"), "f.pt")
    assert before == (vars(PickledModule).copy(), torch._utils._rebuild_tensor_v2.__defaults__)


def test_no_patch_is_written(tmp_path, monkeypatch):
    """The legacy format has the source of classes; torch writes a patch to it where a class says so."""
    monkeypatch.chdir(tmp_path)
    state = b"}" + text("dump_patches") + b"\x88s" + text("__name__") + text("evil") + b"s"
    module = b"ctorch.nn.modules.conv\nConv2d\n)\x81" + state + b"b"
    for kind in (module, b"ctorch.nn.modules.conv\nConv2d\n", b"ctorch._utils\n_rebuild_tensor_v2\n"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with contextlib.suppress(InputError):
                read_content(legacy_pickle(b"(" + text("module") + kind + text("a.py") + text("x = 1") + b"tQ"), "f")
    assert not list(tmp_path.iterdir())


def test_torchscript_is_refused():
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), file)
    with pytest.raises(InputError, match="TorchScript"):
        read_content(file.getvalue(), "f.pt")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x03\x04" + b"0" * 100, b"text", b"\x80\x02."])
def test_no_such_file(data):
    with pytest.raises(InputError, match=r"f\.pt"):
        read_content(data, "f.pt")


@FORMATS
def test_damaged(xrv, zipped):
    data = saved(small(xrv).state_dict(), zipped)
    with pytest.raises(InputError, match=r"f\.pt"):
        read_content(data[: len(data) // 2], "f.pt")


def test_tar_format_is_refused(tmp_path):
    """Torch's oldest format extracts files, links among them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"f\.pt"):
        read_content(file.getvalue(), "f.pt")


@pytest.mark.parametrize("content", [3, [1, 2], {}, {"a": 1}, {1: torch.zeros(1)}, {"epoch": 3, "model": {}}])
def test_neither_module_nor_state(content):
    with pytest.raises(InputError, match="neither"):
        tensors(read_content(saved(content), "f.pt"), "f.pt")


def made(modules=None, parameters=None) -> PickledModule:
    module = PickledModule()
    module.__setstate__({"_modules": modules or {}, "_parameters": parameters or {}, "_buffers": {}})
    return module


def test_modules_without_end():
    loop = made({})
    loop.attributes["_modules"]["again"] = loop
    wide = made(parameters={"weight": torch.zeros(1)})
    for _ in range(40):  # 2 ** 40 names
        wide = made({"left": wide, "right": wide})
    for module in (loop, wide):
        with pytest.raises(InputError, match="more than"):
            tensors(module, "f.pt")


def test_incomplete_module():
    for state in ({}, {"_modules": 3, "_parameters": {}, "_buffers": {}}):
        module = PickledModule()
        module.__setstate__(state)
        with pytest.raises(InputError, match="neither"):
            tensors(module, "f.pt")


def test_allowed_names_are_those_of_the_files(xrv):
    """No name is allowed that the network's files do not hold, but the one of older torch."""
    held = set()

    class Listing(pickle.Unpickler):
        def find_class(self, module, name):
            held.add((module, name))
            return unpickle._ALLOWED[module, name]

    module = type(sys)("listing")
    module.Unpickler, module.load = Listing, lambda file, **kwargs: Listing(file, **kwargs).load()
    torch.load(io.BytesIO(saved(xrv.DenseNet())), pickle_module=module, weights_only=False)
    older = {("torch.nn.backends.thnn", "_get_thnn_function_backend"), ("builtins", "set")}
    assert set(unpickle._ALLOWED) == held | older
    assert isinstance(unpickle._ALLOWED["collections", "OrderedDict"], type(collections.OrderedDict))
