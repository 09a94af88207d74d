"""``mxa`` with a model of a few lines, so that a process starts fast and imports no PyTorch.

Its logits depend on what is computed together, far more than those of a real model do: rows of other batches differ.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from mxa.deployment.predictor import ModelInfo, Predictor
from mxa.evaluation.calibration import Calibration
from mxa.metrics.operating import OPERATING_POINTS

LABELS = ("Edema", "Mass", "Bright")


def fake_predictor(model: str = "fake", device: str | None = None, runtime: str = "onnx") -> Predictor:
    def run(planes: np.ndarray) -> np.ndarray:
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
        pixels = planes.astype(np.float32).reshape(len(planes), -1)
        logits = np.stack([pixels.mean(1) / 64 - 2, pixels.std(1) / 64, pixels[:, 0] / 64 - 2], 1)
        if model == "damaged":
            logits[0, 1] = np.nan
        return logits + np.float32(len(planes) / 1000)

    thresholds = {point: {"Bright": 0.5, "Mass": 0.6} for point in OPERATING_POINTS}
    calibration = None if model == "plain" else Calibration({"Bright": 2.0}, thresholds)
    sha256 = "1" * 64 if model == "other" else "0" * 64
    runtime = "onnx" if runtime == "auto" else runtime
    return Predictor(ModelInfo(model, LABELS, (24, 32), "bilinear", sha256, calibration), run, runtime)


def peak_memory() -> float:
    """Largest resident memory that this process has had, in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    from mxa import cli
    from mxa.commands.predict import files as predict_files
    from mxa.deployment import runtimes

    if "FAKE_FILE_SIZE" in os.environ:
        import resource

        limit = int(os.environ["FAKE_FILE_SIZE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def opened(*args, **kwargs):
        print(f"memory at first: {peak_memory()}")
        return fake_predictor(*args, **kwargs)

    runtimes.open_predictor = opened
    predict_files.IMAGES_OF_A_PART = int(os.environ.get("FAKE_PART", predict_files.IMAGES_OF_A_PART))
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = end.code
    print(f"memory at last: {peak_memory()}")
    heavy = [name for name in ("torch", "timm", "pandas", "torchvision", "matplotlib") if name in sys.modules]
    print(f"imported: {heavy}", flush=True)
    sys.exit(status)
