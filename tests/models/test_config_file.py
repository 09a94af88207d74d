"""A config.json that came with weights: it describes them and loads nothing else, for every architecture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._pretrained import PretrainedCfg

import mxa
from mxa.models import save_pretrained
from mxa.models.config_file import check_config
from mxa.models.load import create, init_weights, load_model
from mxa.task.teacher import Teacher
from mxa.utils.errors import InputError
from mxa.utils.files import digest

from ..conftest import HUB_NAME, HUB_REPO
from ..contracts import holds, images
from .folders import ABC, KINDS, OURS, at, build, sources


def without(path: str):
    def change(config):
        *parents, last = path.split("/")
        for parent in parents:
            config = config[parent]
        config.pop(last)

    return change


def refuse(path, hub, kind, match=None):
    """No way loads it; through mxa the error is one line that names the file."""
    for name in sources(path, hub):
        with pytest.raises(InputError, match=match) as error:
            load_model(name)
        assert "\n" not in str(error.value) and "config.json" in str(error.value)
    if kind in OURS:
        for name in (f"local-dir:{path}", "hf-hub:lab/received"):
            with pytest.raises((RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError)):
                timm.create_model(name, pretrained=True)


def of_every_kind(changes: dict, everywhere: Sequence[str]) -> list:
    """Every change of one kind, some changes of every kind: the same lines check them."""
    return [
        pytest.param(kind, change, id=f"{kind}-{name}")
        for kind in KINDS
        for name, change in changes.items()
        if kind == KINDS[0] or name in everywhere
    ]


OUT_OF_RANGE = {
    "mean": at("pretrained_cfg/mean", [1e6] * 3),
    "small std": at("pretrained_cfg/std", [1e-20] * 3),
    "large std": at("pretrained_cfg/std", [1e30] * 3),
    "no float": at("pretrained_cfg/mean", [10**400] * 3),
    "crop_pct": at("pretrained_cfg/crop_pct", 1e-9),
    "an empty name": at("label_names", ["", *ABC[1:]]),
    "no text": at("label_names", ["\ud800", *ABC[1:]]),
    "drop_rate": at("model_args/drop_rate", 10),
}


@pytest.mark.parametrize(("kind", "change"), of_every_kind(OUT_OF_RANGE, ("mean", "no text", "drop_rate")))
def test_values_that_no_model_has(kind, change, folder, hub):
    refuse(folder(kind, change), hub, kind)


OUTPUTS = {
    "four at the root": at("num_classes", 4),
    "two at the root": at("num_classes", 2),
    "none at the root": at("num_classes", 0),
    "four for timm": lambda c: c.pop("num_classes") and c["pretrained_cfg"].update(num_classes=4),
    "four as an argument": at("model_args/num_classes", 4),
    "four at two places": lambda c: c.update(num_classes=4) or c["pretrained_cfg"].update(num_classes=4),
    "text": at("num_classes", "3"),
    "a fraction": at("num_classes", 3.0),
    "negative": at("num_classes", -1),
    "negative everywhere": lambda c: (
        [part.update(num_classes=-1) for part in (c, c["model_args"], c["pretrained_cfg"])] and None
    ),
    "huge": at("num_classes", 10**12),
    "true": at("num_classes", True),
    "a list": at("num_classes", [3]),
    "null at the root": at("num_classes", None),
    "nowhere but as an argument": lambda c: c.pop("num_classes") and c["pretrained_cfg"].pop("num_classes") and None,
    "null as an argument": at("model_args/num_classes", None),
    "four names": at("label_names", [*ABC, "Nodule"]),
    "two names": at("label_names", list(ABC[:2])),
    "one name twice": at("label_names", ["Edema", "Mass", "Edema"]),
    "one meaning twice": at("label_names", ["Effusion", "Mass", "Pleural Effusion"]),
    "names in another order for timm": at("pretrained_cfg/label_names", list(ABC[::-1])),
    "names as an argument": at("model_args/label_names", ["a", "b"]),
    "names as text": at("label_names", "abc"),
    "names as an object": at("label_names", {"0": "a", "1": "b", "2": "c"}),
    "a name that is a number": at("label_names", [*ABC[:2], 3]),
}


EVERYWHERE = ("four at the root", "four for timm", "four as an argument", "nowhere but as an argument", "four names")


@pytest.mark.parametrize(("kind", "change"), of_every_kind(OUTPUTS, (*EVERYWHERE, "names as an argument")))
def test_outputs_names_and_weights_agree(kind, change, folder, hub):
    refuse(folder(kind, change), hub, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [2, 4, None])
def test_the_rows_of_the_weights_are_as_many(kind, rows, folder, hub):
    path = folder(kind)
    cfg = json.loads((path / "config.json").read_text())["pretrained_cfg"]
    state = load_file(path / "model.safetensors")
    head = [key for key in state if key.startswith(f"{cfg['classifier']}.")]
    assert head
    for key in head:
        state[key] = state[key].new_ones(rows or 0, *state[key].shape[1:])
        if rows is None:
            del state[key]
    save_file(state, path / "model.safetensors")
    for name in sources(path, hub):
        with pytest.raises(InputError):
            load_model(name)
    if kind in OURS:
        with pytest.raises(RuntimeError):
            timm.create_model(f"local-dir:{path}", pretrained=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_earlier_versions_of_timm_left_counts_for_nothing(kind, folder):
    """They wrote the number of the original's outputs into ``pretrained_cfg``, and the right one at the root."""
    path = folder(kind, at("pretrained_cfg/num_classes", 1000))
    model, held = load_model(path), load_file(path / "model.safetensors")
    assert model.num_classes == len(ABC) and mxa.label_names(model) == ABC
    assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items() if key in held)


