"""Chest X-ray collections: an image and its labels become a sample ``(image, target)``."""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from .config import DataConfig as DataConfig
    from .create import COLLECTIONS as COLLECTIONS
    from .create import create_dataset as create_dataset
    from .create import from_xrv as from_xrv
    from .dataset import CXRDataset as CXRDataset
    from .gray import to_gray as to_gray
    from .image_io import read_image as read_image
    from .input_check import check_radiograph as check_radiograph
    from .loader import make_loader as make_loader
    from .names import Collection as Collection
    from .records import Records as Records
    from .transforms import create_transform as create_transform
    from .transforms import data_config as data_config
else:
    __getattr__ = lazy_names(__name__, _NAMES)
