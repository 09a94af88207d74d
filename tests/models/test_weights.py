"""Names of the outputs, and checkpoints that load whole or not at all."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import timm
import torch

import mxa
from mxa.labels import CHEXPERT, NIH
from mxa.models import save_pretrained

from ..contracts import check_gray_stem, holds, images, meta, randomise

NAMES = timm.list_models(module="efficientvit_ml")
M0, M0_MXA = "efficientvit_ml_m0", "efficientvit_ml_m0_mxa"
ABC = ("a", "b", "c")


def reload(model, folder, **kwargs):
    save_pretrained(model, folder)
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


class TestLabelNames:
    def test_default(self):
        assert mxa.label_names(meta(M0)) == CHEXPERT
        assert mxa.label_names(meta(M0, num_classes=14)) == CHEXPERT

    @pytest.mark.parametrize("kwargs", [{"num_classes": 5}, {"num_classes": 0}])
    def test_other_heads_have_none(self, kwargs):
        assert mxa.label_names(meta(M0, **kwargs)) is None

    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 14}])
    def test_imagenet_has_none(self, kwargs):
        assert mxa.label_names(meta(f"{M0}.r224_in1k", **kwargs)) is None

    @pytest.mark.parametrize("num_classes", [0, 3, 14])
    def test_a_new_head_has_none(self, num_classes):
        model = meta(M0)
        model.reset_classifier(num_classes)
        assert mxa.label_names(model) is None

    def test_given(self):
        model = meta(M0, num_classes=3, label_names=list(ABC))
        assert mxa.label_names(model) == ABC
        model.reset_classifier(2, label_names=["x", "y"])
        assert mxa.label_names(model) == ("x", "y")
        mxa.set_label_names(model, ["y", "x"])
        assert mxa.label_names(model) == ("y", "x")
        mxa.set_label_names(model, None)
        assert mxa.label_names(model) is None

    def test_wrong_count(self):
        with pytest.raises(ValueError, match="3 label names for 14 outputs"):
            meta(M0, label_names=ABC)
        model = meta(M0)
        with pytest.raises(ValueError, match="3 label names for 2 outputs"):
            model.reset_classifier(2, label_names=ABC)
        with pytest.raises(ValueError, match="3 label names for 2 outputs"):
            mxa.set_label_names(model, ABC)

    @pytest.mark.parametrize(
        ("names", "message"), [("abc", "the text 'abc'"), (("Effusion", "b", "Pleural Effusion"), "mean the same")]
    )
    def test_names_that_cannot_be(self, names, message):
        with pytest.raises(ValueError, match=message):
            mxa.set_label_names(meta("test_resnet", num_classes=3), names)
        with pytest.raises(ValueError, match=message):
            meta(M0, num_classes=3, label_names=names)

    def test_pruning_takes_them_away(self):
        model = meta(M0)
        model.prune_intermediate_layers([3])
        assert mxa.label_names(model) is None

    def test_foreign_models(self):
        model = meta("test_resnet", num_classes=3)
        assert mxa.label_names(model) is None
        mxa.set_label_names(model, ABC)
        assert mxa.label_names(model) == ABC
        model.reset_classifier(2)
        assert mxa.label_names(model) is None
        with pytest.raises(ValueError, match="3 label names for 2 outputs"):
            mxa.set_label_names(model, ABC)


class TestLoadLabels:
    @torch.no_grad()
    @pytest.mark.parametrize("name", [M0_MXA, "test_resnet", "test_vit"])
    def test_rows_go_by_name(self, name):
        model = randomise(timm.create_model(name, num_classes=3)).eval()
        mxa.set_label_names(model, ("Edema", "Pleural Effusion", "Mass"))
        x = images(size=model.pretrained_cfg["input_size"][-2:])
        before = model(x)
        assert mxa.load_labels(model, ["Mass", "Scoliosis", "Effusion"]) is model
        after = model.eval()(x)
        torch.testing.assert_close(after[:, [0, 2]], before[:, [2, 1]])
        assert not any(torch.allclose(after[:, 1], before[:, i]) for i in range(3))
        assert mxa.label_names(model) == ("Mass", "Scoliosis", "Effusion") and model.num_classes == 3
        mxa.load_labels(model, ["Effusion"])
        torch.testing.assert_close(model.eval()(x), before[:, 1:2])

    def test_as_many_names_in_another_order(self):
        model = randomise(timm.create_model(M0))
        before = model.head.linear.weight.detach().clone()
        mxa.load_labels(model, (CHEXPERT[1], CHEXPERT[0], *CHEXPERT[3:], "Scoliosis"))
        after = model.head.linear.weight.detach()
        assert torch.equal(after[0], before[1]) and torch.equal(after[1], before[0])
        assert torch.equal(after[2:13], before[3:])
        assert not any(torch.equal(after[13], row) for row in before)

    def test_a_head_of_fewer_rows_than_names(self):
        model = timm.create_model("test_resnet", num_classes=3)
        mxa.set_label_names(model, ABC)
        model.fc = torch.nn.Linear(model.fc.in_features, 2)
        with pytest.raises(ValueError, match="the model has 3 label names for a head of 2 rows: set them anew"):
            mxa.load_labels(model, ["c", "d"])

    def test_what_cannot_be(self):
        model = timm.create_model("test_resnet", num_classes=2)
        with pytest.raises(ValueError, match="have no names"):
            mxa.load_labels(model, ["Edema"])
        mxa.set_label_names(model, ["Edema", "Mass"])
        for names, message in (
            (["Effusion", "Pleural Effusion"], "mean the same"),
            ("Edema", "the text 'Edema'"),
            ([], "at least one"),
        ):
            with pytest.raises(ValueError, match=message):
                mxa.load_labels(model, names)
            assert model.num_classes == 2 and mxa.label_names(model) == ("Edema", "Mass")
        model.reset_classifier(0)
        with pytest.raises(ValueError, match="have no names"):
            mxa.load_labels(model, ["Edema"])


class TestSaveAndLoad:
    @torch.no_grad()
    @pytest.mark.parametrize("name", [M0, M0_MXA, "test_resnet"])
    def test_round_trip(self, name, tmp_path):
        model = randomise(timm.create_model(name, num_classes=3)).eval()
        mxa.set_label_names(model, ABC)
        again = reload(model, tmp_path).eval()
        assert mxa.label_names(again) == ABC
        size = model.pretrained_cfg["input_size"][-2:]
        assert torch.equal(again(images(size=size)), model(images(size=size)))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
        assert json.loads((tmp_path / "config.json").read_text())["label_names"] == list(ABC)

    def test_names_given_at_the_start(self, tmp_path):
        model = timm.create_model(M0, num_classes=3, label_names=ABC)
        assert mxa.label_names(reload(model, tmp_path / "a")) == ABC
        mxa.set_label_names(model, ["x", "y", "z"])
        assert mxa.label_names(reload(model, tmp_path / "b")) == ("x", "y", "z")

    @pytest.mark.parametrize("name", [M0, f"{M0}.r224_in1k", "test_resnet.r160_in1k"])
    def test_the_tag_of_other_weights_is_not_written(self, name, tmp_path):
        model = timm.create_model(name, num_classes=3)
        mxa.set_label_names(model, ABC)
        tag = model.pretrained_cfg["tag"]
        again = reload(model, tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["tag"] is None
        assert tag and model.pretrained_cfg["tag"] == tag and not again.pretrained_cfg.get("tag")

    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 3, "label_names": ABC}])
    def test_another_head_while_loading(self, kwargs, tmp_path):
        model = timm.create_model(M0, **kwargs)
        assert mxa.label_names(reload(model, tmp_path, num_classes=5)) is None
        assert mxa.label_names(reload(model, tmp_path, num_classes=2, label_names=["x", "y"])) == ("x", "y")

    @pytest.mark.parametrize("num_classes", [3, 14])
    @pytest.mark.parametrize("name", [M0, "test_resnet"])
    def test_old_names_never_come_back(self, name, num_classes, tmp_path):
        model = timm.create_model(name, num_classes=14)
        mxa.set_label_names(model, CHEXPERT)
        model = reload(model, tmp_path / "first")
        assert mxa.label_names(model) == CHEXPERT
        model.reset_classifier(num_classes)
        mxa.set_label_names(model, None)
        assert mxa.label_names(reload(model, tmp_path / "second")) is None

    def test_old_names_never_come_back_after_a_head_of_the_same_size(self, tmp_path):
        model = timm.create_model(M0)
        model.reset_classifier(14)
        model = reload(model, tmp_path)
        assert mxa.label_names(model) is None

    @torch.no_grad()
    def test_a_run_at_another_size_and_channel_count(self, tmp_path):
        model = randomise(timm.create_model(M0_MXA, img_size=320, in_chans=1, mxa_init_values=0.5)).eval()
        again = reload(model, tmp_path).eval()
        x = images(1, channels=1, size=(320, 320))
        assert torch.equal(again(x), model(x))
        small = reload(model, tmp_path, img_size=224).eval()
        assert small.stages[2].blocks[0].mixer.m.attn.attention_biases.shape == (4, 16)
        assert small(images(1, channels=1)).isfinite().all()


class TestNoWeights:
    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}, {"features_only": True}])
    @pytest.mark.parametrize("name", NAMES)
    def test_no_random_weights_for_pretrained(self, name, kwargs):
        for full in (name, f"{name}.chexpert"):
            with pytest.raises(RuntimeError) as error:
                timm.create_model(full, pretrained=True, **kwargs)
            for word in (f"{name}.chexpert", f"{name}.r224_in1k", "local-dir:", "file=", "MXA_HUB_ORG", "=False"):
                assert word in str(error.value)

    @pytest.mark.parametrize("name", [M0, M0_MXA])
    def test_a_file_is_enough(self, name, tmp_path):
        model = randomise(timm.create_model(name))
        safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
        overlay = {"file": str(tmp_path / "w.safetensors")}
        loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert holds(loaded, model.state_dict())
        assert mxa.label_names(loaded) == CHEXPERT
        in_memory = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": model.state_dict()})
        assert holds(in_memory, model.state_dict())

    def test_names_of_a_file(self, tmp_path):
        model = timm.create_model(M0)
        mxa.set_label_names(model, NIH[:14])
        save_pretrained(model, tmp_path)
        overlay = {"file": str(tmp_path / "model.safetensors")}
        assert mxa.label_names(timm.create_model(M0, pretrained=True, pretrained_cfg_overlay=overlay)) == NIH[:14]

    def test_a_file_of_more_outputs_keeps_its_head_and_names(self, tmp_path):
        model = randomise(timm.create_model(M0_MXA, num_classes=15))
        mxa.set_label_names(model, NIH)
        save_pretrained(model, tmp_path / "named")
        file = tmp_path / "named" / "model.safetensors"
        for kwargs in ({}, {"num_classes": 15}):
            overlay = {"file": str(file)}
            again = timm.create_model(M0_MXA, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
            assert holds(again, model.state_dict()) and mxa.label_names(again) == NIH
        other = timm.create_model(M0_MXA, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, num_classes=3)
        assert mxa.label_names(other) is None
        (tmp_path / "named" / "config.json").unlink()
        overlay = {"file": str(file), "num_classes": 15, "label_names": NIH}  # as docs/weights.md has it
        again = timm.create_model(M0_MXA, pretrained=True, pretrained_cfg_overlay=overlay)
        assert holds(again, model.state_dict()) and mxa.label_names(again) == NIH
        overlay = {"file": str(file)}
        again = timm.create_model(M0_MXA, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=15)
        assert holds(again, model.state_dict()) and mxa.label_names(again) is None

    def test_a_plain_file_stays_refused_with_its_own_count(self, plain, tmp_path):
        safetensors.torch.save_file(plain, tmp_path / "w.safetensors")
        overlay = {"file": str(tmp_path / "w.safetensors")}
        with pytest.raises(RuntimeError, match="have no MXA"):
            timm.create_model(M0_MXA, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=14)

    def test_the_hash_beside_a_file(self, tmp_path):
        save_pretrained(timm.create_model(M0), tmp_path)
        metadata = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**metadata, "sha256": "1" * 64}))
        overlay = {"file": str(tmp_path / "model.safetensors")}
        with pytest.raises(RuntimeError, match="that of these weights is 1111"):
            timm.create_model(M0, pretrained=True, pretrained_cfg_overlay=overlay)

    def test_other_names_for_trained_outputs_are_refused(self, tmp_path):
        model = timm.create_model(M0)
        with pytest.raises(RuntimeError, match=r"then mxa\.load_labels"):
            reload(model, tmp_path, label_names=NIH[:14])
        spelt = [name.upper() for name in CHEXPERT]
        assert mxa.label_names(reload(model, tmp_path, label_names=spelt)) == tuple(spelt)
        for name in (f"local-dir:{tmp_path}", "efficientvit_ml_m0_mxa.r160_nih8k"):
            own = mxa.label_names(timm.create_model(name, pretrained=True))
            with pytest.raises(RuntimeError, match=r"then mxa\.load_labels"):
                timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"label_names": own[::-1]})

    def test_no_pickle_for_a_grafted_model_either(self, tmp_path):
        model = mxa.layers.graft(timm.create_model("test_vit", num_classes=3))
        save_pretrained(model, tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(RuntimeError, match=r"there is no .*model\.safetensors"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)

    def test_a_file_without_weights(self, tmp_path):
        save_pretrained(timm.create_model(M0), tmp_path)
        safetensors.torch.save_file({}, tmp_path / "model.safetensors")
        with pytest.raises(RuntimeError, match="holds no weights"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)

    @torch.no_grad()
    def test_a_file_for_features(self, tmp_path):
        model = randomise(timm.create_model(M0)).eval()
        safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
        overlay = {"file": str(tmp_path / "w.safetensors")}
        features = timm.create_model(M0, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True).eval()
        assert torch.equal(features(images())[-1], model.forward_features(images()))


BLOCK = "stages.0.blocks.0.mixer.mxa."


@pytest.fixture(scope="module")
def plain():
    return randomise(timm.create_model(M0)).state_dict()


@pytest.fixture(scope="module")
def with_mxa():
    return randomise(timm.create_model(M0_MXA)).state_dict()


class TestCheckedLoading:
    """timm loads partial files quietly; ours fit or say what does not."""

    def load(self, name, state, **kwargs):
        overlay = {"state_dict": dict(state)}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)

    def refuse(self, name, state, *keys, **kwargs):
        with pytest.raises(RuntimeError, match=f"not those of {name}") as error:
            self.load(name, state, **kwargs)
        for key in keys:
            assert key in str(error.value)

    def test_all_of_mxa_may_be_missing(self, plain):
        assert holds(self.load(M0_MXA, plain, mxa_init_values=0.0), plain)
        self.load(M0_MXA, plain, num_classes=5)
        with pytest.raises(RuntimeError, match="have no MXA, and random MXA would change their outputs"):
            self.load(M0_MXA, plain)

    # num_classes differs in one case of each pair: there timm's own loader checks nothing
    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}])
    def test_a_part_of_mxa_may_not(self, with_mxa, kwargs):
        key = f"{BLOCK}ls.gamma"
        self.refuse(M0_MXA, {k: v for k, v in with_mxa.items() if k != key}, "missing", key, **kwargs)
        self.refuse(M0_MXA, {k: v for k, v in with_mxa.items() if ".mxa." not in k or k == key}, "missing", **kwargs)

    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}])
    @pytest.mark.parametrize("key", ["patch_embed.conv1.conv.weight", "stages.2.blocks.1.ffn0.m.pw1.bn.running_mean"])
    def test_the_backbone_may_not(self, plain, key, kwargs):
        state = {k: v for k, v in plain.items() if k != key}
        self.refuse(M0, state, "missing", key, **kwargs)
        self.refuse(M0_MXA, state, "missing", key, **kwargs)

    def test_the_head_may_not_unless_replaced(self, plain):
        state = {k: v for k, v in plain.items() if not k.startswith("head.")}
        self.refuse(M0, state, "missing", "head.linear.weight", "head.bn.weight")
        assert self.load(M0, state, num_classes=5).num_classes == 5

    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}])
    def test_an_extra_key(self, plain, kwargs):
        self.refuse(
            M0, {**plain, "stages.0.extra.weight": torch.ones(1)}, "unexpected", "stages.0.extra.weight", **kwargs
        )

    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}])
    def test_another_shape(self, plain, kwargs):
        key = "stages.0.blocks.0.dw0.m.conv.weight"
        self.refuse(M0, {**plain, key: plain[key][:-1]}, "of another shape", key, **kwargs)

    @pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}])
    def test_mxa_into_a_plain_model(self, with_mxa, kwargs):
        self.refuse(M0, with_mxa, "unexpected", BLOCK, "more", **kwargs)

    def test_another_architecture(self, plain):
        self.refuse("efficientvit_ml_m1", plain, "of another shape", "patch_embed.conv1.conv.weight", "more")

    def test_more_or_fewer_outputs_than_the_tag_says(self, plain):
        state = {**plain, "head.linear.weight": torch.ones(15, 192), "head.linear.bias": torch.ones(15)}
        self.refuse(M0, state, "of another shape", "head.linear.weight", "head.linear.bias")

    def test_head_is_replaced_where_the_count_differs(self, plain):
        model = self.load(M0, plain, num_classes=5)
        state = model.state_dict()
        head = {"head.linear.weight", "head.linear.bias"}
        assert holds(model, {k: v for k, v in plain.items() if k not in head})
        assert state["head.linear.weight"].shape == (5, 192)
        assert state["head.linear.weight"].std() < 0.03  # drawn anew: the file's has noise of 0.05 added
        assert self.load(M0, plain, num_classes=0).num_classes == 0
        wide = self.load(M0, plain, num_classes=5, global_pool="catavgmax")
        assert wide.state_dict()["head.bn.weight"].shape == (384,)

    def test_channels(self, plain):
        three, one = self.load(M0, plain).eval(), self.load(M0, plain, in_chans=1).eval()
        check_gray_stem(three, one, 224)
        key = "patch_embed.conv1.conv.weight"
        self.refuse(M0, {**plain, key: plain[key][:, :1]}, "of another shape", key)
