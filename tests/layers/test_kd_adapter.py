import math

import pytest
import torch

from mxa.labels import CHEXPERT, NIH, XRV
from mxa.layers import KDAdapter

#: Outputs of TorchXRayVision's densenet121-res224-chex.
CHEX = (
    "Atelectasis",
    "Consolidation",
    "",
    "Pneumothorax",
    "Edema",
    "",
    "",
    "Effusion",
    "Pneumonia",
    "",
    "Cardiomegaly",
    "",
    "",
    "",
    "Lung Lesion",
    "Fracture",
    "Lung Opacity",
    "Enlarged Cardiomediastinum",
)

#: Teacher's name of each CheXpert observation, None where XRV has none.
IN_XRV = {
    "No Finding": None,
    "Enlarged Cardiomediastinum": "Enlarged Cardiomediastinum",
    "Cardiomegaly": "Cardiomegaly",
    "Lung Opacity": "Lung Opacity",
    "Lung Lesion": "Lung Lesion",
    "Edema": "Edema",
    "Consolidation": "Consolidation",
    "Pneumonia": "Pneumonia",
    "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax",
    "Pleural Effusion": "Effusion",
    "Pleural Other": None,
    "Fracture": "Fracture",
    "Support Devices": None,
}

MODES = ["trained", "all", "mask"]


def none_of_loop(logits):
    """Logit of the product of ``1 - sigmoid``, in float64."""
    log_p = -sum(max(o, 0.0) + math.log1p(math.exp(-abs(o))) for o in logits)
    return log_p - math.log(-math.expm1(log_p))


def adapter_loop(logits, teacher, no_finding):
    """Teacher logits in the order of CheXpert, looked up by name, and the mask."""
    rows = []
    for row in logits.double().tolist():
        of = {name: o for name, o in zip(teacher, row, strict=True) if name}
        out = [0.0 if IN_XRV[name] is None else of[IN_XRV[name]] for name in CHEXPERT]
        if no_finding != "mask":
            out[0] = none_of_loop(row if no_finding == "all" else of.values())
        rows.append(out)
    mask = [IN_XRV[n] is not None or (n == "No Finding" and no_finding != "mask") for n in CHEXPERT]
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(mask)


