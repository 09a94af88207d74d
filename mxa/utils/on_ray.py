"""Work on a Ray cluster. Ray Data schedules it, holds back where there is no room, and retries; a task is ours."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .errors import InputError, require

if TYPE_CHECKING:
    import numpy as np

__all__ = ["map_on_ray"]

_PATIENCE = 10.0  # seconds in which a cluster answers


def map_on_ray(
    address: str, work: Callable[[Any], Any], tasks: Sequence[Any], gpu: bool = False
) -> Iterator[tuple[int, Any]]:
    """Calls a function on tasks in processes of a Ray cluster, each of one core.

    Args:
        address: Of the cluster; ``"auto"`` for the one of this machine or, without one, this machine alone.
        work: Turns a task into a result. What it keeps stays in its process. Both must be picklable.
        tasks: One or more calls' arguments.
        gpu: Give each process a GPU.

    Yields:
        The number of a task and its result, as they are done.

    Raises:
        InputError: there is no such cluster, Ray is not installed, or ``work`` raised an ``InputError`` or ``OSError``.
    """
    if not tasks:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    ray, data = require("ray", "ray"), require("ray.data", "ray")
    with _connected(ray, address):
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        most = max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))
        rows = [{"number": i, "task": pickle.dumps(task)} for i, task in enumerate(tasks)]
        done = data.from_items(rows, override_num_blocks=min(len(rows), 10_000)).map_batches(
            _Process,
            batch_size=1,
            fn_constructor_args=(work, os.getcwd()),
            compute=data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=1,
            num_gpus=1 if gpu else None,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            yield row["number"], pickle.loads(row["result"])


class _Process:
    """What Ray makes in each process, and makes again if that is killed."""

    def __init__(self, work: Callable[[Any], Any], folder: str):
        self.work = work
        with contextlib.suppress(OSError):
            os.chdir(folder)  # names may be relative

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list]:
        (task,) = batch["task"].tolist()
        result, error = b"", ""
        try:
            result = pickle.dumps(self.work(pickle.loads(task)))
        except (InputError, OSError) as failure:
            error = str(failure)
        return {"number": batch["number"].tolist(), "result": [result], "error": [error]}


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Joins the cluster, unless this process has already joined one."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address != "auto":  # Ray itself waits for minutes
            place = urlsplit(address if "://" in address else f"ray://{address}")
            socket.create_connection((place.hostname, place.port or 6379), _PATIENCE).close()
        ray.init(None if address == "auto" else address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: no Ray cluster answers there ({str(error).splitlines()[0]})") from None
    try:
        yield
    finally:
        ray.shutdown()
