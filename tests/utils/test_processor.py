import pytest

from mxa.training.config import TrainConfig
from mxa.utils import processor


@pytest.mark.parametrize(
    ("cores", "processes", "readers"), [(1, 1, 1), (2, 1, 2), (64, 1, 8), (16, 4, 4), (2, 4, 1), (4, 0, 4)]
)
def test_images_are_read_by_a_process_for_each_core(monkeypatch, tmp_path, cores, processes, readers):
    monkeypatch.setattr(processor, "core_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert processor.reader_count() == readers
    assert TrainConfig(tmp_path).workers == readers and TrainConfig(tmp_path, workers=0).workers == 0