@pytest.mark.parametrize("no_finding", MODES)
@pytest.mark.parametrize("teacher", [XRV, CHEX], ids=["xrv", "chex"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_equals_loop(teacher, no_finding, scale):
    torch.manual_seed(0)
    logits = scale * torch.randn(64, 18)
    out, mask = KDAdapter(teacher, CHEXPERT, no_finding)(logits)
    expected, expected_mask = adapter_loop(logits, teacher, no_finding)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("teacher", [XRV, CHEX], ids=["xrv", "chex"])
def test_maps_by_name(teacher):
    out, mask = KDAdapter(teacher, CHEXPERT)(torch.arange(1.0, 19.0)[None])  # the value tells the column
    found = {s: teacher[int(o) - 1] for s, o, m in zip(CHEXPERT[1:], out[0, 1:], mask[1:], strict=True) if m}
    assert found == {s: t for s, t in IN_XRV.items() if t}
    absent = {s for s, m in zip(CHEXPERT, mask, strict=True) if not m}
    assert absent == {"Pleural Other", "Support Devices"}
    assert all(out[0, CHEXPERT.index(name)] == 0 for name in absent)


@pytest.mark.parametrize("no_finding", MODES)
@pytest.mark.parametrize("teacher", [XRV, CHEX], ids=["xrv", "chex"])
def test_order_of_the_teacher_does_not_matter(teacher, no_finding):
    torch.manual_seed(0)
    logits, order = 3 * torch.randn(8, 18), torch.randperm(18)
    out, mask = KDAdapter(teacher, CHEXPERT, no_finding)(logits)
    shuffled = KDAdapter([teacher[i] for i in order], CHEXPERT, no_finding)
    torch.testing.assert_close(shuffled(logits[:, order]), (out, mask))


def test_order_of_the_student_is_the_order_of_the_output():
    torch.manual_seed(0)
    logits, order = torch.randn(8, 18), torch.randperm(14)
    out, mask = KDAdapter(XRV, CHEXPERT)(logits)
    assert not torch.equal(mask[order], mask)
    torch.testing.assert_close(KDAdapter(XRV, [CHEXPERT[i] for i in order])(logits), (out[:, order], mask[order]))


def test_untrained_outputs_matter_only_to_all():
    torch.manual_seed(0)
    logits = torch.randn(4, 18)
    untrained = torch.tensor([name == "" for name in CHEX])
    noisy = torch.where(untrained, 5 * torch.randn(4, 18), logits)
    for no_finding, same in (("trained", True), ("mask", True), ("all", False)):
        adapter = KDAdapter(CHEX, CHEXPERT, no_finding)
        assert torch.equal(adapter(logits)[0], adapter(noisy)[0]) == same


def test_one_finding_gives_its_opposite():
    logits = torch.linspace(-80, 80, 1601)[:, None]
    out, mask = KDAdapter(["Edema"], ["No Finding", "Edema"])(logits)
    assert mask.all()
    torch.testing.assert_close(out, torch.cat([-logits, logits], dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("no_finding", MODES)
def test_a_teachers_own_no_finding_is_used(no_finding):
    logits = torch.randn(3, 15)
    out, mask = KDAdapter(NIH, CHEXPERT, no_finding)(logits)
    assert mask[0]
    assert torch.equal(out[:, 0], logits[:, NIH.index("No Finding")])


def test_student_without_no_finding():
    logits = torch.randn(3, 18)
    out, mask = KDAdapter(XRV, ["Mass", "Pleural Other", "Effusion"])(logits)
    assert mask.tolist() == [True, False, True]
    assert torch.equal(out[:, 0], logits[:, XRV.index("Mass")])
    assert torch.equal(out[:, 2], logits[:, XRV.index("Effusion")])


@pytest.mark.parametrize("no_finding", ["trained", "all"])
@pytest.mark.parametrize("teacher", [XRV, CHEX], ids=["xrv", "chex"])
def test_extreme_logits_are_finite_and_accurate(teacher, no_finding):
    torch.manual_seed(0)
    constant = torch.tensor([-100.0, -50.0, -20.0, -17.0, -16.9, -3.2, 0.0, 17.0, 100.0])[:, None].expand(-1, 18)
    mixed = 100 * (2 * torch.randint(0, 2, (32, 18)) - 1.0)
    one = torch.full((18, 18), -100.0).fill_diagonal_(100.0)
    logits = torch.cat([constant, mixed, one]).requires_grad_()
    out, _ = KDAdapter(teacher, CHEXPERT, no_finding)(logits)
    torch.testing.assert_close(out.double(), adapter_loop(logits, teacher, no_finding)[0], rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-5)])
def test_keeps_the_dtype_and_computes_in_float32(dtype, rtol):
    torch.manual_seed(0)
    logits = (5 * torch.randn(8, 18)).to(dtype)
    out, _ = KDAdapter(CHEX, CHEXPERT)(logits)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), adapter_loop(logits, CHEX, "trained")[0], rtol=rtol, atol=1e-2)


def test_buffers_move_and_are_not_saved():
    adapter = KDAdapter(CHEX, CHEXPERT)
    assert not adapter.state_dict()
    assert not list(adapter.parameters())
    logits = torch.randn(2, 18)
    expected = adapter(logits)
    torch.testing.assert_close(adapter.half()(logits), expected)
    adapter.to("meta")
    assert {b.device.type for b in adapter.buffers()} == {"meta"}
    assert all(t.device.type == "meta" for t in adapter(logits.to("meta")))


def test_unknown_no_finding_is_an_error():
    with pytest.raises(ValueError, match="no_finding"):
        KDAdapter(XRV, CHEXPERT, "some")


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (("Edema", "Mass", "edema"), CHEXPERT),
        (("Effusion", "Pleural Effusion"), CHEXPERT),
        (XRV, ("Edema", "Edema")),
        (XRV, ("Edema", "No Finding", "no_finding")),
    ],
)
def test_repeated_labels_are_an_error(teacher, student):
    with pytest.raises(ValueError, match="mean the same"):
        KDAdapter(teacher, student)


@pytest.mark.parametrize("teacher", [("Hernia", "Mass"), ("", ""), ()])
def test_nothing_in_common_is_an_error(teacher):
    with pytest.raises(ValueError, match="in common"):
        KDAdapter(teacher, CHEXPERT)


@pytest.mark.parametrize("columns", [14, 17, 19])
def test_wrong_number_of_columns_is_an_error(columns):
    with pytest.raises(ValueError, match="expected 18 teacher logits"):
        KDAdapter(XRV, CHEXPERT)(torch.randn(2, columns))
