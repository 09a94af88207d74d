"""What ``mxa bench`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

__all__ = [
    "BenchCudaConfig",
    "BenchDataConfig",
    "BenchGrowthConfig",
    "BenchLayersConfig",
    "BenchModelsConfig",
    "BenchRuntimesConfig",
    "BenchScoresConfig",
    "BenchTaskConfig",
]


@dataclass
class BenchModelsConfig:
    """Compares models with peers: parameters, MACs, latency, training step and memory."""

    GOALS: ClassVar[str] = "goals for M5 with MXA over M5: 1.10 at batch 1, 1.05 at batch 32, 1.08 for a training step"
    models: tuple[str, ...] = ("efficientvit_ml_m5", "efficientvit_ml_m5_mxa")
    """Names of timm models (ours are registered there), or NAME: {argument: value}."""
    peers: tuple[str, ...] = ("efficientvit_m5",)
    """Names of timm models to compare with; the first is the reference of all ratios."""
    batch_size: int = 32
    """Images per batch, at least 2; latency is measured at 1 too."""
    img_size: int = 224
    """Side of the images in pixels."""
    num_classes: int = 14
    """Outputs of every model."""
    repeats: int = 20
    """Rounds; each times every model once."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    device: str = "cpu"
    """Where to run: "cpu", "cuda", "cuda:1"."""
    channels_last: bool = False
    """Lay images and weights out channels-last in memory."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


@dataclass
class BenchRuntimesConfig:
    """Compares what runs a model, from gray planes in memory to logits."""

    GOALS: ClassVar[str] = "goals in images/s over eager M5: deploy 1.25, onnx 1.85, openvino 2.0, int8 5"
    models: tuple[str, ...] = ("efficientvit_m5", "efficientvit_ml_m5_mxa", "densenet121")
    """Names of timm models; the first, as PyTorch runs it, is the reference of all ratios."""
    runtimes: tuple[str, ...] = ("eager", "deploy", "onnx", "openvino")
    """eager, deploy, onnx, openvino; with a precision as onnx-int8, openvino-bf16."""
    batch_size: int = 32
    """Images per batch; latency is measured at 1 too."""
    img_size: int = 224
    """Side of the images in pixels."""
    repeats: int = 10
    """Rounds; each times every contender once."""
    threads: int = 2
    """CPU threads of every runtime."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


@dataclass
class BenchDataConfig:
    """Compares loaders with TorchXRayVision's CheX_Dataset: images per second, start-up, memory of a worker."""

    GOALS: ClassVar[str] = "goal for files: 0.6 of libjpeg-turbo's images/s"
    root: str | None = None
    """CheXpert folder with train.csv; drawn JPEGs of CheXpert-small's size (390 x 320) by default."""
    images: int = 256
    """Images of an epoch."""
    img_size: int = 224
    """Side of the images that come out, in pixels."""
    repeats: int = 5
    """Rounds; each loads one epoch with every contender."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


@dataclass
class BenchTaskConfig:
    """Measures training steps with and without TorchXRayVision's DenseNet-121 (untrained) as the teacher."""

    models: tuple[str, ...] = ("efficientvit_ml_m5", "efficientvit_ml_m5_mxa")
    """Students: names of timm models."""
    batch_size: int = 32
    """Images of a step."""
    img_size: int = 224
    """Side of the images in pixels."""
    repeats: int = 10
    """Rounds; each times every step once."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    device: str = "cpu"
    """Where to run: "cpu", "cuda", "cuda:1"."""
    amp: Literal["bf16", "fp16"] | None = None
    """Autocast."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


@dataclass
class BenchLayersConfig:
    """Compares roi_resize with affine_grid and grid_sample at the map sizes of M5."""

    batch_sizes: tuple[int, ...] = (1, 32)
    """Maps per batch."""
    repeats: int = 20
    """Rounds; each times both once."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    device: str = "cpu"
    """Where to run: "cpu", "cuda", "cuda:1"."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


@dataclass
class BenchGrowthConfig:
    """Measures how the time and the memory of inference grow with the batch, the image and the threads."""

    models: tuple[str, ...] = ("efficientvit_ml_m0_mxa", "efficientvit_ml_m5_mxa")
    """Names of timm models."""
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Batches, of images of 224 px."""
    img_sizes: tuple[int, ...] = (128, 192, 256, 384, 512)
    """Sides of images in pixels, in batches of 8."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of CPU threads."""
    repeats: int = 3
    """Runs of each; the median counts."""
    output: Path | None = None
    """Folder for growth.json and growth.png."""


@dataclass
class BenchScoresConfig:
    """Measures a report with its intervals beside scikit-learn and torchmetrics, on made scores."""

    GOALS: ClassVar[str] = "goal for 100,000 images, 14 labels and 1,000 replicates: 60 s on two cores"
    rows: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of scored images, three to a patient."""
    labels: int = 14
    """Labels of each image."""
    replicates: int = 1_000
    """Bootstrap replicates of the report."""
    peer_replicates: int = 2
    """Replicates that the peers really compute; their time is scaled to all of them."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""


@dataclass
class BenchCudaConfig:
    """Measures on a GPU what MXA costs there, and whether anything waits for the host."""

    model: str = "efficientvit_ml_m5_mxa"
    """A model with MXA; the network without MXA is its name without _mxa."""
    batch_size: int = 128
    """Images per batch."""
    img_size: int = 224
    """Side of the images in pixels."""
    repeats: int = 20
    """Rounds; each times every contender once."""
    device: str = "cuda"
    """Where to run. On the CPU the same steps run, and say nothing about a GPU."""
    output: Path | None = None
    """JSON file to write configuration, environment and rows to."""
