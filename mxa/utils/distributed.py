"""Processes that train one model together, as ``torchrun`` starts them; without it there is one process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

from .errors import InputError

__all__ = ["all_gather", "all_reduce", "any_process", "barrier", "pick_device", "processes", "rank", "world_size"]


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Returns this process's number, from 0."""
    return distributed.get_rank() if _joined() else 0


def world_size() -> int:
    """Returns how many processes there are."""
    return distributed.get_world_size() if _joined() else 1


def pick_device(name: str | None) -> torch.device:
    """Returns the device named; by default CUDA if there is a GPU, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


@contextmanager
def processes(name: str | None) -> Iterator[torch.device]:
    """Joins the processes that torchrun has started (``nccl`` on CUDA, else ``gloo``), and yields this one's device.

    Without torchrun, or inside another such block, it only yields the device.

    Args:
        name: As for ``pick_device``; each of several processes takes the CUDA device of its local rank.

    Raises:
        InputError: there is no such device.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and (name or "cuda").partition(":")[0] == "cuda" and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = pick_device(name)
    if not several or distributed.is_initialized():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wait = timedelta(hours=6)  # while the first process scores or writes alone
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=wait)
    try:
        yield device
    finally:
        gc.collect()  # a DistributedDataParallel that outlives its group can abort the process as it exits
        distributed.destroy_process_group()


def all_reduce(value: torch.Tensor) -> torch.Tensor:
    """Returns the sum over the processes, without a gradient."""
    if world_size() > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
    return value


def any_process(flag: bool, device: torch.device) -> bool:
    """Says whether the flag is set in any process; all of them must call this."""
    if world_size() == 1:
        return flag
    return bool(all_reduce(torch.tensor(float(flag), device=device)) > 0)


def barrier() -> None:
    """Waits until every process has come here."""
    if world_size() > 1:
        distributed.barrier()


def all_gather(rows: np.ndarray) -> np.ndarray:
    """Concatenates the rows ``(N_i, ...)`` of all processes, in the order of their ranks."""
    if world_size() == 1:
        return rows
    pieces: list = [None] * world_size()
    distributed.all_gather_object(pieces, rows)
    return np.concatenate(pieces)
