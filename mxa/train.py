"""Training and fine-tuning: one loop for every model, collection and starting point."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils.agc import adaptive_clip_grad
from timm.utils.summary import trim_summary, update_summary
from torch import nn
from torch.utils.data import DataLoader

from .checkpoint import atomic_write, load_checkpoint, save_checkpoint
from .data import CXRDataset, Records, create_dataset, create_transform, data_config, make_loader
from .errors import InputError
from .inference import pick_device, predict_logits
from .metrics import macro_auroc
from .models.load import create, init_weights
from .models.weights import save_pretrained, set_label_names
from .progress import TrainProgress
from .task import MultiLabelTask, masked_bce_with_logits
from .train_config import TrainConfig, check_config, check_same_run, plain_config

__all__ = ["TrainConfig", "fit", "train"]


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains on a collection's training part and keeps the weights of the best epoch on its validation part.

    Returns:
        The summary that ``fit`` returns.

    Raises:
        InputError: bad input; nothing is written then.
    """
    check_config(config)
    options = {k: getattr(config, k) for k in ("labels", "uncertain", "blank", "views", "merge", "columns")}
    train_set = create_dataset(config.data, config.root, "train", **options)
    val_set = create_dataset(config.data, config.root, "val", **options)
    return fit(config, train_set, val_set)


def fit(config: TrainConfig, train_set: CXRDataset, val_set: CXRDataset | None = None) -> dict[str, Any]:
    """Trains on one dataset; without a validation set the last epoch's weights are kept.

    Every random choice is a function of (seed, epoch, index), so that a run that was killed and resumed ends with the
    weights of one that was not.

    Returns:
        ``epoch`` and ``macro_auc`` of the weights that are kept, ``bad_images`` (names), ``output``.

    Raises:
        InputError: bad input, or a loss that is not finite.
    """
    if len(train_set) < 2:
        raise InputError(f"training needs 2 images at least, got {len(train_set)}")
    _check_labels(train_set)
    if val_set is not None:
        _check_files(val_set)
    run = Path(config.output)
    torch.manual_seed(config.seed)
    model = build_model(config, train_set.labels)
    filled = init_weights(model, config.init) if config.init else set()
    frozen = _freeze(model, filled) if config.freeze else []
    device = pick_device(config.device)
    preprocessing = data_config(model, config.img_size)
    task = MultiLabelTask(model.to(device), device=device)
    kept = task.setup_ema(config.ema, use_warmup=True).module if config.ema else model

    train_set.seed, train_set.on_bad = config.seed, "replace"
    augment = {k: getattr(config, k) for k in ("scale", "ratio", "rotation", "hflip", "augment")}
    transform = create_transform(preprocessing, is_training=True, **augment)
    loader = make_loader(train_set, transform, min(config.batch_size, len(train_set)), config.workers, is_training=True)
    loader.sampler.generator = torch.Generator()
    val_loader = None
    if val_set is not None:
        val_loader = make_loader(val_set, create_transform(preprocessing), config.batch_size, config.workers)

    steps = len(loader)
    optimizer, scheduler = _optimizer(config, model, steps)
    first, best = 0, {"epoch": -1, "macro_auc": float("nan")}
    if config.resume and (saved := load_checkpoint(run)):
        check_same_run(config, saved["config"])
        if tuple(saved["labels"]) != train_set.labels or saved["images"] != len(train_set):
            raise InputError(f"--resume: the run was trained on {saved['images']} images with other rows or labels")
        model.load_state_dict(saved["model"])
        if config.ema:
            kept.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        first, best = saved["epoch"] + 1, saved["best"]
        train_set.bad[saved["bad"]] = True

    elif config.resume:
        check_same_run(config, yaml.safe_load((run / "config.yaml").read_text()))

    run.mkdir(parents=True, exist_ok=True)
    settings = plain_config(config)
    atomic_write(run / "config.yaml", lambda path: path.write_text(yaml.safe_dump(settings, sort_keys=False)))
    trim_summary(str(run / "log.csv"), first)
    with TrainProgress(config.epochs, steps, first) as progress:
        for epoch in range(first, config.epochs):
            task.train()
            for module in frozen:
                module.eval()
            losses = []
            for step, (images, targets) in enumerate(_batches(loader, config.seed, epoch)):
                scheduler.step_update(epoch * steps + step)
                with torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
                    loss = task(images.to(device), targets.to(device))["loss"]
                optimizer.zero_grad()
                loss.backward()
                if config.agc:
                    adaptive_clip_grad(task.get_clip_parameters(exclude_head=True), config.agc)
                optimizer.step()
                task.update_ema(epoch * steps + step)
                losses.append(loss.detach())
                if step % 10 == 0 or step == steps - 1:
                    _check_bad(train_set)
                    progress.step(epoch, step, loss.item(), lr := max(g["lr"] for g in optimizer.param_groups))
            mean_loss = float(torch.stack(losses).mean())
            if not math.isfinite(mean_loss):
                raise InputError(f"the loss became {mean_loss} in epoch {epoch + 1}: lower --lr and start again")
            scores = _validate(kept, val_loader, config.amp) if val_loader else {}
            score = scores.get("macro_auc", float("nan"))
            if val_loader is None or math.isnan(best["macro_auc"]) or score > best["macro_auc"]:
                best = {"epoch": epoch, "macro_auc": score}
                _save_weights(kept, run)
            update_summary(epoch, {"loss": mean_loss}, scores, str(run / "log.csv"), lr=lr)
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch,
                "best": best,
                "config": settings,
                "labels": train_set.labels,
                "images": len(train_set),
                "bad": train_set.bad.nonzero().flatten().tolist(),
            }
            state |= {"ema": kept.state_dict()} if config.ema else {}
            save_checkpoint(state, run)
            progress.epoch(epoch, mean_loss, scores)
    return {**best, "bad_images": train_set.bad_paths(), "output": run}


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


