"""What defines a training run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..data.config import DataConfig, absolute_root
from ..data.names import OWN, Collection, is_url
from ..utils.config import read_yaml
from ..utils.errors import InputError
from ..utils.processor import reader_count

__all__ = [
    "AugmentConfig",
    "BoxConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunningConfig",
    "TrainConfig",
    "check_config",
    "check_same_run",
    "local_config",
    "model_arguments",
    "plain_config",
    "read_mapping",
    "without_folders",
]


@dataclass(kw_only=True)
class ModelConfig:
    """Which network, and what it starts from."""

    model: str = "efficientvit_ml_m0_mxa"
    """Any timm model name."""
    model_args: str | dict | None = None
    """Arguments of the model, as YAML: "mxa_roi_head: mean, mxa_init_values: 0.0"."""
    img_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or its height and width; the model's own by default."""
    init: str | None = None
    """Start from these weights: a timm name with weights, a run folder, a file, or, for --model densenet121 (or
    resnet50), TorchXRayVision's as xrv:NAME or xrv:FILE."""
    freeze: Literal["backbone"] | None = None
    """Train only what --init did not fill, and the head."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    drop_path_rate: float | None = None
    """Stochastic depth, for models that have it."""
    finding_head: bool = False
    """Add a finding head: a heat map and a box for each label (docs/layers.md)."""


@dataclass(kw_only=True)
class LossConfig:
    """What it learns from: the loss of the labels, and a teacher."""

    loss: Literal["bce", "asl", "poly", "twoway", "zlpr", "db"] = "bce"
    """The labels' loss, by timm's names; masked labels count in none."""
    pos_weight: str | dict | None = None
    """Weights of positives in the loss bce: balanced, negatives by positives of the training split; or by label, as
    "Hernia: 10, Mass: 2", all others 1."""
    teacher: str | None = None
    """Distil from it: xrv:NAME or xrv:FILE (TorchXRayVision), a timm name, a run folder, or what mxa teach wrote."""
    teacher_sha256: str | None = None
    """Digest that the teacher's file must have."""
    alpha: float = 0.5
    """Weight of the teacher's loss beside that of the labels, with --teacher."""
    temperature: float = 1.0
    """Of teacher and student in the teacher's loss."""


@dataclass(kw_only=True)
class BoxConfig:
    """How it learns where findings are, with --boxes."""

    boxes_data: Collection | None = None
    """Collection of the images that --boxes are of; that of the labels by default."""
    boxes_root: str | None = None
    """Its folder."""
    boxes_reduce: int | None = None
    """Reduce its images to this side in pixels first, to the sharpness of the others; never enlarges."""
    box_weight: float = 1.0
    """Weight of the loss of boxes beside that of the labels."""
    box_every: int = 1
    """A batch of images with boxes joins every so many steps."""


@dataclass(kw_only=True)
class OptimConfig:
    """How its weights change."""

    epochs: int = 20
    """Passes over the training split."""
    eval_metric: Literal["macro_auc", "loss"] = "macro_auc"
    """Validation score of the epoch that is kept: macro_auc counts each label alike, be its positives ever so few; loss
    counts each image alike."""
    patience: int | None = None
    """Stop when the validation score has not become better for so many epochs."""
    batch_size: int = 32
    """Images of one step, over all its micro-batches and processes."""
    sampler: Literal["balanced"] | None = None
    """balanced: draw a label, a patient who has it, and an image of theirs, with replacement; by default every image
    comes once an epoch."""
    mixup: float = 0.0
    """Mix each image and its labels with those of another, by a share from Beta(mixup, mixup); 0 for never."""
    grad_accum: int = 1
    """Micro-batches of a step, one after the other, where its images do not fit into memory at once."""
    opt: str = "adamw"
    """Any timm optimizer."""
    lr: float = 1e-3
    """Peak learning rate; a linear warm-up leads to it, a cosine to min_lr follows."""
    min_lr: float = 1e-5
    """Learning rate at the end."""
    warmup_epochs: int = 1
    """First epochs, in which the learning rate rises."""
    cooldown_epochs: int = 0
    """Last epochs, at min_lr."""
    weight_decay: float = 0.05
    """Of the optimizer; not of biases and norms."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one below."""
    agc: float | None = None
    """Adaptive gradient clipping: the largest share of a weight's norm that its gradient may have; not in the head."""
    ema: float | None = None
    """Decay of an average of the weights, which is what is validated and kept; it warms up."""
    amp: Literal["bf16", "fp16"] | None = None
    """Autocast; fp16 scales the loss."""
    compile: bool = False
    """torch.compile."""
    channels_last: bool = False
    """Channels-last memory format."""
    grad_checkpointing: bool = False
    """Keep fewer activations and compute them again, for models that can."""
    sync_bn: bool = False
    """Batch norms take their statistics of all processes (CUDA)."""