def test_a_network_that_timm_fills_in_part_is_refused(folder, tmp_path):
    """timm's loader is not strict for every architecture; a head that is missing would be random."""
    model = build("dla46_c")
    save_pretrained(model, tmp_path / "dla")
    load_model(tmp_path / "dla")
    state = load_file(tmp_path / "dla" / "model.safetensors")
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "dla" / "model.safetensors")
    with pytest.raises(InputError, match=r"missing: fc\.weight"):
        load_model(tmp_path / "dla")


@pytest.mark.parametrize("kind", KINDS)
def test_another_head_is_still_possible(kind, folder, hub):
    path = folder(kind)
    before = load_model(path)
    for name in (*sources(path, hub)[1:], f"local-dir:{path}"):
        model = create(name, pretrained=True, num_classes=5)
        assert model.num_classes == 5 and mxa.label_names(model) is None
        head = model.pretrained_cfg["classifier"]
        assert holds(model, {k: v for k, v in before.state_dict().items() if not k.startswith(f"{head}.")})
        assert "state_dict" not in model.pretrained_cfg
    target = build(kind, ("Mass", "Nodule"))
    assert init_weights(target, str(path))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_every_way(kind, folder, hub):
    path = folder(kind, lambda c: c.update(extra={"any": ["thing"]}, sha256=None, problem_type="multi_label"))
    state = load_file(path / "model.safetensors")
    for name in sources(path, hub):
        model = load_model(name)
        assert holds(model, state) and mxa.label_names(model) == ABC
        assert model.pretrained_cfg["source"] == ("hf-hub" if "hub" in name.partition(":")[0] else "local-dir")
    unnamed = folder_without_names(path)
    assert mxa.label_names(load_model(unnamed)) is None
    if kind == "test_resnet":
        assert len(create(f"local-dir:{path}", pretrained=True, features_only=True)(images(size=(64, 64)))) == 5


def folder_without_names(path):
    config = json.loads((path / "config.json").read_text())
    config.pop("label_names")
    config["pretrained_cfg"].pop("label_names", None)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_copy_of_an_organisation(trained, tmp_path, hub, monkeypatch):
    path = shutil.copytree(trained, tmp_path / "copy")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_classes": 15}))
    hub.push(HUB_REPO, path)
    monkeypatch.setenv("MXA_HUB_ORG", "lab")
    with pytest.raises(RuntimeError, match="different numbers of outputs"):
        timm.create_model(HUB_NAME, pretrained=True)


def test_a_teacher(folder):
    cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 160, 160)}
    with pytest.raises(InputError, match="different numbers of outputs"):
        Teacher(folder("test_resnet", at("num_classes", 4)), ABC, cfg)


def test_a_file_beside_its_configuration(folder):
    path = folder("efficientvit_ml_m0", at("num_classes", 4))
    overlay = {"file": str(path / "model.safetensors")}
    with pytest.raises(RuntimeError, match="different numbers of outputs"):
        timm.create_model("efficientvit_ml_m0", pretrained=True, pretrained_cfg_overlay=overlay)


ARGUMENTS = {
    "checkpoint_path": "other.pt",
    "pretrained_cfg": {"file": "other.pt"},
    "pretrained_cfg_overlay": {"file": "other.pt"},
    "pretrained_model_args": {},
    "pretrained_strict": False,
    "pretrained_filter_fn": "x",
    "pretrained": False,
    "cache_dir": ".",
    "features_only": True,
    "pruned": True,
    "model_name": "x",
    "url": "https://example.org/w.pth",
    "file": "other.pt",
    "state_dict": {},
    "scriptable": True,
}


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        *((name, "model_args") for name in ARGUMENTS),
        *(("checkpoint_path", f"model_args/{depth}") for depth in ("deeper/still", "grafted")),
    ],
)
def test_an_argument_that_timm_keeps_for_itself_is_refused(name, depth, saved):
    config = json.loads((saved / "graft" / "config.json").read_text())
    at(f"{depth}/{name}", ARGUMENTS[name])(config)
    with pytest.raises(InputError, match=f"{name} in model_args"):
        check_config(config, "config.json")


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_are_not_loaded_instead(kind, folder, hub, tmp_path):
    other = build(kind)
    torch.save({k: v + 1 for k, v in other.state_dict().items()}, tmp_path / "other.pt")
    path = folder(kind, at("model_args/checkpoint_path", str(tmp_path / "other.pt")))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "sha256": digest(path / "model.safetensors")}))
    refuse(path, hub, kind, "checkpoint_path in model_args")


