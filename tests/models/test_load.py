"""Models by name, run folder or file, for the main jobs."""

from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch

import mxa
from mxa.models import save_pretrained
from mxa.models.load import create, init_weights, load_model, named_outputs, read_checkpoint
from mxa.utils.errors import InputError

from ..contracts import check_gray_stem, holds, images, randomise

M0, M0_MXA = "efficientvit_ml_m0", "efficientvit_ml_m0_mxa"
ABC = ("Edema", "Mass", "Pleural Effusion")
HEAD = ("head.linear.weight", "head.linear.bias")


def named(name=M0, labels=ABC, seed=0, **kwargs):
    model = randomise(timm.create_model(name, num_classes=len(labels), **kwargs), seed)
    mxa.set_label_names(model, labels)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder and its model: M0 with Edema, Mass, Pleural Effusion."""
    folder = tmp_path_factory.mktemp("run")
    model = named()
    save_pretrained(model, folder)
    return folder, model


class TestCreate:
    def test_size_goes_to_the_models_that_need_it(self):
        assert create(M0, 320).img_size == 320
        assert create("test_resnet", 320).num_classes == 1000

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("efficientvit_ml_m", "'efficientvit_ml_m'.*efficientvit_ml_m0"),
            ("nothing_like_it", r"nothing_like_it.*timm\.list_models"),
            (f"{M0}.nothing", "nothing"),
            (f"{M0}.chexpert", "local-dir.*r224_in1k"),
            ("local-dir:/nowhere", "nowhere"),
            ("nowhere:model", "nowhere:model"),
        ],
    )
    def test_what_cannot_be_had_is_an_input_error(self, name, message):
        with pytest.raises(InputError, match=message):
            create(name, pretrained=True)

    @pytest.mark.parametrize("size", [0, -1])
    def test_an_impossible_size_is_an_input_error(self, size):
        with pytest.raises(InputError, match=M0):
            create(M0, size)

    def test_an_unknown_argument_is_an_input_error(self):
        with pytest.raises(InputError, match=r"test_resnet.*mxa_init_values"):
            create("test_resnet", mxa_init_values=0.0)


class TestLoadModel:
    @torch.no_grad()
    def test_run_folder(self, run):
        folder, model = run
        for source in (folder, str(folder)):
            loaded = load_model(source)
            assert not loaded.training
            assert named_outputs(loaded) == ABC
            assert torch.equal(loaded(images()), model.eval()(images()))

    def test_folder_without_a_run(self, tmp_path):
        with pytest.raises(InputError, match=r"is not a run folder.*config\.json"):
            load_model(tmp_path)

    @pytest.mark.parametrize("config", ["", "{}", '{"architecture": "nothing", "pretrained_cfg": {}}'])
    def test_run_with_a_broken_config(self, config, tmp_path):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(InputError, match=str(tmp_path)):
            load_model(tmp_path)

    def test_run_without_weights(self, run, tmp_path):
        (tmp_path / "config.json").write_text((run[0] / "config.json").read_text())
        with pytest.raises(InputError, match=str(tmp_path)):
            load_model(tmp_path)

    def test_run_with_broken_weights(self, run, tmp_path):
        (tmp_path / "config.json").write_text((run[0] / "config.json").read_text())
        (tmp_path / "model.safetensors").write_bytes((run[0] / "model.safetensors").read_bytes()[:5000])
        with pytest.raises(InputError, match=str(tmp_path)):
            load_model(tmp_path)

    def test_run_with_another_models_weights(self, run, tmp_path):
        (tmp_path / "config.json").write_text((run[0] / "config.json").read_text())
        safetensors.torch.save_file(named(M0_MXA).state_dict(), tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=r"unexpected.*mxa"):
            load_model(tmp_path)

    @pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.pt", "run.txt"])
    def test_a_file_is_no_run_folder(self, name, tmp_path):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match="is not a run folder: give the folder"):
            load_model(tmp_path / name)

    def test_missing_file_and_unknown_name(self):
        with pytest.raises(InputError, match="give the folder"):
            load_model("nowhere/model.safetensors")
        with pytest.raises(InputError, match="unknown model 'nowhere'"):
            load_model("nowhere")
        with pytest.raises(InputError, match="efficientvit_ml_m0"):
            load_model("efficientvit_ml_m")
        with pytest.raises(InputError, match="no folder, and no timm model; close to it: efficientvit_ml_m0_mxa"):
            load_model("efficientvit_ml_m0_mxaa")

    def test_an_argument_that_it_does_not_have(self):
        with pytest.raises(InputError, match=r"^efficientvit_ml_m0_mxa has no argument mxa_roi_hed$"):
            create(M0_MXA, mxa_roi_hed="mean")

    def test_files_that_are_no_checkpoints(self, tmp_path):
        with pytest.raises(InputError, match=r"no such file: .*none\.pth"):
            read_checkpoint(tmp_path / "none.pth")
        torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
        with pytest.raises(InputError, match=r"whole\.pth .* such as a whole model: save its state_dict\(\)$"):
            read_checkpoint(tmp_path / "whole.pth")

    def test_a_name_without_weights(self):
        with pytest.raises(InputError, match="no weights are published"):
            load_model(M0)

    def test_outputs_without_names(self, tmp_path):
        save_pretrained(timm.create_model(M0, num_classes=3), tmp_path)
        with pytest.raises(InputError, match="set_label_names"):
            named_outputs(load_model(tmp_path))


def saved(kind, model, folder):
    """The model's weights in one of the forms that ``init_weights`` takes."""
    state = model.state_dict()
    if kind == "run":
        save_pretrained(model, folder)
        return folder
    path = folder / f"w{'.safetensors' if kind == 'safetensors' else '.pt'}"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        content = {"pt": state, "checkpoint": {"model": state, "labels": mxa.label_names(model), "epoch": 3}}
        content["parallel"] = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(content[kind], path)
    return path


