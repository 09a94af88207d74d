"""Chest X-ray collections: an image and its labels become a sample ``(image, target)``."""

from ..utils.lazy import lazy_names

_NAMES = {
    "Collection": "names",
    "CXRDataset": "dataset",
    "DataConfig": "config",
    "Records": "records",
    "COLLECTIONS": "create",
    "check_radiograph": "input_check",
    "create_dataset": "create",
    "create_transform": "transforms",
    "data_config": "transforms",
    "from_xrv": "create",
    "make_loader": "loader",
    "read_image": "image_io",
    "to_gray": "gray",
}
__all__ = list(_NAMES)
__getattr__ = lazy_names(__name__, _NAMES)
