"""Registered architectures and their weights."""

from . import grafted  # noqa: F401  registers its name
from .efficientvit_ml import EfficientVitMl
from .finding import add_finding_head
from .weights import label_names, load_labels, save_pretrained, set_label_names

__all__ = ["EfficientVitMl", "add_finding_head", "label_names", "load_labels", "save_pretrained", "set_label_names"]
