"""One step of training: precision, accumulation, clipping, averages, processes."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import distribute_bn
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from ..task import MultiLabelTask
from ..utils.distributed import world_size
from ..utils.errors import InputError
from .config import OptimConfig

__all__ = ["AMP_TYPES", "Engine", "deterministic", "mixup", "prepare_model"]

AMP_TYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Makes torch choose operations that give the same bits every time, inside the block."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it, before its first call
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def prepare_model(config: OptimConfig, model: nn.Module, device: torch.device) -> nn.Module:
    """Puts a model on its device, in the form that the configuration asks for.

    Raises:
        InputError: the model or the device cannot.
    """
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise InputError(f"--grad-checkpointing: {type(model).__name__} has none") from None
    if config.sync_bn and (device.type != "cuda" or world_size() == 1):
        raise InputError("--sync-bn needs several processes on CUDA devices")
    if config.sync_bn:
        model = convert_sync_batchnorm(model)
    return model.to(device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)


def mixup(images: torch.Tensor, targets: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes a batch with itself in reverse order (Zhang et al., "mixup", ICLR 2018), as timm does.

    Args:
        images: ``(B, C, H, W)``.
        targets: ``(B, L)``. A label that is masked (NaN) in either of two images is masked in their mixture.
        alpha: The first image's share is drawn from Beta(alpha, alpha), once for the batch.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return share * images + (1 - share) * images.flip(0), share * targets + (1 - share) * targets.flip(0)


class Engine:
    """A task and what trains it: optimizer, schedule, loss scale, average of the weights.

    Every random choice of a step is a function of (seed, epoch, step, process).

    Args:
        config: The run's.
        task: Its model is on the device already.
        steps: Steps of an epoch.
        frozen: Modules that stay in eval mode.

    Attributes:
        model: What is trained, without wrappers.
        eval_model: What is validated and kept: the average of the weights where there is one, else the model.
    """

    def __init__(self, config: OptimConfig, task: MultiLabelTask, steps: int, frozen: Sequence[nn.Module] = ()):
        self.config, self.task, self.steps, self.frozen = config, task, steps, frozen
        self.device, self.model = task.device, task.trainable_module
        self.eval_model = task.setup_ema(config.ema, use_warmup=True).module if config.ema else self.model
        self.optimizer, self.scheduler = _optimizer(config, self.model, steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        if config.compile:
            task.compile()
        if world_size() > 1:
            task.prepare_distributed([self.device] if self.device.type == "cuda" else None)

    def start_epoch(self) -> None:
        """Sets the modes; validation has changed them."""
        self.task.train()
        for module in self.frozen:
            module.eval()

    def step(
        self,
        micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        epoch: int,
        step: int,
        boxed: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> torch.Tensor:
        """Trains on one batch.

        Args:
            micro_batches: ``grad_accum`` times ``(images (B, C, H, W), targets (B, L))``, on the engine's device.
            epoch: From 0.
            step: Of the epoch, from 0.
            boxed: Images with boxes ``(B, K, 5)`` as targets, which join this step: at most one batch.

        Returns:
            This process's mean loss, detached; the mean over processes is that of the global batch.
        """
        count = epoch * self.steps + step
        self.scheduler.step_update(count)
        losses = []
        last = len(boxed) + self.config.grad_accum - 1
        for i, (images, targets) in enumerate(itertools.chain(boxed, micro_batches)):
            if self.config.mixup and i >= len(boxed):
                images, targets = mixup(images, targets, self.config.mixup)
            if self.config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            wait = self.task.no_sync() if i < last else contextlib.nullcontext()  # the last, of labels, uses every part
            amp = AMP_TYPES[self.config.amp]
            with wait:
                with torch.autocast(self.device.type, amp, enabled=amp is not None):
                    loss = self.task(images, targets)["loss"] / (1 if i < len(boxed) else self.config.grad_accum)
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        if self.config.agc:
            self.scaler.unscale_(self.optimizer)
            adaptive_clip_grad(self.task.get_clip_parameters(exclude_head=True), self.config.agc)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.task.update_ema(count)
        return torch.stack(losses).sum()

    def share_statistics(self) -> None:
        """Gives every process the first one's batch-norm statistics, before a validation that they share."""
        if world_size() > 1:
            distribute_bn(self.eval_model, world_size(), reduce=False)

    @property
    def lr(self) -> float:
        """The highest learning rate of all layers."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it; the schedule is a function of the step."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        return state | ({"ema": self.eval_model.state_dict()} if self.config.ema else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state back."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.config.ema:
            self.eval_model.load_state_dict(state["ema"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def _optimizer(config: OptimConfig, model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Scheduler]:
    optimizer = create_optimizer_v2(model, config.opt, config.lr, config.weight_decay, layer_decay=config.layer_decay)
    falling = config.epochs - config.cooldown_epochs
    warm_up = min(config.warmup_epochs, falling - 1)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=falling - warm_up,
        cooldown_epochs=config.cooldown_epochs,
        warmup_epochs=warm_up,
        warmup_prefix=True,  # the cosine begins at the peak
        warmup_lr=config.lr / 100,
        min_lr=min(config.min_lr, config.lr),
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return optimizer, scheduler
