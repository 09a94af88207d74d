"""Training and fine-tuning: one loop for every model, collection and starting point."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from timm.utils.summary import trim_summary, update_summary
from torch import nn
from torch.utils.data import DataLoader

from . import __version__
from .checkpoint import atomic_write, load_checkpoint, save_checkpoint
from .data import CXRDataset, Records, create_dataset, create_transform, data_config, make_loader
from .data.dataset import derive_seed
from .engine import Engine, deterministic, prepare_model
from .errors import InputError, require
from .inference import predict_logits
from .metrics import macro_auroc, micro_auroc
from .models.weights import save_pretrained
from .processes import any_process, gather_rows, processes, rank_and_count, total
from .progress import TrainProgress
from .task import masked_bce_with_logits
from .train_config import AMP_TYPES, TrainConfig, check_config, check_same_run, plain_config
from .train_start import build_model, create_task, start_weights

__all__ = ["TrainConfig", "build_model", "fit", "train"]

_logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains on a collection's training part and keeps the weights of the best epoch on its validation part.

    Under ``torchrun`` every process calls it.

    Returns:
        The summary that ``fit`` returns.

    Raises:
        InputError: bad input; nothing is written then.
    """
    with processes(config.device):
        check_config(config)
        options = {k: getattr(config, k) for k in ("labels", "uncertain", "blank", "views", "merge", "columns")}
        train_set = create_dataset(config.data, config.root, "train", **options)
        val_set = create_dataset(config.data, config.root, "val", **options)
        return fit(config, train_set, val_set)


def fit(config: TrainConfig, train_set: CXRDataset, val_set: CXRDataset | None = None) -> dict[str, Any]:
    """Trains on one dataset; without a validation set the last epoch's weights are kept.

    Every random choice is a function of (seed, epoch, step or index), so that a run that was killed and resumed ends
    with the weights of one that was not. SIGTERM writes a checkpoint and ends the training.

    Returns:
        What ``summary.json`` holds: ``epoch`` and ``macro_auc`` of the weights that are kept, ``epochs`` done,
        ``seconds``, ``images_per_second``, ``device``, ``processes``, ``bad_images`` (names), versions; ``stopped``,
        None or why it ended early (``"patience"``, ``"SIGTERM"``); and ``output``.

    Raises:
        InputError: bad input, or a loss that is not finite.
    """
    with processes(config.device) as device, deterministic(config.deterministic):
        return _fit(config, train_set, val_set, device)


