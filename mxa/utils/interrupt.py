"""Ctrl-C while the command still imports its libraries, which takes seconds, and in its worker processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["follow_parent", "raise_interrupts", "stop_at_interrupt"]


def stop_at_interrupt() -> None:
    """Makes Ctrl-C end this process in one line, if it is the ``mxa`` command; any other program is left alone.

    A library that is interrupted while it is imported raises whatever it likes. ``raise_interrupts`` ends this.
    """
    name = Path(sys.argv[0]).stem if getattr(sys, "argv", None) else ""
    named = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    is_command = name == "mxa" or (name == "-m" and named == ["mxa"])
    processes = sys.modules.get("multiprocessing")  # a worker has it; importing it takes a while
    worker = processes is not None and processes.parent_process() is not None
    main = threading.current_thread() is threading.main_thread() and not worker
    if is_command and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def raise_interrupts() -> None:
    """Makes Ctrl-C a ``KeyboardInterrupt`` again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(*unused: Any) -> None:
    os.write(2, b"mxa: stopped\n")
    os._exit(130)


def follow_parent() -> None:
    """Leaves Ctrl-C to the main process: a worker ends its task, or at once where that process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import multiprocessing

    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
