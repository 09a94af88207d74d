"""Chest X-ray collections: an image and its labels become a sample ``(image, target)``."""

from .config import DataConfig
from .create import COLLECTIONS, Collection, create_dataset, from_xrv
from .dataset import CXRDataset
from .gray import to_gray
from .image_io import read_image
from .input_check import check_radiograph
from .loader import make_loader
from .records import Records
from .transforms import create_transform, data_config

__all__ = [
    "Collection",
    "CXRDataset",
    "DataConfig",
    "Records",
    "COLLECTIONS",
    "check_radiograph",
    "create_dataset",
    "create_transform",
    "data_config",
    "from_xrv",
    "make_loader",
    "read_image",
    "to_gray",
]
