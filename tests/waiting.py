"""Waits until a process has done something, and finds a port for one."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable


def wait_until(done: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Waits until something is done, the process has ended, or the time is up."""
    deadline = time.monotonic() + seconds
    while not done() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def free_port() -> int:
    """Finds a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