@dataclass(kw_only=True)
class AugmentConfig:
    """How the images of training vary."""

    augment: Literal["crop", "paper", "better"] = "crop"
    """crop, what the four below say; or a set of the paper's, for which they do not count (docs/training.md)."""
    scale: tuple[float, float] = (0.8, 1.0)
    """Range of the area that the random crop keeps."""
    ratio: tuple[float, float] = (0.9, 1.1)
    """Range of the crop's change of aspect ratio."""
    rotation: float = 10.0
    """Largest random rotation, in degrees."""
    hflip: float = 0.0
    """Probability of a horizontal flip; it mirrors the heart."""


@dataclass(kw_only=True)
class RunningConfig:
    """Where it runs, and how a run goes on."""

    seed: int = 0
    """Of the first weights, the order, augmentation and dropout."""
    workers: int = field(default_factory=reader_count)
    """Worker processes that read images; by default one for each core, at most 8."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""
    deterministic: bool = False
    """Only operations that give the same bits every time; on the CPU they do anyhow."""
    tensorboard: bool = False
    """Write the log for TensorBoard too, into output/tensorboard."""
    checkpoint_steps: int | None = None
    """Write a checkpoint after every so many steps of an epoch, not only at its end."""
    resume: Literal["auto"] | None = None
    """auto: go on from the checkpoint in output, start where there is none, do nothing where the run is finished."""


@dataclass
class TrainConfig(ModelConfig, DataConfig, LossConfig, BoxConfig, OptimConfig, AugmentConfig, RunningConfig):
    """What defines a training run; a YAML file for ``--config`` holds what differs from the defaults.

    The fields are those of its groups; a function that needs one group is annotated with it.
    """

    output: Path
    """Run folder: config.yaml, log.csv, checkpoint.pt, model.safetensors, config.json, summary.json."""


_NOT_ARGUMENTS = (
    *("img_size", "num_classes", "pretrained", "checkpoint_path"),
    *("pretrained_cfg", "pretrained_cfg_overlay", "label_names"),
)

_OF_FILES = (
    "model",
    "model_args",
    "init",
    "teacher",
    "boxes",
    "boxes_root",
    "labels_from",
)  # settings that may name a file or a folder
_BOUNDS = {
    "epochs": (1, 100_000),
    "batch_size": (2, 100_000),
    "workers": (0, 1000),
    "seed": (0, 2**32 - 1),
    "img_size": (32, 10_000),
    "lr": (1e-12, 1000),
    "min_lr": (0, 1000),
    "warmup_epochs": (0, 100_000),
    "cooldown_epochs": (0, 100_000),
    "agc": (1e-6, 100),
    "ema": (0, 1),
    "mixup": (0, 100),
    "weight_decay": (0, 1000),
    "layer_decay": (0.01, 1),
    "alpha": (0, 1),
    "temperature": (1e-3, 1000),
    "boxes_reduce": (16, 10_000),
    "box_weight": (0, 1e6),
    "box_every": (1, 10**6),
    "patience": (1, 100_000),
    "grad_accum": (1, 100_000),
    "checkpoint_steps": (1, 10**9),
    "drop_rate": (0, 0.99),
    "drop_path_rate": (0, 0.99),
    "scale": (0.01, 1),
    "ratio": (0.1, 10),
    "rotation": (0, 180),
    "hflip": (0, 1),
}
_RANGES = ("scale", "ratio")


def check_config(config: TrainConfig) -> None:
    """Refuses what cannot be trained, before anything is read or written.

    Raises:
        InputError: a value out of range, options that need or exclude each other, or a folder in the way.
    """
    from timm.optim import list_optimizers

    from ..utils.distributed import world_size

    run = Path(config.output)
    if run.exists() and not run.is_dir():
        raise InputError(f"--output {run} is a file: give a folder")
    held = [name for name in ("checkpoint.pt", "model.safetensors", "config.json") if (run / name).exists()]
    if held and not (config.resume and (run / "config.yaml").exists()):
        raise InputError(f"{run} holds {held[0]}: add --resume auto to go on with a run, or give another --output")
    model_arguments(config)
    if "." in config.model and ":" not in config.model:
        raise InputError(
            f"--model {config.model} names weights: give --init {config.model} and --model without its tag"
        )
    if config.freeze and not config.init:
        raise InputError("--freeze backbone needs --init: random weights are not worth keeping")
    if config.pos_weight is not None and config.loss != "bce":
        raise InputError(f"--pos-weight goes with --loss bce, not with {config.loss}")
    if config.mixup and (config.teacher or "").endswith(".parquet"):
        raise InputError(
            f"--mixup makes images that the teacher of {config.teacher} has not seen: give a live one, or leave it out"
        )
    _check_boxes(config)
    if config.opt not in list_optimizers():
        raise InputError(f"unknown optimizer {config.opt!r}: see timm.optim.list_optimizers()")
    for name, (low, high) in _BOUNDS.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                raise InputError(f"--{name.replace('_', '-')} must be between {low} and {high}, got {value}")
        if name in _RANGES and value[0] > value[1]:
            raise InputError(f"--{name} must be a range, the lower end first, got {value}")
    if config.teacher_sha256 and (config.teacher is None or config.teacher.endswith(".parquet")):
        raise InputError("--teacher-sha256 is that of a file of weights: give it with --teacher")
    shares = config.grad_accum * world_size()
    if config.batch_size % shares:
        raise InputError(f"--batch-size {config.batch_size} is not divisible by {shares} (--grad-accum x processes)")
    if config.batch_size < 2 * shares:
        raise InputError(
            f"--batch-size {config.batch_size} leaves one image to each of {shares} micro-batches (--grad-accum x "
            f"processes), and batch norm needs two: give --batch-size {2 * shares} or more"
        )
    if config.cooldown_epochs >= config.epochs:
        raise InputError("--cooldown-epochs must be fewer than --epochs")


def _check_boxes(config: TrainConfig) -> None:
    """Refuses options of boxes that need --boxes, or do not go with them."""
    if config.boxes is None:
        defaults = {field.name: field.default for field in dataclasses.fields(BoxConfig)}
        if given := [name for name, value in defaults.items() if getattr(config, name) != value]:
            raise InputError(f"--{given[0].replace('_', '-')} goes with --boxes FILE, or --boxes own")
    elif config.augment != "crop":
        raise InputError(f"--boxes do not move with --augment {config.augment}: leave it out")
    elif config.patience:
        raise InputError("--patience waits for the score of labels, and --boxes keep the last epoch: drop one")
    if config.boxes_root is not None and config.boxes_data is None:
        raise InputError("--boxes-root needs --boxes-data: name the collection that is in it")


def model_arguments(config: ModelConfig) -> dict[str, Any]:
    """The model's arguments as a dict.

    Raises:
        InputError: they are not a YAML mapping, or ``mxa.models.config_file.check_arguments`` refuses one.
    """
    from ..models.config_file import check_arguments

    found = read_mapping(config.model_args or {}, "--model-args")
    if taken := set(_NOT_ARGUMENTS) & set(found):
        raise InputError(f"--model-args cannot set {', '.join(sorted(taken))}: see --img-size, --labels and --init")
    check_arguments(found, "--model-args")
    return found


def read_mapping(given: str | dict, what: str) -> dict[str, Any]:
    """Values by name, given as a dict or as YAML in one line.

    Raises:
        InputError: they are neither; the message names ``what``.
    """
    found = given
    if isinstance(found, str):
        try:
            found = read_yaml(found if found.strip().startswith("{") else f"{{{found}}}")
        except yaml.YAMLError:
            found = None
    if not isinstance(found, dict) or not all(isinstance(k, str) and v is not None for k, v in found.items()):
        raise InputError(f'{what} must be like "name: value, other: value", got {given!r}')
    return found


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration as YAML and JSON have it, without what is of this machine: it can be given away."""
    values = _plain(dataclasses.asdict(config))
    for name in ("output", "resume", "allow_pipe"):
        del values[name]
    local = not is_url(config.root or "") or re.match("(?:pipe|file):", config.root)
    return without_folders({**values, "root": None if local else config.root})