def build_model(config: TrainConfig, labels: tuple[str, ...]) -> nn.Module:
    """Builds a run's model with named outputs; one that is not ours is told to see whole images too, of this size."""
    optional = {k: v for k in ("drop_rate", "drop_path_rate") if (v := getattr(config, k))}
    model = create(config.model, config.img_size, num_classes=len(labels), **optional)
    size = data_config(model, config.img_size)["input_size"]
    model.pretrained_cfg.update(crop_pct=1.0, crop_mode="squash", input_size=tuple(size))
    set_label_names(model, labels)
    return model


def _optimizer(config: TrainConfig, model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Scheduler]:
    optimizer = create_optimizer_v2(model, config.opt, config.lr, config.weight_decay, layer_decay=config.layer_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=config.epochs - config.cooldown_epochs,
        cooldown_epochs=config.cooldown_epochs,
        warmup_epochs=min(config.warmup_epochs, config.epochs - config.cooldown_epochs - 1),
        warmup_lr=config.lr / 100,
        min_lr=min(config.min_lr, config.lr),
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return optimizer, scheduler


def _validate(model: nn.Module, loader: DataLoader, amp: bool) -> dict[str, float]:
    logits, targets = predict_logits(model, loader, amp), loader.dataset.records.targets
    if not np.isfinite(logits).all():
        raise InputError("the outputs on the validation part are not finite: lower --lr and start again")
    loss = masked_bce_with_logits(torch.from_numpy(logits), torch.from_numpy(targets))
    return {"loss": float(loss), "macro_auc": macro_auroc(logits, targets)}


def _freeze(model: nn.Module, filled: set[str]) -> list[nn.Module]:
    """Stops the gradient of every parameter that was filled; returns the modules to keep in eval mode (batch norm)."""
    frozen = []
    for name, module in model.named_modules():
        keys = [f"{name}.{k}" for k, _ in module.named_parameters(recurse=False)]
        if keys and filled.issuperset(keys):
            module.requires_grad_(False)
            frozen.append(module)
    return frozen


def _batches(loader: DataLoader, seed: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch, its order and all later randomness of the main process a function of (seed, epoch)."""
    derived = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    loader.sampler.generator.manual_seed(derived)
    loader.dataset.set_epoch(epoch)
    batches = iter(loader)
    torch.manual_seed(derived)
    yield from batches


def _save_weights(model: nn.Module, run: Path) -> None:
    with tempfile.TemporaryDirectory(dir=run, prefix=".weights") as folder:
        save_pretrained(model, folder)
        for name in ("model.safetensors", "config.json"):
            atomic_write(run / name, lambda path, name=name: shutil.move(Path(folder) / name, path))
