"""The parts of a table of scores, computed on a Ray cluster: Ray schedules, retries and holds back; ours is a part."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..deployment.predictor import ModelInfo
from ..deployment.scores import ScoreTable
from ..utils.errors import InputError, require
from .predict_config import PredictConfig
from .predict_rows import predict_rows

if TYPE_CHECKING:
    import numpy as np

__all__ = ["parts_on_ray"]

_PATIENCE = 10.0  # seconds in which a cluster answers


def parts_on_ray(
    config: PredictConfig, info: ModelInfo, table: ScoreTable, left: Mapping[int, Sequence[str]]
) -> Iterator[tuple[int, bytes]]:
    """Computes parts where Ray has room, and yields the number and the content of each as it is done.

    Every machine must see the images and the model under the same names.

    Raises:
        InputError: there is no such cluster, an image does not read, without ``skip_bad``, or a machine has another
            model under this name.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    ray, data = require("ray", "ray"), require("ray.data", "ray")
    with _connected(ray, config.ray):
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        on_gpu = (config.device or "").startswith("cuda")
        most = max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1)))
        rows = [{"part": i, "files": b"\0".join(map(os.fsencode, files))} for i, files in left.items()]
        if not rows:
            return
        done = data.from_items(rows, override_num_blocks=min(len(rows), 10_000)).map_batches(
            _Scorer,
            batch_size=1,
            fn_constructor_args=(config, info.weights_sha256, table, os.getcwd()),
            compute=data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=1,
            num_gpus=1 if on_gpu else None,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            yield row["part"], row["content"]


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Joins the cluster, unless this process has already joined one."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        if address != "auto":  # Ray itself waits for minutes
            place = urlsplit(address if "://" in address else f"ray://{address}")
            socket.create_connection((place.hostname, place.port or 6379), _PATIENCE).close()
        ray.init(None if address == "auto" else address, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: no Ray cluster answers there ({str(error).splitlines()[0]})") from None
    try:
        yield
    finally:
        ray.shutdown()


class _Scorer:
    """Turns the names of a part's images into the part. Ray makes one in each process, and again if it is killed."""

    def __init__(self, config: PredictConfig, weights_sha256: str, table: ScoreTable, folder: str):
        self.config, self.weights_sha256, self.table = config, weights_sha256, table
        self.predictor = None
        with contextlib.suppress(OSError):
            os.chdir(folder)  # names may be relative

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list]:
        (number,), (names,) = batch["part"].tolist(), batch["files"].tolist()
        content, error = b"", ""
        try:
            content = self._part([os.fsdecode(name) for name in names.split(b"\0")])
        except (InputError, OSError) as failure:
            error = str(failure)
        return {"part": [number], "content": [content], "error": [error]}

    def _part(self, files: list[str]) -> bytes:
        config = self.config
        if self.predictor is None:
            self.predictor = config.open()
        if self.predictor.info.weights_sha256 != self.weights_sha256:
            raise InputError(f"{config.model} has other weights on another machine of the cluster")
        return self.table.encode(predict_rows(config, self.predictor, files))
