"""What ``import mxa`` does to a process, and the names it promises."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_origin

import pytest

SCRIPT = """
import json, logging, os, random, socket, sys, warnings

def refuse(*args, **kwargs):
    raise AssertionError("network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import timm, timm.data, timm.models, numpy, torch
warnings.simplefilter("error")

def state():
    return [
        [str(f) for f in warnings.filters], dict(os.environ), sys.path, str(torch.get_default_dtype()),
        torch.get_num_threads(), torch.initial_seed(), torch.is_grad_enabled(), str(random.getstate()),
        str(numpy.random.get_state()), [str(h) for h in logging.getLogger().handlers], logging.getLogger().level,
        torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
    ]

modules, before = set(sys.modules), state()
import mxa
after = state()
registered = len(timm.list_models(module="efficientvit_ml"))
with open(sys.argv[1], "w") as file:
    json.dump({"before": before, "after": after, "new": sorted(set(sys.modules) - modules), "all": sorted(sys.modules),
               "registered": registered}, file)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    path = tmp_path_factory.mktemp("import") / "result.json"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done, json.loads(path.read_text())


def test_prints_nothing_and_touches_no_network(imported):
    assert imported[0].stdout == imported[0].stderr == ""


def test_registers_the_models(imported):
    assert imported[1]["registered"] == 12


@pytest.mark.parametrize(
    "code",
    [
        "import mxa, timm",
        "import timm, mxa",
        "import mxa; from timm import list_models; import timm",
        "import mxa; import timm.models; import timm",
        "import mxa, importlib; timm = importlib.import_module('timm')",
        "from mxa.layers import CBAM; import timm",
        "import mxa.layers.cbam, timm",
        "import mxa.models.load, timm",
        "import mxa.data.dataset, timm",
        "import mxa.explain, timm",
        "import mxa.train, timm",
    ],
)
def test_the_models_are_registered_in_whichever_order(code):
    left = "[f for f in sys.meta_path if type(f).__module__ == 'mxa.utils.lazy']"
    code += f"; import sys; assert len(timm.list_models('efficientvit_ml*')) == 12; assert not {left}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_needs_no_torch_loads_none():
    code = (
        "import sys, mxa, mxa.data.image_io, mxa.deployment.predictor, mxa.deployment.runtimes, mxa.cli; "
        "print([m for m in ('torch', 'timm', 'pandas', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_missing_timm_is_the_usual_error():
    code = "import mxa, sys; sys.path = []\ntry:\n    import timm\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "No module named 'timm'" in done.stdout, done.stdout + done.stderr


def test_changes_no_global_state(imported):
    assert imported[1]["after"] == imported[1]["before"]


def test_brings_nothing_that_timm_does_not(imported):
    new = {name.partition(".")[0] for name in imported[1]["new"]}
    assert "mxa" in new
    allowed = {"mxa", "timm", "torch", "torchvision", "safetensors", "huggingface_hub", "numpy"}
    assert new - allowed <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "module",
    [
        "torchxrayvision",
        "pandas",
        "matplotlib",
        "pydicom",
        "jsonargparse",
        "rich",
        "sklearn",
        "skimage",
        "scipy",
        "onnx",
    ],
)
def test_leaves_out(imported, module):
    assert module not in imported[1]["all"]


PUBLIC = {
    "mxa": [
        "InputError",
        "__version__",
        "deploy",
        "label_names",
        "load_exported",
        "load_labels",
        "labels",
        "layers",
        "models",
        "predict",
        "set_label_names",
    ],
    "mxa.labels": [
        "CHEXPERT",
        "LABEL_SPACES",
        "MERGES",
        "NIH",
        "PADCHEST",
        "VINDR",
        "XRV",
        "align",
        "apply_policies",
        "canonical",
        "check_known",
        "merge",
        "resolve_labels",
        "label_names",
    ],
    "mxa.data": [
        "CXRDataset",
        "DataConfig",
        "Collection",
        "Records",
        "COLLECTIONS",
        "check_radiograph",
        "create_dataset",
        "create_transform",
        "data_config",
        "from_xrv",
        "make_loader",
        "read_image",
        "to_gray",
    ],
    "mxa.layers": [
        "CBAM",
        "CBAM3d",
        "ChannelAttention",
        "KDAdapter",
        "MXABlock",
        "MXABlock3d",
        "MeanROIHead",
        "ROIHead",
        "ROIHead3d",
        "ROIPool",
        "ROIPool3d",
        "SpatialAttention",
        "graft",
        "roi_resize",
        "roi_resize3d",
        "ungraft",
        "FindingHead",
        "FindingOutput",
        "attach_finding_head",
        "detach_finding_head",
    ],
    "mxa.deployment": [
        "ModelInfo",
        "Predictor",
        "XrvModel",
        "deploy",
        "load_exported",
        "open_predictor",
        "predict",
    ],
    "mxa.models": [
        "EfficientVitMl",
        "add_finding_head",
        "label_names",
        "load_labels",
        "save_pretrained",
        "set_label_names",
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    """Removing a name breaks someone: add it here when it is new, and think twice before taking it away."""
    names = importlib.import_module(module).__all__
    assert sorted(names) == sorted(PUBLIC[module])
    assert all(hasattr(importlib.import_module(module), name) for name in names)


@pytest.mark.parametrize("module", ["mxa", "mxa.data", "mxa.deployment"])
def test_a_type_checker_sees_the_names_that_are_imported_late(module):
    package = importlib.import_module(module)
    (block,) = (node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If))
    typed = {alias.asname: node.module or alias.name for node in block.body for alias in node.names}
    assert typed == package._NAMES


@pytest.mark.parametrize("module", [*PUBLIC, "mxa.deployment", "mxa.explain", "mxa.metrics", "mxa.task"])
def test_every_argument_and_result_has_its_type(module):
    public = importlib.import_module(module)
    functions = {name: getattr(public, name) for name in public.__all__ if callable(getattr(public, name))}
    lacking = []
    for name, function in functions.items():
        alias = get_origin(function) is not None  # such as Collection
        if alias or (inspect.isclass(function) and issubclass(function, Exception)):
            continue
        signature = inspect.signature(function)
        known = [p.annotation for n, p in signature.parameters.items() if n != "self"]
        known += [] if inspect.isclass(function) else [signature.return_annotation]
        lacking += [name] if inspect.Signature.empty in known else []
    assert lacking == []


@pytest.mark.parametrize(
    "name",
    ["compare_models", "demo", "distil_own_teacher", "finetune_csv", "graft_vit", "nih_sample_folds", "two_processes"],
)
def test_examples_import_names_that_exist(name):
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / f"{name}.py"))
