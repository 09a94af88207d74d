"""What this machine's processor can do."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

__all__ = ["core_count", "flags", "has_vnni", "reader_count"]


def core_count() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reader_count() -> int:
    """Returns how many processes of a loader read images: one for each core, at most 8; of torchrun's, a share."""
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return min(max(core_count() // here, 1), 8)


def flags() -> set[str]:
    """Abilities of the processor, as Linux lists them on x86; none where they are unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def has_vnni() -> bool:
    """Says whether this processor multiplies 8-bit integers natively; True where that cannot be known."""
    known = flags()
    if not known or platform.machine() not in ("x86_64", "AMD64"):
        return True
    return "amx_int8" in known or any("vnni" in name for name in known)
