"""``--ray`` of ``mxa predict`` and ``mxa prepare``: the bytes of one machine, with a process killed in the middle."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mxa.commands.predict import files as predict_files
from mxa.commands.predict.command import PredictConfig, predict
from mxa.commands.prepare import PrepareConfig, prepare
from mxa.utils.errors import InputError

from .fake_predictor import fake_predictor

pytestmark = pytest.mark.deploy


@dataclass
class Faked(PredictConfig):
    """Opens a model of a few lines, and notes in which process."""

    noted: Path | None = None
    seconds: float = 0.0

    def open(self):
        if self.noted:
            self.noted.mkdir(exist_ok=True)
            (self.noted / str(os.getpid())).touch()
        os.environ["FAKE_SECONDS"] = str(self.seconds)
        return fake_predictor(self.model)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with room for two processes."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    for module in (sys.modules[__name__], sys.modules[fake_predictor.__module__]):
        ray.cloudpickle.register_pickle_by_value(module)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(predict_files, "IMAGES_OF_A_PART", 8)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_the_bytes_are_those_of_one_process(cluster, images, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)  # names may be relative
    same = {"calibrated": "youden", "skip_bad": True, "batch_size": 4}
    alone = Faked((Path("images"),), "fake", output=tmp_path / f"alone{suffix}", workers=0, **same)
    shared = Faked((Path("images"),), "fake", output=tmp_path / f"shared{suffix}", ray="auto", **same)
    assert predict(alone) == predict(shared)
    assert alone.output.read_bytes() == shared.output.read_bytes()


def test_a_process_that_is_killed_is_replaced(cluster, images, tmp_path):
    same = {"skip_bad": True, "batch_size": 4}
    alone = Faked((images,), "fake", output=tmp_path / "alone.parquet", workers=0, **same)
    predict(alone)
    noted, parts = tmp_path / "noted", tmp_path / "shared.parquet.parts"
    shared = Faked((images,), "fake", output=tmp_path / "shared.parquet", ray="auto", noted=noted, seconds=1, **same)
    killed = []

    def kill() -> None:
        while len(list(parts.glob("part-*"))) < 2:
            time.sleep(0.05)
        killed.append(next(int(path.name) for path in noted.iterdir() if int(path.name) != os.getpid()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert predict(shared).images == 75
    killer.join()
    assert killed and len(list(noted.iterdir())) >= 3  # this process, the killed one, another one
    assert alone.output.read_bytes() == shared.output.read_bytes()


def test_what_ray_left_goes_on_without_it(cluster, images, tmp_path):
    config = Faked((images,), "fake", output=tmp_path / "a.csv", batch_size=4, ray="auto")
    with pytest.raises(InputError, match=r"013\.png\.png does not decode|zzz\.jpg"):
        predict(config)
    config.ray, config.workers, config.resume, config.skip_bad = None, 0, True, True
    assert predict(config).bad == 2
    whole = Faked((images,), "fake", output=tmp_path / "b.csv", batch_size=4, workers=0, skip_bad=True)
    predict(whole)
    assert config.output.read_bytes() == whole.output.read_bytes()


def test_another_model_on_another_machine_is_refused(cluster, images, tmp_path):
    @dataclass
    class Other(Faked):
        def open(self):
            self.model = "fake" if os.getpid() == here else "other"
            return super().open()

    here = os.getpid()
    with pytest.raises(InputError, match="other weights on another machine"):
        predict(Other((images / "000.png",), "fake", output=tmp_path / "a.csv", ray="auto"))


def test_shards_are_those_of_one_machine(cluster, made_nih, tmp_path):
    root = str(made_nih())
    for name, how in {"alone": {"workers": 1}, "shared": {"ray": "auto"}}.items():
        prepare(PrepareConfig(tmp_path / name, data="nih", root=root, shard_size=5, **how))
    alone, shared = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("alone", "shared")
    )
    assert alone == shared and len(alone) > 5


def test_no_cluster_is_one_line(cluster, images, tmp_path):
    cluster.shutdown()
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster answers there") as error:
        predict(Faked((images / "000.png",), "fake", output=tmp_path / "a.csv", ray="127.0.0.1:1"))
    assert "\n" not in str(error.value)