def _fit(
    config: TrainConfig, train_set: CXRDataset, val_set: CXRDataset | None, device: torch.device
) -> dict[str, Any]:
    rank, count = rank_and_count()
    share = config.grad_accum * count  # parts of a global batch
    if len(train_set) < 2 * share:
        raise InputError(f"training needs {2 * share} images at least, got {len(train_set)}")
    if val_set is not None and len(val_set) < count:
        raise InputError(f"validation needs {count} images at least, got {len(val_set)}")
    _check_labels(train_set)
    if val_set is not None:
        _check_files(val_set)
    run, labels = Path(config.output), train_set.labels
    torch.manual_seed(config.seed)
    model = build_model(config, labels)
    filled = start_weights(config, model)
    frozen = _freeze(model, filled) if config.freeze else []
    preprocessing = data_config(model, config.img_size)
    model = prepare_model(config, model, device)
    task, train_set, about_teacher = create_task(config, model, train_set, preprocessing)

    train_set.seed, train_set.on_bad = config.seed, "replace"
    augment = {k: getattr(config, k) for k in ("scale", "ratio", "rotation", "hflip", "augment")}
    transform = create_transform(preprocessing, is_training=True, **augment)
    part = min(config.batch_size, len(train_set)) // share
    loader = make_loader(train_set, transform, part, config.workers, is_training=True)
    val_loader = None
    if val_set is not None:
        mine = type(val_set)(val_set.records.subset(np.array_split(np.arange(len(val_set)), count)[rank]))
        val_loader = make_loader(mine, create_transform(preprocessing), 2 * part, config.workers)

    steps = len(loader) // config.grad_accum
    engine = Engine(config, task, steps, frozen)
    state = {"epoch": 0, "step": 0, "losses": [], "best": {"epoch": -1, "macro_auc": float("nan")}, "seconds": 0.0}
    settings = plain_config(config)
    if config.resume and (saved := load_checkpoint(run)):
        check_same_run(config, saved["config"])
        if tuple(saved["labels"]) != labels or saved["images"] != len(train_set):
            raise InputError(f"--resume: the run was trained on {saved['images']} images with other rows or labels")
        engine.load_state_dict(saved)
        state = {k: saved[k] for k in state}
        train_set.bad[saved["bad"]] = True
        _logger.info("resumed from epoch %d step %d", state["epoch"] + 1, state["step"])
    elif config.resume and (run / "config.yaml").is_file():
        check_same_run(config, yaml.safe_load((run / "config.yaml").read_text()))
    elif config.resume:
        _logger.info("%s holds no run to resume: starting", run)

    any_process(False, device)  # all have looked into the folder before the first writes to it
    writes = rank == 0
    board = _board(config, run, state["epoch"]) if writes else None
    if writes:
        run.mkdir(parents=True, exist_ok=True)
        _write_text(run / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        if about_teacher:
            _write_text(run / "teacher.json", json.dumps(about_teacher, indent=1) + "\n")
        trim_summary(str(run / "log.csv"), state["epoch"])

    def save() -> None:
        bad = total(train_set.bad.to(device, torch.float32))
        if writes:
            about = {"config": settings, "labels": labels, "images": len(train_set)}
            about["bad"] = bad.nonzero().flatten().tolist()
            save_checkpoint({**engine.state_dict(), **state, **about}, run)

    started, stopped = time.monotonic() - state["seconds"], None
    every = 1 if device.type == "cpu" else 10  # steps between two looks at the loss, for which a GPU must wait
    shown = TrainProgress(config.epochs, steps, state["epoch"], hidden=not writes)
    with shown as progress, _Terminated() as terminated:
        for epoch in range(state["epoch"], config.epochs):
            if config.patience and epoch - state["best"]["epoch"] > config.patience and val_loader is not None:
                stopped = "patience"
                break
            engine.start_epoch()
            start, losses = state["step"], list(state["losses"])
            batches = _batches(loader, epoch, start * config.grad_accum)
            for step in range(start, steps):
                torch.manual_seed(derive_seed(config.seed, epoch, step, rank))
                losses.append(engine.step(list(itertools.islice(batches, config.grad_accum)), epoch, step))
                last = step == steps - 1
                if (step - start) % every == every - 1 or last:
                    _check_losses(losses, step, epoch, loader, config.grad_accum)
                    stop = any_process(terminated.now, device)
                    if stop or (config.checkpoint_steps and (step + 1) % config.checkpoint_steps == 0 and not last):
                        spent = {"step": step + 1, "losses": [float(x) for x in losses]}
                        state |= {"epoch": epoch, **spent, "seconds": time.monotonic() - started}
                        save()
                    if stop:
                        stopped = "SIGTERM"
                        break
                if step % 10 == 0 or last:
                    _check_bad(train_set)
                    progress.step(epoch, step, losses[-1].item(), engine.lr)
            if stopped:
                break
            mean_loss = float(total(torch.tensor([float(x) for x in losses]).mean().to(device)) / count)
            engine.share_statistics()
            scores = _validate(engine.kept, val_loader, val_set, AMP_TYPES[config.amp]) if val_loader else {}
            score, best = scores.get("macro_auc", float("nan")), state["best"]
            if val_loader is None or math.isnan(best["macro_auc"]) or score > best["macro_auc"]:
                best = {"epoch": epoch, "macro_auc": score}
                if writes:
                    _save_weights(engine.kept, run)
            state = {"epoch": epoch + 1, "step": 0, "losses": [], "best": best, "seconds": time.monotonic() - started}
            if writes:
                update_summary(epoch, {"loss": mean_loss}, scores, str(run / "log.csv"), lr=engine.lr)
            if board is not None:
                rows = {"train/loss": mean_loss, "lr": engine.lr, **{f"val/{k}": v for k, v in scores.items()}}
                for name, value in rows.items():
                    board.add_scalar(name, value, epoch)
                board.flush()
            save()
            progress.epoch(epoch, mean_loss, scores)
    done = state["epoch"] * steps + state["step"]
    summary = {
        **state["best"],
        "epochs": state["epoch"],
        "seconds": round(state["seconds"], 1),
        "images_per_second": round(done * part * share / state["seconds"], 1) if done else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": count,
        "bad_images": train_set.bad_paths(),
        "stopped": stopped,
        "versions": {"mxa": __version__, "torch": torch.__version__, "timm": timm.__version__},
    }
    if writes:
        _write_text(run / "summary.json", json.dumps(_without_nan(summary), indent=1) + "\n")
    return {**summary, "output": run}


class _Terminated:
    """Notes a SIGTERM inside the block instead of dying of it; in the main thread, where signals arrive."""

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


def _board(config: TrainConfig, run: Path, first: int) -> Any:
    """A writer for TensorBoard, where one is asked for."""
    if not config.tensorboard:
        return None
    require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=first)


