"""mxa: Medical X-ray Attention, a timm plugin for chest X-ray models.

``import mxa`` registers ``efficientvit_ml_m0`` to ``m5`` and their ``_mxa`` variants with timm.
"""

from .utils.interrupt import stop_at_interrupt

stop_at_interrupt()  # before the imports that take long

from . import labels, layers, models  # noqa: E402
from .models import label_names, load_labels, set_label_names  # noqa: E402

__version__ = "0.1.0"

__all__ = ["__version__", "label_names", "labels", "layers", "load_labels", "models", "set_label_names"]
