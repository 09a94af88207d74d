"""The parts of a table of scores, computed on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...deployment.predictor import ModelInfo, Predictor
from ...deployment.scores import ScoreTable
from ...utils.errors import InputError
from ...utils.on_ray import map_on_ray
from .config import PredictConfig
from .rows import predict_rows

__all__ = ["parts_on_ray"]


def parts_on_ray(
    config: PredictConfig, info: ModelInfo, table: ScoreTable, left: Mapping[int, Sequence[str]]
) -> Iterator[tuple[int, bytes]]:
    """Computes parts where Ray has room, and yields the number and the content of each as it is done.

    Every machine must see the images and the model under the same names.

    Raises:
        InputError: there is no such cluster, an image does not read, without ``skip_bad``, or a machine has another
            model under this name.
    """
    scorer, numbers = _Scorer(config, info.weights_sha256, table), list(left)
    on_gpu = (config.device or "").startswith("cuda")
    for i, content in map_on_ray(config.ray, scorer, list(left.values()), on_gpu):
        yield numbers[i], content


class _Scorer:
    """Turns the names of a part's images into the part. It opens the model once."""

    def __init__(self, config: PredictConfig, weights_sha256: str, table: ScoreTable):
        self.config, self.weights_sha256, self.table = config, weights_sha256, table
        self.predictor: Predictor | None = None

    def __call__(self, files: Sequence[str]) -> bytes:
        if self.predictor is None:
            self.predictor = self.config.open()
        if self.predictor.info.weights_sha256 != self.weights_sha256:
            raise InputError(f"{self.config.model} has other weights on another machine of the cluster")
        return self.table.encode(predict_rows(self.config, self.predictor, files))
