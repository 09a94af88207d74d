"""A trained model where it is used: faster, exported, behind one call whatever runs it. Importing needs no PyTorch."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

_NAMES = {
    "ModelInfo": "predictor",
    "Predictor": "predictor",
    "XrvModel": "xrv_model",
    "deploy": "fuse",
    "load_exported": "runtimes",
    "open_predictor": "runtimes",
    "predict": "runtimes",
}
__all__ = list(_NAMES)

if TYPE_CHECKING:
    from .fuse import deploy as deploy
    from .predictor import ModelInfo as ModelInfo
    from .predictor import Predictor as Predictor
    from .runtimes import load_exported as load_exported
    from .runtimes import open_predictor as open_predictor
    from .runtimes import predict as predict
    from .xrv_model import XrvModel as XrvModel
else:
    __getattr__ = lazy_names(__name__, _NAMES)
