"""Chest X-ray collections: an image and its labels become a sample ``(image, target)``."""

from .dataset import CXRDataset, create_dataset
from .loader import make_loader
from .records import Records
from .transforms import create_transform, data_config

__all__ = ["CXRDataset", "Records", "create_dataset", "create_transform", "data_config", "make_loader"]
