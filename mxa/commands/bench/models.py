"""Measures speed, memory and size of models beside peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ...models.load import create
from ...utils.config import read_named
from ...utils.errors import InputError
from .config import BenchModelsConfig
from .timing import alternate, counted, threads, timed, write_record

__all__ = ["BenchModelsConfig", "bench_models"]


def bench_models(config: BenchModelsConfig) -> list[dict]:
    """Measures peers and models against the first peer (the first model, if there are no peers).

    A training step is forward, binary cross-entropy, backward and clearing the gradients, without an optimizer. MACs
    are half of torch's ``FlopCounterMode`` at batch 1 (products and convolutions). ``train_memory_mb`` is what a
    training step needs beyond the weights. On CUDA it is the growth of allocated memory to its peak. The CPU has no
    such counter: there it is the size of the tensors that the forward pass saves for the backward pass, each storage
    counted once. That is deterministic; for M5 at batch 32 it is 5 to 8 % below the growth of the resident set.

    Returns:
        One row per model, peers first: ``model`` and ``params_m``, ``macs_g``, ``latency_b1_ms``, ``latency_ms``,
        ``images_per_s``, ``train_ms``, ``train_memory_mb``, the last four at ``batch_size``. Times are medians; 1 MB is
        10^6 bytes. Each has its ``_ratio`` to the reference, the timed ones also the ratio's quartiles ``_ratio_iqr``.

    Raises:
        InputError: a model is unknown, there is none, ``repeats`` is below 1, or ``batch_size`` is below 2 (batch norm
            cannot train on one).
    """
    names = (*config.peers, *config.models)
    if not names or config.batch_size < 2:
        raise InputError("name at least one model or peer, and give batch norm a batch_size of at least 2")
    device = torch.device(config.device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    with threads(config.threads):
        torch.manual_seed(0)
        shape = (config.batch_size, 3, config.img_size, config.img_size)
        images = torch.randn(shape, device=device).contiguous(memory_format=layout)
        targets = torch.randint(2, (config.batch_size, config.num_classes), device=device).float()
        models = [_build(name, config).to(device, memory_format=layout).eval() for name in names]
        one = images[:1].contiguous(memory_format=layout)
        params = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models]
        macs = [_macs(model, one) for model in models]
        with torch.inference_mode():
            first = alternate([partial(model, one) for model in models], config.repeats, device)
            rounds = alternate([partial(model, images) for model in models], config.repeats, device)
        speeds = [[config.batch_size / ms * 1e3 for ms in times] for times in rounds]
        steps = [partial(_training_step, model.train(), images, targets) for model in models]
        training = alternate(steps, config.repeats, device)
        memory = [_memory(model, step, images, device) / 1e6 for model, step in zip(models, steps, strict=True)]
    rows = []
    for i, name in enumerate(names):
        row = {"model": name} | counted("params_m", params, i) | counted("macs_g", macs, i)
        row |= timed("latency_b1_ms", first, i) | timed("latency_ms", rounds, i) | timed("images_per_s", speeds, i)
        rows.append(row | timed("train_ms", training, i) | counted("train_memory_mb", memory, i))
    write_record(config, rows, device)
    return rows


def _build(name: str, config: BenchModelsConfig) -> nn.Module:
    name, arguments = read_named(name, "the model")
    return create(name, config.img_size, **{"num_classes": config.num_classes, **(arguments or {})})


def _macs(model: nn.Module, image: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2 / 1e9


def _training_step(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> None:
    F.binary_cross_entropy_with_logits(model(images), targets).backward()
    model.zero_grad()


def _memory(model: nn.Module, step: Callable[[], object], images: torch.Tensor, device: torch.device) -> int:
    """Returns the memory of a training step in bytes; ``bench_models`` says how."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def note(tensor: torch.Tensor) -> None:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda _: None):
        model(images)
    return sum(storage.nbytes() for address, storage in saved.items() if address not in weights)