def _check_losses(losses: list, step: int, epoch: int, loader: DataLoader, parts: int) -> None:
    """Ends the training at the first loss that is not finite, before anything of it is saved."""
    values = torch.stack([torch.as_tensor(x) for x in losses]).cpu()
    if values.isfinite().all():
        return
    at = int((~values.isfinite()).int().argmax())
    images = ""
    if hasattr(loader.sampler, "rows"):
        rows = np.concatenate([loader.sampler.rows(at * parts + i) for i in range(parts)])
        names = [loader.dataset.records.path(int(row)) for row in rows]
        images = f" (its images: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    raise InputError(
        f"the loss became {float(values[at])} in epoch {epoch + 1}, step {at + 1}{images}: lower --lr and start again; "
        "the checkpoint before it is kept"
    )


def _check_labels(dataset: CXRDataset) -> None:
    """Refuses targets that are all masked, and warns of labels that cannot be learnt."""
    targets = dataset.records.targets
    lacking = [
        name
        for name, column in zip(dataset.labels, targets.T, strict=True)
        if not (column > 0.5).any() or not (column <= 0.5).any()
    ]
    if np.isnan(targets).all():
        raise InputError("every label of the training part is masked: there is nothing to learn")
    if lacking:
        warnings.warn(f"no positive or no negative in the training part: {', '.join(lacking)}", stacklevel=3)


def _check_files(dataset: CXRDataset) -> None:
    """Says before the first epoch that a validation file is missing, not after it."""
    if type(dataset.records) is Records:
        for path in map(dataset.records.path, range(len(dataset))):
            if not Path(path).is_file():
                raise InputError(f"no image {path} (a validation image)")


def _check_bad(dataset: CXRDataset) -> None:
    """Ends a training in which more than 1 % of the images do not read: something is wrong with all of them."""
    bad = int(dataset.bad.sum())
    if bad > 0.01 * len(dataset):
        first = dataset.bad_paths()[:3]
        raise InputError(
            f"{bad} of {len(dataset)} images do not read, more than 1 %: mend them or take them out of the table "
            f"({', '.join(first)}{', ...' if bad > 3 else ''})"
        )


def _validate(model: nn.Module, loader: DataLoader, whole: CXRDataset, amp: torch.dtype | None) -> dict[str, float]:
    """Scores all validation images, of which the loader has this process's share."""
    logits, targets = gather_rows(predict_logits(model, loader, amp)), whole.records.targets
    if not np.isfinite(logits).all():
        raise InputError("the outputs on the validation part are not finite: lower --lr and start again")
    loss = masked_bce_with_logits(torch.from_numpy(logits), torch.from_numpy(targets))
    scores = {"macro_auc": macro_auroc(logits, targets), "micro_auc": micro_auroc(logits, targets)}
    return {"loss": float(loss), **scores}


def _freeze(model: nn.Module, filled: set[str]) -> list[nn.Module]:
    """Stops the gradient of every parameter that was filled; returns the modules to keep in eval mode (batch norm)."""
    frozen = []
    for name, module in model.named_modules():
        keys = [f"{name}.{k}" for k, _ in module.named_parameters(recurse=False)]
        if keys and filled.issuperset(keys):
            module.requires_grad_(False)
            frozen.append(module)
    return frozen


def _batches(loader: DataLoader, epoch: int, skip: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch's batches from the ``skip``-th on."""
    loader.dataset.set_epoch(epoch)
    loader.skip = skip
    return iter(loader)


def _without_nan(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in summary.items()}


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text))


def _save_weights(model: nn.Module, run: Path) -> None:
    with tempfile.TemporaryDirectory(dir=run, prefix=".weights") as folder:
        save_pretrained(model, folder)
        for name in ("model.safetensors", "config.json"):
            atomic_write(run / name, lambda path, name=name: shutil.move(Path(folder) / name, path))
