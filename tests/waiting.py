"""Waits until a process has done something."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def wait_until(done: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Waits until something is done, the process has ended, or the time is up."""
    deadline = time.monotonic() + seconds
    while not done() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
