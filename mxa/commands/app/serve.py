"""``mxa app``: serves the page until it is stopped."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.errors import InputError, require
from ..config import AppConfig

if TYPE_CHECKING:
    from ...deployment.predictor import Predictor

__all__ = ["serve"]

_logger = logging.getLogger(__name__)


def serve(config: AppConfig) -> None:
    """Serves the page. It returns at SIGTERM.

    Raises:
        InputError: no such model or examples, a host or port that cannot be had, or Gradio is not installed.
    """
    if not 1 <= config.port <= 65535:
        raise InputError(f"--port {config.port} must be 1 to 65535")
    if config.max_mb < 1:
        raise InputError("--max-mb must be at least 1")
    with tempfile.TemporaryDirectory(prefix="mxa-app-") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}  # read as it is imported
        require("gradio", "app")
        from .page import launch

        models = _models(config)
        stop = threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: stop.set())  # what ends a container
        page = launch(models, _examples(config.examples), config.host, config.port, config.max_mb)
        try:
            if not _is_loopback(config.host):
                _logger.warning(
                    "--host %s: whoever reaches this machine can use the page, without a login", config.host
                )
            _logger.info("the page is at %s; Ctrl-C ends it", page.local_url)
            stop.wait()
        finally:
            page.close(verbose=False)


def _models(config: AppConfig) -> dict[str, Predictor]:
    from ...evaluation.model_arguments import read_models
    from .answers import open_models

    named = read_models(config.models)
    if many := [name for name, arguments in named.items() if len(arguments) > 1]:
        raise InputError(f"the page shows one model at a time: separate models by spaces, not commas ({many[0]})")
    return open_models({name: next(iter(arguments)) for name, arguments in named.items()}, config.device)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _examples(folder: Path | None) -> list[Path]:
    from ...data.image_io import find_images

    if folder is not None:
        return find_images((folder,))
    own = Path(__file__).parents[3] / "examples" / "images"
    return find_images(tuple(sorted(own.glob("*.jpg")))) if own.is_dir() else []
