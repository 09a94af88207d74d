"""A frozen teacher for a student's batches: from TorchXRayVision, timm, a run folder, or any module.

The teacher's logits are raw. TorchXRayVision's own ``forward`` does not return them: with weights loaded it returns
probabilities that ``op_threshs`` warps, and 0.5 for an untrained output (``op_norm`` in ``models.py`` of
https://github.com/mlmed/torchxrayvision). Here its networks are built without thresholds.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher
from torch import nn

from ..data.transforms import data_config
from ..layers.kd_adapter import KDAdapter
from ..models.hub import checked_tensors
from ..models.load import load_model, named_outputs
from ..utils.errors import InputError
from .unpickle import PickledModule, read_content, tensors

__all__ = ["Teacher", "read_xrv_weights"]

_logger = logging.getLogger(__name__)

XRV_CACHE = "~/.torchxrayvision/models_data"
XRV_RANGE = {"mean": (0.5,), "std": (1 / 2048,)}  # [0, 1] to [-1024, 1024], as torchxrayvision.datasets.normalize


class _Found(NamedTuple):
    """A teacher's model, the names of its outputs, its input configuration, its file's SHA-256, its operating points.

    Without a configuration the teacher takes the student's input. An operating point is the probability of an output
    above which the teacher calls the finding.
    """

    model: nn.Module
    names: tuple[str, ...]
    cfg: Mapping[str, Any] | None
    sha256: str | None = None
    thresholds: Mapping[str, float] = MappingProxyType({})


class Teacher(DistillationTeacher):
    """A frozen model that maps a student's batch to raw logits of the student's labels.

    The batch is first mapped to the teacher's input. It is un-normalised to [0, 1], made gray by the mean of the
    channels, and resized where the size differs (bilinear, antialiased). The whole image is resized, so another aspect
    ratio is squashed. It is then brought to the teacher's channels and range. For a gray image of TorchXRayVision's
    size this is its ``datasets.normalize(image, 255)``. TorchXRayVision's crop and resize are not repeated: teacher and
    student see the same crop.

    The teacher is always in eval mode, gets no gradient, and is not saved in checkpoints of a task that holds it as
    ``teacher``. A module that is given is frozen in place; one of TorchXRayVision's is copied.

    Args:
        teacher: One of these:

            - ``"xrv:NAME"``: weights of TorchXRayVision in its cache folder; nothing is downloaded;
            - ``"xrv:FILE"``: a file of TorchXRayVision's DenseNet-121 or ResNet-50;
            - a timm name, or a run folder;
            - a module that maps images to raw logits ``(B, T)``.
        labels: Names of the student's L outputs; None for those of the teacher that are trained.
        student_cfg: The student, or a mapping with its ``mean``, ``std`` and ``input_size``.
        checkpoint: File of weights for a timm name, with as many outputs as ``names``.
        names: Names of the T outputs where the teacher itself has none, ``""`` for an untrained output.
        sha256: SHA-256 that the file of the weights must have: the file of ``xrv:``, the checkpoint, or the run's
            ``model.safetensors``. It is compared before anything is loaded from the file.
        no_finding: How No Finding is made where the teacher has none; see ``KDAdapter``.
        device: Device of the teacher; a task moves it with itself.

    Attributes:
        labels: Names of the L outputs.
        thresholds: Probability above which it calls a finding, by its own name of the label; of TorchXRayVision's
            DenseNets alone.
        sha256: SHA-256 of the file of the weights, or None. TorchXRayVision publishes none to compare with.

    Shape: normalised images ``(B, C, H, W)`` to ``(logits (B, L), mask (L,))``. The mask is True where the teacher
        knows the label; elsewhere the logits are 0.

    Raises:
        InputError: no such teacher or file, another SHA-256, a file that holds more than a network, weights that do not
            fit, outputs without names, or no label in common.
    """

    def __init__(
        self,
        teacher: str | Path | nn.Module,
        labels: Sequence[str] | None,
        student_cfg: Mapping[str, Any] | nn.Module,
        *,
        checkpoint: str | Path | None = None,
        names: Sequence[str] | None = None,
        sha256: str | None = None,
        no_finding: str = "trained",
        device: torch.device | str | None = None,
    ):
        student = data_config(student_cfg) if isinstance(student_cfg, nn.Module) else student_cfg
        found = _find(teacher, checkpoint, None if names is None else tuple(names), sha256)
        super().__init__(found.model)
        cfg = found.cfg or student
        self.sha256, self.thresholds = found.sha256, dict(found.thresholds)
        self.input_size = tuple(cfg["input_size"])
        self.same = all(tuple(student[k]) == tuple(cfg[k]) for k in ("input_size", "mean", "std"))
        self.mean_kd, self.std_kd = (_column(cfg[k], self.input_size[0]) for k in ("mean", "std"))  # timm's buffers
        self.register_buffer("student_mean", _column(student["mean"]), persistent=False)
        self.register_buffer("student_std", _column(student["std"]), persistent=False)
        self.labels = tuple(filter(None, found.names)) if labels is None else tuple(labels)
        try:
            self.adapter = KDAdapter(found.names, self.labels, no_finding)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.requires_grad_(False).eval().to(device)

    def train(self, mode: bool = True) -> Teacher:
        """Keeps eval mode, whatever ``mode`` is."""
        return super().train(False)

    def normalize_input(
        self,
        input: torch.Tensor,
        student_mean: torch.Tensor | None = None,
        student_std: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Maps the student's batch to the teacher's input; ``forward`` calls it.

        Args:
            input: Normalised images ``(B, C, H, W)``.
            student_mean: ``(1, C, 1, 1)``; that of ``student_cfg`` by default.
            student_std: ``(1, C, 1, 1)``; that of ``student_cfg`` by default.

        Returns:
            Images ``(B, C, H, W)`` of the teacher's channels, size and range.
        """
        parameter = next(self.model.parameters(), input)
        if self.same and student_mean is None and student_std is None and input.shape[1:] == self.input_size:
            return input.to(parameter.dtype)
        mean = self.student_mean if student_mean is None else student_mean
        std = self.student_std if student_std is None else student_std
        x = (input.float() * std + mean).mean(1, keepdim=True)  # (B, 1, H, W) in [0, 1]
        if x.shape[-2:] != self.input_size[1:]:
            x = F.interpolate(x, self.input_size[1:], mode="bilinear", antialias=True)
        return ((x - self.mean_kd) / self.std_kd).to(parameter.dtype)  # (B, C, H, W), the teacher's

    @torch.no_grad()
    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns raw logits ``(B, L)`` of the student's labels, and a mask ``(L,)``, True for labels it knows."""
        return self.adapter(self.model(self.normalize_input(input)))


