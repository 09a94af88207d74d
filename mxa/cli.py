"""The ``mxa`` command: a subcommand parses into one dataclass, calls one function and shows what it returns."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .commands import output
from .utils.allocator import keep_memory
from .utils.command_line import parse
from .utils.errors import InputError
from .utils.interrupt import raise_interrupts
from .utils.text import printable

__all__ = ["main"]


@dataclass(frozen=True)
class _Command:
    """A subcommand. Its function and dataclass are given by name, so that they are imported only when it runs."""

    module: str
    function: str
    config: str
    help: str
    positional: str | None = None
    recipes: bool = False
    show: str | None = None


_COMMANDS = {
    "prepare": _Command(
        "commands.prepare", "prepare", "PrepareConfig", "Write a collection as shards of small images."
    ),
    "data summary": _Command(
        "commands.summary", "summarize", "SummaryConfig", "Count what a collection's tables hold.", show="data_summary"
    ),
    "teach": _Command(
        "commands.teach", "teach", "TeachConfig", "Compute teachers' logits once, for train --teacher.", "teacher"
    ),
    "train": _Command("training.loop", "train", "TrainConfig", "Train or fine-tune a model.", recipes=True),
    "ablate": _Command(
        "commands.ablate", "ablate", "AblateConfig", "Compare training with and without MXA or a teacher.", recipes=True
    ),
    "evaluate": _Command(
        "evaluation.evaluate", "evaluate", "EvaluateConfig", "Score models and write a report.", "models"
    ),
    "calibrate": _Command(
        "evaluation.calibrate",
        "calibrate",
        "CalibrateConfig",
        "Fit temperatures and thresholds, saved beside the weights.",
        "model",
    ),
    "predict": _Command("commands.predict", "predict", "PredictConfig", "Predict the findings of images.", "files"),
    "explain": _Command(
        "commands.explain", "explain", "ExplainConfig", "Draw a model's boxes, attention and maps on images.", "files"
    ),
    "localize": _Command(
        "commands.localize",
        "localize",
        "LocalizeConfig",
        "Score a model's maps against boxes around findings.",
        "models",
    ),
    "export": _Command(
        "deployment.export", "export", "ExportConfig", "Export a model as ONNX, OpenVINO or torch.export.", "model"
    ),
    "convert": _Command(
        "commands.convert", "convert", "ConvertConfig", "Convert checkpoints of other programs.", "checkpoint"
    ),
    "publish": _Command(
        "commands.publish", "publish", "PublishConfig", "Publish a run on the Hugging Face Hub.", "run"
    ),
    "doctor": _Command("commands.doctor", "doctor", "DoctorConfig", "Say what this machine lacks for mxa."),
    "bench models": _Command(
        "commands.bench.models",
        "bench_models",
        "BenchModelsConfig",
        "Measure speed, memory and size beside peers.",
        show="bench",
    ),
    "bench runtimes": _Command(
        "commands.bench.runtimes",
        "bench_runtimes",
        "BenchRuntimesConfig",
        "Measure PyTorch, ONNX Runtime and OpenVINO on a CPU.",
        show="bench",
    ),
    "bench data": _Command(
        "commands.bench.data", "bench_data", "BenchDataConfig", "Measure loading beside TorchXRayVision.", show="bench"
    ),
    "bench task": _Command(
        "commands.bench.task",
        "bench_task",
        "BenchTaskConfig",
        "Measure what a teacher costs a training step.",
        show="bench",
    ),
    "bench layers": _Command(
        "commands.bench.layers",
        "bench_layers",
        "BenchLayersConfig",
        "Measure the ROI crop beside grid_sample.",
        show="bench",
    ),
}


def _usage() -> str:
    lines = [f"  mxa {name:14} {command.help}" for name, command in _COMMANDS.items()]
    return "usage: mxa COMMAND --help\n" + "\n".join(lines)


def _unknown(arguments: Sequence[str]) -> str:
    """Says which command is not known, and which was perhaps meant."""
    close = [difflib.get_close_matches(" ".join(arguments[:n]), _COMMANDS, n=1, cutoff=0.7) for n in (2, 1)]
    meant = next((f": perhaps mxa {found[0]}" for found in close if found), "")
    return f"no command {printable(arguments[0])}{meant}"


def _module(command: _Command) -> ModuleType:
    return importlib.import_module(f".{command.module}", __package__)


def _plain_warnings() -> Callable[..., None]:
    """Makes a function that shows each warning once, as one line."""
    seen = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"warning: {printable(message)}", file=sys.stderr)

    return show


class _Lines(logging.Formatter):
    """Shows a log entry as one line, whatever names it holds."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; bad input ends it with one line on stderr and a status that is not 0."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        from .commands.doctor import version_line

        print(version_line())
        return
    name = next((n for n in _COMMANDS if arguments[: len(n.split())] == n.split()), None)
    if name is None:
        wanted = arguments in (["--help"], ["-h"])
        if arguments and not wanted:
            print(f"mxa: {_unknown(arguments)}", file=sys.stderr)
        print(_usage(), file=sys.stdout if wanted else sys.stderr)
        sys.exit(0 if wanted else 2)
    command = _COMMANDS[name]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    logging.basicConfig(handlers=[handler])
    first = os.environ.get("RANK", "0") == "0"  # torchrun's first process logs for all
    logging.getLogger("mxa").setLevel(logging.INFO if first else logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _plain_warnings()
            kind = getattr(_module(command), command.config)
            recipes = Path(__file__).parent / "recipes" if command.recipes else None
            rest = arguments[len(name.split()) :]
            config = parse(kind, rest, f"mxa {name}", command.help, command.positional, recipes)
            function = getattr(_module(command), command.function)
            raise_interrupts()
            keep_memory()
            result = function(config)
            getattr(output, command.show or command.function)(config, result)
            sys.stdout.flush()
    except BrokenPipeError:  # such as `mxa predict | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes as it ends
        sys.exit(141)
    except KeyboardInterrupt:
        print(f"mxa {name}: stopped", file=sys.stderr)
        sys.exit(130)
    except (InputError, OSError) as error:  # OSError: such as a folder that cannot be made, or a full disk
        if os.environ.get("MXA_DEBUG"):
            raise
        sys.exit(f"mxa {name}: {printable(error)}")
