"""Reads TorchXRayVision's weight files without running what they say.

Its seven DenseNet-121 files need this: ``all``, ``rsna``, ``nih``, ``pc``, ``chex``, ``mimic_nb`` and ``mimic_ch`` of
its ``model_urls``. They are whole modules in torch's legacy format: its training script calls ``torch.save(model)``,
the files are from March 2020, and torch writes the zip format since release 1.6 of July 2020.
``torch.load(weights_only=True)`` opens no module in the legacy format, whichever classes
``torch.serialization.safe_globals`` allows, because the format holds the source of the classes. The ResNet-50 file, of
2021, is a state dict; it is read by the same function.

``read_content`` finds only the names that such files hold, and none of them is the real one. The class of a module
becomes ``PickledModule``, which only keeps state: the real ``DenseNet(weights=..., cache_dir=...)`` would unpickle
another file without limits. Torch's functions become objects that a file cannot change. This Python module is the
``pickle_module`` of ``torch.load``.
"""

from __future__ import annotations

import collections
import io
import pickle
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from ..utils.errors import InputError

__all__ = ["PickledModule", "Unpickler", "load", "read_content", "tensors"]

MAX_ITEMS = 10_000  # modules and tensors; DenseNet-121 has 1,161


class PickledModule:
    """Holds the attributes of a module in a file, and none of its code."""

    dump_patches = False  # torch reads this attribute of a class whose source a legacy file holds
    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Keeps the attributes."""
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"the state of a module is a {type(state).__name__}")
        self.attributes = state


class _Fixed:
    """A function whose attributes a file cannot set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("the file sets attributes of a function")


class _RebuildTensor(_Fixed):
    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: tuple, stride: tuple, *unused: Any) -> torch.Tensor:
        """Builds a tensor on a storage, without a gradient and without hooks."""
        return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, collections.OrderedDict())


class _RebuildParameter(_Fixed):
    __slots__ = ()

    def __call__(self, data: torch.Tensor, *unused: Any) -> torch.Tensor:
        """Returns the tensor of a parameter."""
        return data


class _HistoricBackend(_Fixed):
    __slots__ = ()

    def __call__(self) -> None:
        """Returns None, as torch's own function does today."""


_MODULES = {
    "torch.nn.modules.activation": ("ReLU",),
    "torch.nn.modules.batchnorm": ("BatchNorm2d",),
    "torch.nn.modules.container": ("Sequential",),
    "torch.nn.modules.conv": ("Conv2d",),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.pooling": ("AvgPool2d", "MaxPool2d"),
    "torchxrayvision.models": ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition"),
}
_ALLOWED = {(module, name): PickledModule for module, names in _MODULES.items() for name in names} | {
    ("__builtin__", "set"): set,  # protocol 2 has Python 2's name
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch.nn.backends.thnn", "_get_thnn_function_backend"): _HistoricBackend(),
}


class Unpickler(pickle.Unpickler):
    """Unpickles what consists of allowed names; ``torch.load`` adds its storage types, which are data."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the file.

        Raises:
            InputError: the name is not allowed; the message says which.
        """
        if (module, name) not in _ALLOWED:
            raise InputError(f"it refers to {module}.{name}, which no file of TorchXRayVision's holds")
        return _ALLOWED[module, name]


def load(file: io.BufferedIOBase, **kwargs: Any) -> Any:
    """Unpickles one object, as ``pickle.load`` does."""
    return Unpickler(file, **kwargs).load()


def _is_torchscript(data: bytes) -> bool:
    return data.startswith(b"PK") and "constants.pkl" in torch._C.PyTorchFileReader(io.BytesIO(data)).get_all_records()


def read_content(data: bytes, origin: str) -> Any:
    """Reads what ``torch.save`` wrote, in the zip or the legacy format.

    Args:
        data: The file's bytes, so that what is read is what was hashed. From bytes, torch does not read its oldest
            format, tar.
        origin: Name of the file, for errors.

    Returns:
        A ``PickledModule``, or the containers and tensors that the file holds.

    Raises:
        InputError: the file holds a name that is not allowed, which the message says, is a TorchScript archive, or was
            not written by ``torch.save``.
    """
    try:
        if _is_torchscript(data):
            raise InputError("it is a TorchScript archive")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the source in a legacy file is not today's
            return torch.load(
                io.BytesIO(data), "cpu", pickle_module=sys.modules[__name__], weights_only=False, mmap=False
            )
    except InputError as error:
        raise InputError(f"{origin} is not loaded: {error}") from None
    except Exception as error:  # torch and pickle have no common class for a damaged file
        raise InputError(f"{origin} was not written by torch.save, or is damaged: {error}") from None


def tensors(content: Any, origin: str) -> dict[str, torch.Tensor]:
    """Collects the tensors of a module or a state dict, by their names in ``state_dict()``.

    Args:
        content: What ``read_content`` returned.
        origin: Name of the file, for errors.

    Raises:
        InputError: the content is neither, or has more than ``MAX_ITEMS`` modules and tensors.
    """
    found: dict[str, Any] = {}
    try:
        if not isinstance(content, PickledModule):
            found = dict(content)
        waiting = [("", content)] if isinstance(content, PickledModule) else []
        for prefix, module in waiting:
            if len(waiting) + len(found) > MAX_ITEMS:  # a file of a few bytes can name one module many times
                raise ValueError(f"it has more than {MAX_ITEMS} modules and tensors")
            own = {**module.attributes["_parameters"], **module.attributes["_buffers"]}
            found |= {prefix + name: value for name, value in own.items() if value is not None}
            children = module.attributes["_modules"].items()
            waiting += [(f"{prefix}{name}.", child) for name, child in children if child is not None]
        if not found or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()):
            raise ValueError("not every value is a tensor with a name")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{origin} holds neither a module nor a state dict: {error}") from None
    return found
