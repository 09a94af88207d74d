"""Freed tensors stay with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

CODE = """
import resource, sys
from mxa.utils.allocator import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    before = faults()
    for _ in range(20):
        block = bytearray(40_000_000)  # pages are touched: they are set to 0
        del block
    return faults() - before

print(keep_memory() if sys.argv[1] == "set" else None, work())
"""


def run(how: str, **environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    said, faults = done.stdout.split()
    return said, int(faults)


def test_memory_is_mapped_once_instead_of_every_time():
    before, (said, after) = run("default")[1], run("set")
    assert said == "True"
    assert before > 20 * 9000  # 40 MB are 9,766 pages
    assert after < before / 5


def test_the_environment_has_the_last_word():
    said, faults = run("set", MALLOC_MMAP_THRESHOLD_="1000000")
    assert said == "False" and faults > 20 * 9000


def test_import_sets_nothing():
    code = "import mxa, sys; print('mxa.utils.allocator' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