SOURCES = {
    "url": "https://example.org/w.pth",
    "file": "other.safetensors",
    "state_dict": {"a": 1},
    "hf_hub_id": "lab/other",
    "hf_hub_filename": "other.safetensors",
    "source": "url",
    "custom_load": True,
}


@pytest.mark.parametrize(("kind", "field"), of_every_kind({name: name for name in SOURCES}, ("file", "custom_load")))
def test_a_field_that_names_other_weights_is_refused(kind, field, folder, hub):
    path = folder(kind, at(f"pretrained_cfg/{field}", SOURCES[field]))
    refuse(path, hub, kind, f"{field} would load something else")


def test_depth_is_no_way_around(saved):
    config = json.loads((saved / "graft" / "config.json").read_text())
    deep = {"checkpoint_path": "other.pt"}
    for _ in range(20_000):
        deep = [{"a": deep}]
    config["model_args"]["a"] = deep
    with pytest.raises(InputError, match="checkpoint_path in model_args"):
        check_config(config, "config.json")


def test_every_field_of_timms_is_known():
    """A field that a later timm adds is looked at before it is let through."""
    from mxa.models import config_file

    names = set(PretrainedCfg.__dataclass_fields__)
    assert names == set(config_file._FIELDS) | set(config_file._SOURCES)


@pytest.mark.parametrize("base", ["local-dir:/x", "hf-hub:lab/x", "mxa_grafted", "nothing", "", None, ["a"]])
def test_the_base_of_a_graft_is_a_timm_model(base, folder, hub):
    refuse(folder("graft", at("model_args/base", base)), hub, "graft", "base must be the name of a timm model")


SHAPES = {
    "architecture": [None, 3, "nothing", "mxa_grafted", "local-dir:x", ["test_resnet"], "efficientvit_ml_m1"],
    "model_args": [None, []],
    "pretrained_cfg": [None, "x"],
    "pretrained_cfg/input_size": ["3,64,64", [3, 64], [0, 64, 64], [3, 1e9, 1e9], [3, "a", 64], 224],
    "pretrained_cfg/mean": [[0.5, 0.5], "x", 0.5, ["a", "b", "c"], {"a": 1}],
    "pretrained_cfg/std": [[0, 0.5, 0.5], [-1, 1, 1], []],
    "pretrained_cfg/interpolation": ["bicubicc", 3, ["bicubic"]],
    "pretrained_cfg/crop_pct": [0, -1, 2, "1", [1]],
    "pretrained_cfg/crop_mode": ["other", []],
    "pretrained_cfg/fixed_input_size": ["yes", 1],
    "pretrained_cfg/first_conv": [3, [1]],
    "pretrained_cfg/classifier": [3, {"a": 1}],
    "pretrained_cfg/pool_size": ["7", [0, 0], [1, 2, 3]],
    "pretrained_cfg/label_offset": [-1, "1"],
    "pretrained_cfg/architecture": ["efficientvit_ml_m5", 3],
    "pretrained_cfg/unheard_of": [1],
    "model_args/img_size": [10**9, 1e9, 0, "64", [64, 64, 64], []],
    "model_args/in_chans": [0, -1, "3", 10**6, [3]],
    "model_args/depth": [10**9, -(10**9)],
    "model_args/no_such_argument": [1],
    "sha256": ["", 3, ["0"], "g" * 64],
}
VALUES = {f"{path} {value!r}"[:60]: (path, value) for path, values in SHAPES.items() for value in values}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        pytest.param(kind, path, value, id=f"{kind}-{name}")
        for name, (path, value) in VALUES.items()
        for kind in ("efficientvit_ml_m0", "test_resnet")
        if kind == "test_resnet" or path.startswith("model_args/") or value is SHAPES[path][0]
    ],
)
def test_values_of_another_kind(kind, path, value, folder):
    with pytest.raises(InputError) as error:
        load_model(folder(kind, at(path, value)))
    assert "\n" not in str(error.value)


NO_JSON = (
    *("", "[]", "3", "null", "{", '{"architecture": NaN}', "[" * 100_000, '{"a":' * 100_000),
    '{"architecture": "test_resnet", "pretrained_cfg": {"crop_pct": Infinity}}',
    '{"architecture": "test_resnet", "pretrained_cfg": {"crop_pct": 1e999}}',
)


@pytest.mark.parametrize(
    ("text", "encoding"), [*((text, "utf-8") for text in NO_JSON), ("", "utf-16"), ("{", "utf-16"), ("[]", "utf-16")]
)
def test_what_is_no_json_object(text, encoding, saved, tmp_path):
    path = shutil.copytree(saved / "test_resnet", tmp_path / "m")
    (path / "config.json").write_text(text, encoding=encoding)
    for load in (lambda: load_model(path), lambda: init_weights(build("test_resnet"), str(path / "model.safetensors"))):
        with pytest.raises(InputError, match=r"config\.json") as error:
            load()
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
