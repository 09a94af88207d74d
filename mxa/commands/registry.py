"""The commands by name; what each of them needs is imported when it runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["COMMANDS", "Command", "named"]

_RECIPES = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class Command:
    """A command.

    Its function and the dataclass of its options are given as ``module.name`` within mxa. The modules of the
    dataclasses import nothing that takes long, so that help and errors of options come at once.
    """

    function: str
    config: str
    help: str
    positional: str | None = None
    """The field that needs no option's name."""
    recipes: Path | None = None
    """Folder of what it takes as --recipe."""
    show: str | None = None
    """The function of ``commands.output`` for its result, where its name is another."""

    @property
    def shown_by(self) -> str:
        """The function of ``commands.output`` that shows its result."""
        return self.show or self.function.rpartition(".")[2]


COMMANDS = {
    "prepare": Command(
        "commands.prepare.prepare",
        "commands.config.PrepareConfig",
        "Write a collection as shards of small images.",
    ),
    "data summary": Command(
        "commands.summary.summarize",
        "commands.config.SummaryConfig",
        "Count what a collection's tables hold.",
        show="data_summary",
    ),
    "teach": Command(
        "commands.teach.teach",
        "commands.config.TeachConfig",
        "Compute teachers' logits once, for train --teacher.",
        "teacher",
    ),
    "train": Command(
        "training.loop.train",
        "training.config.TrainConfig",
        "Train or fine-tune a model.",
        recipes=_RECIPES,
    ),
    "ablate": Command(
        "commands.ablate.ablate",
        "commands.config.AblateConfig",
        "Compare training with and without MXA or a teacher.",
        recipes=_RECIPES,
    ),
    "evaluate": Command(
        "evaluation.evaluate.evaluate",
        "evaluation.config.EvaluateConfig",
        "Score models and write a report.",
        "models",
    ),
    "calibrate": Command(
        "evaluation.calibrate.calibrate",
        "evaluation.config.CalibrateConfig",
        "Fit temperatures and thresholds, saved beside the weights.",
        "model",
    ),
    "predict": Command(
        "commands.predict.command.predict",
        "commands.predict.config.PredictConfig",
        "Predict the findings of images.",
        "files",
    ),
    "explain": Command(
        "commands.explain.explain",
        "commands.config.ExplainConfig",
        "Draw a model's boxes, attention and maps on images.",
        "files",
    ),
    "localize": Command(
        "commands.localize.localize",
        "commands.config.LocalizeConfig",
        "Score a model's maps against boxes around findings.",
        "models",
    ),
    "export": Command(
        "deployment.export.export",
        "deployment.config.ExportConfig",
        "Export a model as ONNX, OpenVINO or torch.export.",
        "model",
    ),
    "convert": Command(
        "commands.convert.convert",
        "commands.config.ConvertConfig",
        "Convert checkpoints of other programs.",
        "checkpoint",
    ),
    "publish": Command(
        "commands.publish.publish",
        "commands.config.PublishConfig",
        "Publish a run on the Hugging Face Hub.",
        "run",
    ),
    "app": Command(
        "commands.app.serve.serve",
        "commands.config.AppConfig",
        "Serve a page that predicts and explains.",
        "models",
    ),
    "doctor": Command(
        "commands.doctor.doctor",
        "commands.doctor.DoctorConfig",
        "Say what this machine lacks for mxa.",
    ),
    "completion": Command(
        "commands.completion.completion",
        "commands.config.CompletionConfig",
        "Print what makes a shell complete mxa's commands.",
        "shell",
    ),
    "bench models": Command(
        "commands.bench.models.bench_models",
        "commands.bench.config.BenchModelsConfig",
        "Measure speed, memory and size beside peers.",
        show="bench",
    ),
    "bench runtimes": Command(
        "commands.bench.runtimes.bench_runtimes",
        "commands.bench.config.BenchRuntimesConfig",
        "Measure PyTorch, ONNX Runtime and OpenVINO on a CPU.",
        show="bench",
    ),
    "bench data": Command(
        "commands.bench.data.bench_data",
        "commands.bench.config.BenchDataConfig",
        "Measure loading beside TorchXRayVision.",
        show="bench",
    ),
    "bench task": Command(
        "commands.bench.task.bench_task",
        "commands.bench.config.BenchTaskConfig",
        "Measure what a teacher costs a training step.",
        show="bench",
    ),
    "bench layers": Command(
        "commands.bench.layers.bench_layers",
        "commands.bench.config.BenchLayersConfig",
        "Measure the ROI crop beside grid_sample.",
        show="bench",
    ),
    "bench growth": Command(
        "commands.bench.growth.bench_growth",
        "commands.bench.config.BenchGrowthConfig",
        "Measure how time and memory grow with batch, image and threads.",
        show="bench",
    ),
    "bench scores": Command(
        "commands.bench.scores.bench_scores",
        "commands.bench.config.BenchScoresConfig",
        "Measure reports beside scikit-learn and torchmetrics.",
        show="bench",
    ),
    "bench cuda": Command(
        "commands.bench.cuda.bench_cuda",
        "commands.bench.config.BenchCudaConfig",
        "Measure what MXA costs on a GPU.",
        show="bench",
    ),
}


def named(name: str) -> Any:
    """Imports what is called ``module.name`` within mxa."""
    module, _, inner = name.rpartition(".")
    return getattr(importlib.import_module(f"mxa.{module}"), inner)
