"""A trained model where it is used: faster, exported, behind one call whatever runs it. Importing needs no PyTorch."""

from ..utils.lazy import lazy_names

_NAMES = {
    "ModelInfo": "predictor",
    "Predictor": "predictor",
    "deploy": "fuse",
    "load_exported": "runtimes",
    "open_predictor": "runtimes",
    "predict": "runtimes",
}
__all__ = list(_NAMES)
__getattr__ = lazy_names(__name__, _NAMES)
