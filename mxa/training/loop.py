"""Training and fine-tuning: one loop for every model, collection and starting point."""

from __future__ import annotations

import copy
import csv
import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.utils.summary import trim_summary, update_summary
from torch import nn
from torch.utils.data import DataLoader

from .. import __version__
from ..data import CXRDataset, create_transform, data_config, make_loader
from ..data.dataset import derive_seed
from ..data.loader import balanced_shares
from ..evaluation.inference import predict_logits
from ..metrics import macro_auroc, micro_auroc
from ..models.hub import WEIGHTS_FILE
from ..models.weights import label_names, save_pretrained
from ..task import masked_bce_with_logits
from ..utils.config import group, read_yaml_file, write_yaml
from ..utils.distributed import all_gather, all_reduce, any_process, barrier, processes, rank, world_size
from ..utils.errors import InputError, require
from ..utils.files import alone_in, write_text
from ..utils.json_files import to_json
from .checkpoint import check_state, load_checkpoint, save_checkpoint
from .checks import check_bad, check_files, check_labels, check_losses, few_positives, fingerprint, stack_losses
from .config import (
    AugmentConfig,
    RunningConfig,
    TrainConfig,
    check_config,
    check_same_run,
    local_config,
    plain_config,
)
from .engine import AMP_TYPES, Engine, deterministic, prepare_model
from .progress import TrainProgress
from .start import build_model, create_task, freeze, open_boxes, start_weights, suggest_start, with_labels

__all__ = ["TrainConfig", "build_model", "fit", "train"]

_logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains on a collection's training split; keeps the best epoch on its validation split, with boxes the last one.

    Under ``torchrun`` every process calls it.

    Returns:
        The summary that ``fit`` returns.

    Raises:
        InputError: bad input; nothing is written then.
    """
    with processes(config.device):
        check_config(config)
        config = with_labels(config.resolved())
        return fit(config, config.open("train"), config.open("val"))


def fit(config: TrainConfig, train_set: CXRDataset, val_set: CXRDataset | None = None) -> dict[str, Any]:
    """Trains on one dataset; without a validation set the last epoch's weights are kept.

    Every random choice is a function of (seed, epoch, step or index), so that a run that was killed and resumed ends
    with the weights of one that was not. SIGTERM writes a checkpoint and ends the training. The datasets keep their own
    settings.

    Returns:
        What ``summary.json`` holds: ``epoch``, ``macro_auc`` and ``loss`` (validation) of the weights that are kept,
        ``epochs`` done, ``seconds``, ``images_per_second``, ``device``, ``processes``, ``bad_images`` (names),
        versions; ``stopped``, None or why it ended early (``"patience"``, ``"SIGTERM"``); ``splits_sha256`` where mxa
        has cut the splits; and ``output``.

    Raises:
        InputError: bad input, or a loss that is not finite.
    """
    with processes(config.device) as device, deterministic(config.deterministic):
        return _fit(config, train_set, val_set, device)


def _fit(
    config: TrainConfig, train_set: CXRDataset, val_set: CXRDataset | None, device: torch.device
) -> dict[str, Any]:
    share = config.grad_accum * world_size()  # micro-batches of a global batch
    micro_batch = min(config.batch_size, len(train_set)) // share
    if micro_batch < 2:
        raise InputError(
            f"{share} micro-batches (--grad-accum x processes) need two images each, for batch norm; --batch-size is "
            f"{config.batch_size} and the training split has {len(train_set)}: use fewer"
        )
    if val_set is not None and len(val_set) < world_size():
        raise InputError(f"validation needs {world_size()} images at least, got {len(val_set)}")
    check_labels(train_set)
    if val_set is not None:
        check_files(val_set)
        if config.boxes is None and config.eval_metric == "macro_auc" and (few := few_positives(val_set)):
            _logger.warning(
                "the validation score that keeps an epoch counts labels with few positives: %s; --eval-metric loss "
                "counts every image alike",
                few,
            )
    run, labels = Path(config.output), train_set.labels
    torch.manual_seed(config.seed)
    model = build_model(config, labels)
    filled = start_weights(config, model)
    suggest_start(config, len(train_set))
    frozen = freeze(model, filled) if config.freeze else []
    preprocessing = data_config(model, config.img_size)
    model = prepare_model(config, model, device)
    boxed = open_boxes(config, model, train_set)
    shares = balanced_shares(train_set.records.targets, train_set.records.patients) if config.sampler else None
    task, train_set, teacher_metadata = create_task(config, model, train_set, preprocessing)

    train_set = copy.copy(train_set)  # so that the caller's keeps its own settings
    train_set.seed, train_set.on_bad = config.seed, "replace"
    transform = create_transform(preprocessing, is_training=True, **group(config, AugmentConfig))
    loader = make_loader(
        train_set, transform, micro_batch, config.workers, is_training=True, device=device, shares=shares
    )
    box_loader = None
    if boxed is not None:
        size = max(min(micro_batch, len(boxed) // world_size()), 1)
        box_loader = make_loader(boxed, transform, size, config.workers, is_training=True, device=device)
    val_loader = None
    if val_set is not None:
        mine = type(val_set)(val_set.records.subset(np.array_split(np.arange(len(val_set)), world_size())[rank()]))
        whole = create_transform(preprocessing)
        val_loader = make_loader(mine, whole, 2 * micro_batch, config.workers, device=device)

    steps = len(loader) // config.grad_accum
    engine = Engine(config, task, steps, frozen)
    best = {"epoch": -1, "macro_auc": math.nan, "loss": math.nan}
    state = {"epoch": 0, "step": 0, "losses": [], "best": best, "seconds": 0.0}
    same = fingerprint(train_set, boxed, teacher_metadata, config.workers)
    if config.resume and (saved := load_checkpoint(run)) is not None:
        check_state(saved, run, len(train_set))
        check_same_run(config, saved["config"])
        if changed := [what for what, value in same.items() if saved["same"].get(what, value) != value]:
            raise InputError(f"--resume: other {', '.join(changed)} than the run had: put them back, or start anew")
        try:
            engine.load_state_dict(saved)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            raise InputError(f"the checkpoint in {run} is of another model: train again in another --output") from None
        state = {k: saved[k] for k in state}
        train_set.bad[saved["bad"]] = True
        at = f"epoch {state['epoch'] + 1} step {state['step']}" if state["epoch"] < config.epochs else "its end"
        _logger.info("resumed from %s", at)
    elif config.resume and (run / "config.yaml").is_file():
        check_same_run(config, read_yaml_file(run / "config.yaml"))
    elif config.resume:
        _logger.info("%s holds no run to resume: starting", run)

    barrier()  # all have looked into the folder before the first writes to it
    writes = rank() == 0
    with alone_in(run, "mxa train") if writes else nullcontext():
        training = _Training(
            config, engine, train_set, loader, box_loader, val_set, val_loader, state, same, teacher_metadata
        )
        return training.run()


@dataclass
class _Training:
    """A training from a state on; the first process writes the run folder."""

    config: TrainConfig
    engine: Engine
    train_set: CXRDataset
    loader: DataLoader
    box_loader: DataLoader | None
    val_set: CXRDataset | None
    val_loader: DataLoader | None
    state: dict[str, Any]
    same: dict[str, Any]
    teacher_metadata: dict[str, Any]

    def __post_init__(self) -> None:
        self.writes, self.folder = rank() == 0, Path(self.config.output)
        self.settings = plain_config(self.config)
        self.started = time.monotonic() - self.state["seconds"]
        self.board: Any = None
        if self.box_loader is not None:
            done = self.state["epoch"] * self.engine.steps + self.state["step"]
            self.box_batches = _endless(self.box_loader, -(-done // self.config.box_every))

    def run(self) -> dict[str, Any]:
        """Trains to the end, or until something stops it; returns the summary."""
        epochs, stopped = self.config.epochs, None
        self.board = _board(self.config, self.folder, self.state["epoch"]) if self.writes else None
        if self.writes:
            write_text(self.folder / "config.yaml", write_yaml(self.settings))
            if local := local_config(self.config):
                write_text(self.folder / "local.yaml", write_yaml(local))
            if self.teacher_metadata:
                write_text(self.folder / "teacher.json", to_json(self.teacher_metadata, 1) + "\n")
            _trim_log(self.folder / "log.csv", self.state["epoch"])
            if self.state["best"]["epoch"] >= 0 and not (self.folder / WEIGHTS_FILE).is_file():
                raise InputError(
                    f"{self.folder} has lost its {WEIGHTS_FILE}: put it back, or train in another --output"
                )
        shown = TrainProgress(epochs, self.engine.steps, self.state["epoch"], hidden=not self.writes)
        with shown as progress, _Terminated() as terminated:
            for epoch in range(self.state["epoch"], epochs):
                stopped = "patience" if self._waited_long(epoch) else self._epoch(epoch, progress, terminated)
                if stopped:
                    break
        return self._summary(stopped)

    def _waited_long(self, epoch: int) -> bool:
        patience, best = self.config.patience, self.state["best"]["epoch"]
        return bool(patience) and self.val_loader is not None and epoch - best > patience

    def _epoch(self, epoch: int, progress: TrainProgress, terminated: _Terminated) -> str | None:
        """Trains one epoch from its next step on; returns why it stopped in the middle, if it did."""
        config, engine, loader = self.config, self.engine, self.loader
        steps, device = engine.steps, engine.device
        every = 1 if device.type == "cpu" else 10  # steps between two looks at the loss, for which a GPU must wait
        engine.start_epoch()
        losses = list(self.state["losses"])
        checked = len(losses)  # those of a resumed epoch were checked before they were saved
        batches = _batches(loader, epoch, self.state["step"] * config.grad_accum)
        for step in range(self.state["step"], steps):
            torch.manual_seed(derive_seed(config.seed, epoch, step, rank()))
            join = self.box_loader is not None and (epoch * steps + step) % config.box_every == 0
            boxed = [next(self.box_batches)] if join else ()
            losses.append(engine.step(itertools.islice(batches, config.grad_accum), epoch, step, boxed))
            last = step == steps - 1
            due = not last and config.checkpoint_steps and (step + 1) % config.checkpoint_steps == 0
            if due or last or step % every == 0:
                check_losses(losses[checked:], checked, epoch, loader, config.grad_accum, device)
                checked = len(losses)
                stopped = any_process(terminated.now, device)
                if due or stopped:
                    self._pause(epoch, losses)
                if stopped:
                    return "SIGTERM"
            if step % 10 == 0 or last:
                check_bad(self.train_set, world_size())
                progress.step(epoch, step, losses[-1].item(), engine.lr)
        self._end_epoch(epoch, losses, progress)
        return None

    def _end_epoch(self, epoch: int, losses: list[torch.Tensor], progress: TrainProgress) -> None:
        """Validates, keeps the weights if they are to be kept, logs and saves."""
        engine, log = self.engine, self.folder / "log.csv"
        engine.share_statistics()
        scores = {}
        if self.val_loader is not None:
            scores = _validate(engine.eval_model, self.val_loader, self.val_set, AMP_TYPES[self.config.amp])
        mean_loss = float(all_reduce(stack_losses(losses, engine.device).mean()) / world_size())
        best, metric = self.state["best"], self.config.eval_metric
        newest = self.val_loader is None or self.box_loader is not None  # the score says nothing about places
        score = {name: scores.get(name, math.nan) for name in ("macro_auc", "loss")}
        better = score[metric] < best[metric] if metric == "loss" else score[metric] > best[metric]
        if newest or math.isnan(best[metric]) or better:
            best = {"epoch": epoch, **score}
            if self.writes:
                save_pretrained(engine.eval_model, self.folder)
        self.state = {"epoch": epoch + 1, "step": 0, "losses": [], "best": best, "seconds": self._seconds()}
        if self.writes:
            update_summary(epoch, {"loss": mean_loss}, scores, str(log), lr=engine.lr)
        if self.board is not None:
            rows = {"train/loss": mean_loss, "lr": engine.lr, **{f"val/{k}": v for k, v in scores.items()}}
            for name, value in rows.items():
                self.board.add_scalar(name, value, epoch)
            self.board.flush()
        self._save()
        progress.epoch(epoch, mean_loss, scores)

    def _pause(self, epoch: int, losses: list[torch.Tensor]) -> None:
        """Saves in the middle of an epoch."""
        shared = (all_reduce(stack_losses(losses, self.engine.device)) / world_size()).tolist()
        spent = {"step": len(losses), "losses": shared, "seconds": self._seconds()}
        self.state = {**self.state, "epoch": epoch, **spent}
        self._save()

    def _save(self) -> None:
        self._share_bad()
        if self.writes:
            metadata = {
                "labels": label_names(self.engine.model),
                "config": self.settings,
                "same": self.same,
                "bad": self.train_set.bad.nonzero().flatten().tolist(),
            }
            save_checkpoint({**self.engine.state_dict(), **self.state, **metadata}, self.folder)

    def _share_bad(self) -> None:
        self.train_set.bad |= (all_reduce(self.train_set.bad.to(self.engine.device, torch.float32)) > 0).cpu()

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _summary(self, stopped: str | None) -> dict[str, Any]:
        self._share_bad()
        state, device = self.state, self.engine.device
        done = state["epoch"] * self.engine.steps + state["step"]
        batch = self.loader.batch_size * self.config.grad_accum * world_size()
        summary = {
            **state["best"],
            "epochs": state["epoch"],
            "seconds": round(state["seconds"], 1),
            "images_per_second": round(done * batch / state["seconds"], 1) if done else None,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": world_size(),
            "bad_images": self.train_set.bad_paths(),
            "stopped": stopped,
            "versions": {"mxa": __version__, "torch": torch.__version__, "timm": timm.__version__},
        }
        if cut := self.train_set.records.cut:
            summary["splits_sha256"] = cut
        if self.writes:
            write_text(self.folder / "summary.json", to_json(_without_nan(summary), 1) + "\n")
        return {**summary, "output": self.folder}


def _trim_log(path: Path, epoch: int) -> None:
    """Drops the rows of a log from an epoch on."""
    try:
        trim_summary(str(path), epoch)
    except (csv.Error, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: delete it, and the run goes on with a new one") from None


class _Terminated:
    """Notes a SIGTERM inside the block, of which the process would die; only in the main thread, which gets signals."""

    now = False

    def __enter__(self) -> _Terminated:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *unused: Any) -> None:
        self.now = True

    def __exit__(self, *unused: Any) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)


def _board(config: RunningConfig, run: Path, first: int) -> Any:
    """A writer for TensorBoard, where one is asked for."""
    if not config.tensorboard:
        return None
    require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=first)


def _validate(model: nn.Module, loader: DataLoader, whole: CXRDataset, amp: torch.dtype | None) -> dict[str, float]:
    """Scores all validation images, of which the loader has this process's share."""
    logits, targets = all_gather(predict_logits(model, loader, amp)), whole.records.targets
    if not np.isfinite(logits).all():
        raise InputError("the outputs on the validation split are not finite: lower --lr and start again")
    loss = masked_bce_with_logits(torch.from_numpy(logits), torch.from_numpy(targets))
    loss = math.nan if np.isnan(targets).all() else float(loss)
    scores = {"macro_auc": macro_auroc(logits, targets), "micro_auc": micro_auroc(logits, targets)}
    return {"loss": loss, **scores}


def _batches(loader: DataLoader, epoch: int, skip: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch's batches from the ``skip``-th on."""
    loader.dataset.set_epoch(epoch)
    loader.skip = skip
    return iter(loader)


def _endless(loader: DataLoader, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches from the ``start``-th on, pass after pass."""
    done, skip = divmod(start, len(loader))
    for number in itertools.count(done):
        yield from _batches(loader, number, skip)
        skip = 0


def _without_nan(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in summary.items()}