def _column(values: Sequence[float], channels: int | None = None) -> torch.Tensor:
    """Shapes values to ``(1, C, 1, 1)``; one value is repeated for all channels."""
    column = torch.tensor(tuple(values), dtype=torch.float32).view(1, -1, 1, 1)
    return column if channels is None else column.expand(1, channels, 1, 1).clone()


def _read(path: Path, sha256: str | None) -> tuple[bytes, str]:
    """Reads a file once, so that what is used is what was hashed; returns its bytes and its SHA-256.

    Raises:
        InputError: the file does not read, or its SHA-256 is not ``sha256``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} does not read: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.strip().lower():
        raise InputError(f"{path} has SHA-256 {digest}, not the {sha256} that is asked for: it is not loaded")
    _logger.info("teacher %s: SHA-256 %s", path, digest)
    return data, digest


def _find(
    teacher: str | Path | nn.Module, checkpoint: str | Path | None, names: tuple[str, ...] | None, sha256: str | None
) -> _Found:
    """Loads a teacher by any of its names."""
    if checkpoint is not None and (isinstance(teacher, nn.Module) or str(teacher).startswith("xrv:")):
        raise InputError("a checkpoint goes with a timm name; give a file of TorchXRayVision's as xrv:FILE")
    if isinstance(teacher, nn.Module):
        if sha256 is not None:
            raise InputError("sha256 is that of a file; the teacher is a module")
        return _from_module(teacher, names)
    if str(teacher).startswith("xrv:"):
        return _from_xrv(str(teacher).removeprefix("xrv:"), names, sha256)
    weights = Path(teacher, "model.safetensors") if checkpoint is None else Path(checkpoint)
    digest = _read(weights, sha256)[1] if checkpoint is not None or weights.is_file() else None
    if sha256 is not None and digest is None:
        raise InputError(f"sha256 is that of a file; {teacher} is a name: give the weights with checkpoint")
    if checkpoint is None:
        model: Any = load_model(teacher)
    elif names is None:
        raise InputError("a checkpoint needs the names of its outputs: give names")
    else:
        overlay = {"file": str(weights), "num_classes": len(names)}
        model = load_model(teacher, num_classes=len(names), pretrained_cfg_overlay=overlay)
    names = _checked(names or named_outputs(model), model.num_classes, str(teacher))
    return _Found(model, names, data_config(model), digest)


def _from_module(model: nn.Module, names: tuple[str, ...] | None) -> _Found:
    """Takes a module as the teacher."""
    if type(model).__module__ == "torchxrayvision.models":
        entry = {"labels": model.targets, "input_resolution": getattr(model, "input_resolution", None)}
        return _found_xrv(model.state_dict(), entry, names, type(model).__name__)
    names = names or tuple(getattr(model, "label_names", None) or ()) or named_outputs(model)
    return _Found(model, names, data_config(model) if getattr(model, "pretrained_cfg", None) else None)


def _xrv_models() -> ModuleType:
    """Imports ``torchxrayvision.models``. Its import silences all warnings of the process; that is undone."""
    with warnings.catch_warnings():
        import torchxrayvision.models as models
    return models


def _xrv_file(what: str, registry: Mapping[str, Mapping[str, Any]]) -> tuple[Path, Mapping[str, Any]]:
    """Finds a file and its entry in TorchXRayVision's registry; the entry of a file that is not there is empty."""
    if what in registry:
        url = registry[what]["weights_url"]
        path = Path(XRV_CACHE).expanduser() / url.rpartition("/")[2]
        if not path.is_file():
            raise InputError(f"{what} is not there, and nothing is downloaded unasked: download {url} to {path}")
        return path, registry[what]
    path = Path(what).expanduser()
    if not path.is_file():
        raise InputError(f"{what} is neither a file nor weights of TorchXRayVision: {', '.join(registry)}")
    return path, next((e for e in registry.values() if e["weights_url"].endswith(f"/{path.name}")), {})


