"""Measures what a teacher costs: a distillation step beside a training step and a forward pass of the teacher."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median

import torch

from ...labels import CHEXPERT
from ...task import MultiLabelDistillationTask, MultiLabelTask, Teacher
from ...training.config import TrainConfig
from ...training.engine import AMP_TYPES, Engine, prepare_model
from ...training.start import build_model
from ...utils.errors import InputError
from .config import BenchTaskConfig
from .timing import alternate, threads, timed, write_record

__all__ = ["BenchTaskConfig", "bench_task"]


def bench_task(config: BenchTaskConfig) -> list[dict]:
    """Measures whole steps (forward, loss, backward, AdamW), and the teacher's forward pass on the same images.

    Returns:
        One row per student: ``model``, ``step_ms``, ``teacher_ms``, ``kd_step_ms`` (medians), ``images_per_s`` of the
        step and ``kd_images_per_s``, and ``kd_step_ms_ratio``, the KD step over the sum of the other two in the same
        round (median, with its quartiles in ``_ratio_iqr``).

    Raises:
        InputError: a model is unknown, or ``batch_size`` is below 2.
    """
    if config.batch_size < 2 or not config.models:
        raise InputError("name at least one model, and give batch norm a batch_size of at least 2")
    import torchxrayvision

    device, rows = torch.device(config.device), []
    with threads(config.threads):
        torch.manual_seed(0)
        images = torch.randn(config.batch_size, 3, config.img_size, config.img_size, device=device)
        targets = torch.randint(2, (config.batch_size, len(CHEXPERT)), device=device).float()
        for name in config.models:
            run = TrainConfig(Path(), model=name, img_size=config.img_size, amp=config.amp)
            students = [prepare_model(run, build_model(run, CHEXPERT), device) for _ in range(2)]
            teacher = Teacher(torchxrayvision.models.DenseNet(), CHEXPERT, students[1], device=device)
            tasks = (
                MultiLabelTask(students[0], device=device),
                MultiLabelDistillationTask(students[1], teacher, device=device),
            )
            engines = [Engine(run, task, steps=1) for task in tasks]
            for engine in engines:
                engine.start_epoch()
            plain, kd = (partial(engine.step, [(images, targets)], 0, 0) for engine in engines)
            forward = partial(_teach, teacher, images, config.amp)
            rounds = alternate([plain, forward, kd], config.repeats, device)
            step, alone, both = (median(times) for times in zip(*rounds, strict=True))
            speeds = {"images_per_s": config.batch_size / step * 1e3, "kd_images_per_s": config.batch_size / both * 1e3}
            against = timed("kd_step_ms", [(a + b, c) for a, b, c in rounds], 1)
            rows.append({"model": name, "step_ms": step, "teacher_ms": alone} | against | speeds)
    write_record(config, rows, device)
    return rows


def _teach(teacher: Teacher, images: torch.Tensor, amp: str | None) -> None:
    with torch.autocast(images.device.type, AMP_TYPES[amp], enabled=amp is not None):
        teacher(images)