def local_config(config: TrainConfig) -> dict[str, Any]:
    """What ``plain_config`` leaves out; its root means the same from every folder. A ``pipe:`` is never written."""
    plain = plain_config(config)
    values = _plain({"root": absolute_root(config.root), **{k: getattr(config, k) for k in _OF_FILES}})
    for name in ("boxes", "boxes_root", "labels_from"):
        values[name] = values[name] if values[name] in (None, OWN) else absolute_root(values[name])
    return {k: v for k, v in values.items() if v != plain[k] and not str(v).startswith("pipe:")}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as YAML and JSON have them."""
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the last part of every path in the settings that name files; names on the Hub stay whole."""
    return {k: _last_parts(v) if k in _OF_FILES else v for k, v in settings.items()}


def _last_parts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _last_parts(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_last_parts(v) for v in value]
    if not isinstance(value, str) or value.startswith("hf-hub:"):
        return value
    return re.sub(r"(xrv:)?(?:[A-Za-z][\w-]*:)?[^\s,\"'{}:]*[/\\]", r"\1", value)


def check_same_run(config: TrainConfig, saved: dict[str, Any]) -> None:
    """Refuses to go on with a run under other settings.

    Raises:
        InputError: a setting differs; the message names it.
    """
    free = ("root", "workers", "device", "tensorboard", "checkpoint_steps")
    saved = {**plain_config(TrainConfig(config.output)), **without_folders(saved)}
    changed = [k for k, v in plain_config(config).items() if k not in free and v != saved[k]]
    if changed:
        what = ", ".join(f"{k} was {saved[k]!r}" for k in changed)
        raise InputError(f"--resume must go on with the same settings ({what}): change them in a new --output")