def _xrv_content(what: str, sha256: str | None) -> tuple[Path, dict[str, torch.Tensor], Mapping[str, Any], str]:
    """Reads a file of TorchXRayVision's by name or path; returns its path, tensors, entry and SHA-256."""
    path, entry = _xrv_file(what, _xrv_models().model_urls)
    data, digest = _read(path, sha256)
    content = read_content(data, str(path))
    if not entry and isinstance(content, PickledModule):
        entry = {"labels": content.attributes.get("targets") or content.attributes.get("pathologies")}
    return path, tensors(content, str(path)), entry, digest


def _from_xrv(what: str, names: tuple[str, ...] | None, sha256: str | None) -> _Found:
    path, state, entry, digest = _xrv_content(what, sha256)
    return _found_xrv(state, entry, names, str(path))._replace(sha256=digest)


def read_xrv_weights(what: str, sha256: str | None = None) -> tuple[dict[str, torch.Tensor], tuple[str, ...] | None]:
    """Reads TorchXRayVision's weights, as a start for a timm ``densenet121`` or ``resnet50`` of one channel.

    Args:
        what: TorchXRayVision's name of the weights, or a file.
        sha256: SHA-256 that the file must have.

    Returns:
        Tensors by timm's names, and the names of the outputs, None where they are unknown.

    Raises:
        InputError: no such weights or file, another SHA-256, or a file that holds more than a network.
    """
    path, state, entry, _ = _xrv_content(what, sha256)
    names = entry.get("labels")
    return _xrv_state(state, path), tuple(names) if isinstance(names, (list, tuple)) else None


def _xrv_state(state: Mapping[str, torch.Tensor], origin: str | Path) -> dict[str, torch.Tensor]:
    """Takes the wrapper's prefix off the keys, and leaves out the thresholds that warp the scores."""
    kept = {key.removeprefix("model."): value for key, value in state.items() if key != "op_threshs"}
    return checked_tensors(kept, origin)


def _found_xrv(
    state: Mapping[str, torch.Tensor], entry: Mapping[str, Any], names: tuple[str, ...] | None, origin: str
) -> _Found:
    """Builds TorchXRayVision's DenseNet-121 or ResNet-50 from a state dict; its ``forward`` returns raw logits."""
    models = _xrv_models()
    points = state.get("op_threshs", entry.get("op_threshs"))
    state = _xrv_state(state, origin)
    dense = "classifier.weight" in state
    try:
        outputs = state["classifier.weight" if dense else "fc.weight"].shape[0]
        with torch.device("meta"):  # draws no random numbers
            if dense:
                model = models.DenseNet(num_classes=outputs)
            else:
                model = models.torchvision.models.resnet50(num_classes=outputs)
                model.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        model.to_empty(device="cpu").load_state_dict(state)
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"{origin} holds neither TorchXRayVision's DenseNet-121 nor its ResNet-50: {error}") from None
    size = entry.get("input_resolution") or (224 if dense else 512)
    names = _checked(names or entry.get("labels"), outputs, origin)
    thresholds = {}
    if dense and points is not None:  # the ResNet's are of another scale
        pairs = zip(names, torch.as_tensor(points).flatten().tolist(), strict=False)
        thresholds = {name: point for name, point in pairs if name and 0 < point < 1}
    return _Found(model, names, {"input_size": (1, size, size)} | XRV_RANGE, thresholds=thresholds)


def _checked(names: Any, outputs: int, origin: str) -> tuple[str, ...]:
    """Returns names as a tuple; refuses any that are not one text for each output."""
    names = tuple(names) if isinstance(names, (list, tuple)) else ()
    if len(names) != outputs or not all(isinstance(name, str) for name in names):
        raise InputError(f"{origin} has {outputs} outputs and {len(names)} names: give names, one for each output")
    return names