class TestInitWeights:
    @pytest.mark.parametrize("kind", ["run", "safetensors", "pt", "checkpoint", "parallel"])
    def test_the_backbone_from_every_form(self, kind, tmp_path):
        source, model = named(), named(seed=1)
        head = {k: model.state_dict()[k].clone() for k in HEAD}
        filled = init_weights(model, str(saved(kind, source, tmp_path)))
        assert filled == set(source.state_dict()) - set(HEAD)
        assert holds(model, {k: v for k, v in source.state_dict().items() if k not in HEAD})
        has_names = kind in ("run", "checkpoint")
        for key, fresh in head.items():
            assert torch.equal(model.state_dict()[key], source.state_dict()[key] if has_names else fresh)

    @pytest.mark.parametrize("kind", ["run", "checkpoint"])
    def test_head_rows_by_name(self, kind, tmp_path):
        source = named()
        model = named(labels=("Effusion", "Fracture", "edema", "Nodule"), seed=1)  # Effusion is Pleural Effusion
        fresh = {k: model.state_dict()[k].clone() for k in HEAD}
        init_weights(model, str(saved(kind, source, tmp_path)))
        for key in HEAD:
            found, old = model.state_dict()[key], source.state_dict()[key]
            for row, expected in enumerate((old[2], fresh[key][1], old[0], fresh[key][3])):
                assert torch.equal(found[row], expected)

    @pytest.mark.parametrize("names", [(*ABC, "Fracture", "Hernia"), ABC[:2]])
    def test_as_many_names_as_rows(self, names, tmp_path):
        source, model = named(), named(labels=("Hernia", "Edema"), seed=1)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        torch.save({"model": source.state_dict(), "labels": names}, tmp_path / "w.pt")
        message = rf"w\.pt has {len(names)} label names for a head of 3 rows: name every row, in order"
        with pytest.raises(InputError, match=message):
            init_weights(model, str(tmp_path / "w.pt"))
        assert holds(model, before)

    def test_a_file_of_a_run_has_the_names_beside_it(self, run):
        folder, source = run
        model = named(seed=1)
        init_weights(model, str(folder / "model.safetensors"))
        assert holds(model, source.state_dict())

    def test_labels_without_names_start_fresh(self, run):
        model = randomise(timm.create_model(M0, num_classes=3), seed=1)
        fresh = model.state_dict()["head.linear.weight"].clone()
        init_weights(model, str(run[0]))
        assert torch.equal(model.state_dict()["head.linear.weight"], fresh)

    @torch.no_grad()
    def test_plain_into_mxa(self, run):
        folder, source = run
        model = named(M0_MXA, mxa_init_values=0.0)
        for key, p in model.named_parameters():
            if key.endswith("gamma"):
                p.zero_()
        filled = init_weights(model, str(folder))
        assert not any(".mxa." in k for k in filled)
        assert torch.equal(model.eval()(images()), source.eval()(images()))

    @pytest.mark.parametrize("kind", ["run", "safetensors"])
    def test_another_architecture_is_named_by_its_keys(self, kind, tmp_path):
        path = str(saved(kind, named(M0_MXA), tmp_path))
        model = named(seed=1)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(InputError, match=r"unexpected: stages\.0\.blocks\.0\.mixer\.mxa\.") as error:
            init_weights(model, path)
        assert path in str(error.value)
        with pytest.raises(InputError, match=r"of another shape: patch_embed\.conv1"):
            init_weights(named("efficientvit_ml_m1"), path)
        assert holds(model, before)

    @pytest.mark.parametrize("kind", ["run", "safetensors"])
    def test_three_channels_into_one(self, kind, tmp_path):
        source, model = named(), named(in_chans=1, seed=1)
        init_weights(model, str(saved(kind, source, tmp_path)))
        check_gray_stem(source.eval(), model.eval(), 64)

    @pytest.mark.parametrize("kind", ["run", "safetensors"])
    @torch.no_grad()
    def test_weights_of_224_into_320(self, kind, tmp_path):
        source, model = named(), named(img_size=320, seed=1)
        init_weights(model, str(saved(kind, source, tmp_path)))
        for key in HEAD:
            model.state_dict()[key].copy_(source.state_dict()[key])
        source.set_input_size(320)
        x = images(1, size=(320, 320))
        assert torch.equal(model.eval()(x), source.eval()(x))

    @pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
    def test_foreign_models(self, name, tmp_path):
        source, model = named(name), named(name, labels=ABC[::-1], seed=1)
        filled = init_weights(model, str(saved("run", source, tmp_path)))
        head = model.pretrained_cfg["classifier"]
        assert filled == {k for k in source.state_dict() if not k.startswith(f"{head}.")}
        assert holds(model, {k: v if k in filled else v.flip(0) for k, v in source.state_dict().items()})

    def test_no_such_source(self):
        for source, message in (("nowhere.pt", "give the folder"), ("nowhere", "unknown model"), (M0, "no weights")):
            with pytest.raises(InputError, match=message):
                init_weights(named(), source)

    @pytest.mark.parametrize("content", [b"", b"garbage"])
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_a_file_that_is_no_checkpoint(self, suffix, content, tmp_path):
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a checkpoint"):
            init_weights(named(), str(path))

    @pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"model": 1, "epoch": 2}, {}])
    def test_a_file_of_something_else(self, content, tmp_path):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"w\.pt"):
            init_weights(named(), str(tmp_path / "w.pt"))

    def test_a_pickle_is_not_run(self, tmp_path):
        marker = tmp_path / "ran"
        torch.save({"model": _Touch(marker)}, tmp_path / "w.pt")
        with pytest.raises(InputError, match="is not a checkpoint"):
            init_weights(named(), str(tmp_path / "w.pt"))
        assert not marker.exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()
