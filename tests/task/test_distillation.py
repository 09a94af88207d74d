"""Soft distillation: the paper's sum cell by cell, its identities, the task, and two processes as one."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mxa.task import MultiLabelDistillationTask, distillation_mix, masked_bce_with_logits, soft_distillation_loss


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher logits, and a mask that leaves the third image without labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=generator) < 0.6
    mask[2], mask[0] = False, True
    return student.requires_grad_(), teacher, mask


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(student, teacher, mask, temperature: float) -> float:
    """Appendix H, one cell after the other."""
    images, labels = student.shape
    p = [[sigmoid(teacher[i, j].item() / temperature) for j in range(labels)] for i in range(images)]
    weights = []
    for j in range(labels):
        known = [p[i][j] for i in range(images) if mask[i, j]]
        weights.append(1 - sum(known) / len(known) if known else 1.0)
    means = []
    for i in range(images):
        terms = []
        for j in range(labels):
            if mask[i, j]:
                q = sigmoid(student[i, j].item() / temperature)
                terms.append(-weights[j] * (p[i][j] * math.log(q) + (1 - p[i][j]) * math.log(1 - q)))
        if terms:
            means.append(sum(terms) / len(terms))
    return sum(means) / len(means) if means else 0.0


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("seed", range(4))
def test_loop_reference(seed, temperature):
    student, teacher, mask = case(seed)
    loss = soft_distillation_loss(student, teacher, mask, temperature)
    assert loss.item() == pytest.approx(reference(student, teacher, mask, temperature), rel=1e-12)
    hidden = teacher.masked_fill(~mask, math.nan)
    torch.testing.assert_close(soft_distillation_loss(student, hidden, temperature=temperature), loss, rtol=0, atol=0)
    torch.testing.assert_close(soft_distillation_loss(student, hidden, mask, temperature), loss, rtol=0, atol=0)


def test_all_present_is_the_papers_sum():
    student, teacher, _ = case()
    p = teacher.sigmoid()
    each = F.binary_cross_entropy_with_logits(student, p, reduction="none").mean(0)  # of each label
    expected = ((1 - p.mean(0)) * each).mean()  # 1/C
    torch.testing.assert_close(soft_distillation_loss(student, teacher), expected)


def test_a_teacher_equal_to_the_student_gives_the_weighted_entropy_and_no_gradient():
    student, _, _ = case()
    loss = soft_distillation_loss(student, student)
    p = student.detach().sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(loss.detach(), ((1 - p.mean(0)) * entropy).mean())
    loss.backward()
    assert student.grad.abs().max() < 1e-12


def test_a_mask_of_labels_is_a_mask_of_every_image():
    student, teacher, _ = case()
    known = torch.tensor([True, False, True, True, False])
    loss = soft_distillation_loss(student, teacher, known)
    torch.testing.assert_close(loss, soft_distillation_loss(student[:, known], teacher[:, known]))
    loss.backward()
    assert (student.grad[:, ~known] == 0).all() and (student.grad[:, known] != 0).all()


def test_no_label_is_0_with_a_gradient_of_0():
    student, teacher, _ = case()
    loss = soft_distillation_loss(student, teacher, torch.zeros(5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and (student.grad == 0).all()


def test_gradient():
    student, teacher, mask = case()
    assert torch.autograd.gradcheck(lambda s: soft_distillation_loss(s, teacher, mask, 1.7), (student,))


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_logits_stay_finite(scale):
    student, teacher, mask = case()
    loss = soft_distillation_loss(scale * student, -scale * teacher, mask)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_a_temperature_of_0_is_an_error():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        soft_distillation_loss(*case()[:2], temperature=0)


class Fixed(nn.Module):
    """A teacher that gives what it is told, and knows three of four labels."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4))

    def forward(self, images):
        return self.body(images), torch.tensor([True, True, True, False])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = (torch.rand(5, 4, generator=generator) < 0.5).float()
    target[0, 1] = math.nan
    return torch.randn(5, 3, 2, 2, generator=generator), target


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_task_mixes(student, alpha):
    images, target = batch()
    task = MultiLabelDistillationTask(student, Fixed(), alpha, temperature=2.0).train()
    result = task(images, target)
    bce = masked_bce_with_logits(student(images), target)
    kd = soft_distillation_loss(student(images), *task.teacher(images), 2.0)
    torch.testing.assert_close(result["loss"], distillation_mix(bce, kd, alpha))
    assert set(result) == {"loss", "output", "task_loss", "kd_loss"}
    torch.testing.assert_close(result["task_loss"], bce.detach())
    torch.testing.assert_close(result["kd_loss"], kd.detach())
    if alpha == 0:
        torch.testing.assert_close(result["loss"], bce, rtol=0, atol=0)


def test_the_teacher_stays_as_it_is(student):
    images, target = batch()
    task = MultiLabelDistillationTask(student, Fixed())
    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    task.train()
    assert task.training and student.training and not task.teacher.training and not task.teacher.body[1].training
    task(images, target)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in task.teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("options", [{"alpha": 1.2}, {"alpha": -0.1}, {"temperature": 0.0}])
def test_what_is_out_of_range_is_refused(student, options):
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\] and temperature above 0"):
        MultiLabelDistillationTask(student, Fixed(), **options)


TWO = """
import gc, sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from mxa.task import MaskedLoss, masked_bce_with_logits, soft_distillation_loss
rank, path = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
data = torch.load(f"{path}/data.pt")
model = nn.Linear(6, 5).double()
model.load_state_dict(data["model"])
model = DistributedDataParallel(model)
half = slice(0, 4) if rank == 0 else slice(4, 8)
logits = model(data["x"][half])
bce = masked_bce_with_logits(logits, data["target"][half])
kd = soft_distillation_loss(logits, data["teacher"][half], data["mask"][half], 1.5)
(0.4 * bce + 0.6 * kd).backward()
none = data["target"][half].masked_fill(torch.tensor(rank == 0), float("nan"))
MaskedLoss("zlpr")(logits.detach(), none)  # the first process has no label: both must ask the other
losses = torch.stack([bce.detach(), kd.detach()])
distributed.all_reduce(losses)
if rank == 0:
    grads = {"weight": model.module.weight.grad, "bias": model.module.bias.grad}
    torch.save({"losses": losses / 2, **grads}, f"{path}/out.pt")
del model, logits, bce, kd
gc.collect()  # a DistributedDataParallel that outlives its group can abort the process as it exits
distributed.destroy_process_group()
"""


def test_two_processes_are_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 5).double()
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    target = (torch.rand(8, 5, generator=generator) < 0.5).double()
    target[torch.rand(8, 5, generator=generator) < 0.3] = math.nan
    target[1] = target[2] = math.nan  # the first process has fewer images with labels than the second
    teacher = 2 * torch.randn(8, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(8, 5, generator=generator) < 0.7
    mask[5] = False
    data = {"x": x, "target": target, "teacher": teacher, "mask": mask, "model": model.state_dict()}
    torch.save(data, tmp_path / "data.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    two = torch.load(tmp_path / "out.pt")
    logits = model(x)
    bce, kd = masked_bce_with_logits(logits, target), soft_distillation_loss(logits, teacher, mask, 1.5)
    (0.4 * bce + 0.6 * kd).backward()
    torch.testing.assert_close(two["losses"], torch.stack([bce, kd]).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(two["weight"], model.weight.grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(two["bias"], model.bias.grad, rtol=1e-10, atol=1e-14)
