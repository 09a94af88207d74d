"""mxa: Medical X-ray Attention, a timm plugin for chest X-ray models.

With ``import mxa`` timm has ``efficientvit_ml_m0`` to ``m5`` and their ``_mxa`` variants, whichever of the two is
imported first. PyTorch and timm are imported when they are first needed, so that an exported model runs without them.
"""

from typing import TYPE_CHECKING

from .utils.interrupt import stop_at_interrupt
from .utils.lazy import lazy_names, when_imported

stop_at_interrupt()  # before the imports that take long
when_imported("timm", f"{__name__}.models")

__version__ = "0.1.0"

_NAMES = {
    "InputError": "utils.errors",
    "deploy": "deployment",
    "label_names": "models",
    "labels": "labels",
    "layers": "layers",
    "load_exported": "deployment",
    "load_labels": "models",
    "models": "models",
    "predict": "deployment",
    "set_label_names": "models",
}
__all__ = ["__version__", *_NAMES]

if TYPE_CHECKING:
    from . import labels as labels
    from . import layers as layers
    from . import models as models
    from .deployment import deploy as deploy
    from .deployment import load_exported as load_exported
    from .deployment import predict as predict
    from .models import label_names as label_names
    from .models import load_labels as load_labels
    from .models import set_label_names as set_label_names
    from .utils.errors import InputError as InputError
else:
    __getattr__ = lazy_names(__name__, _NAMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
