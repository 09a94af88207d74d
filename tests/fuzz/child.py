"""Reads damaged files of some kinds, within limits: ``python -m tests.fuzz.child COUNT SEED REPORT KIND ...``.

The report has a line of JSON for each wrong outcome, and a last one of what was done.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

from mxa.utils.errors import InputError

from .kinds import KINDS, Kind

SECONDS = 10  # of the processor, that reading one file may take
MEMORY = 2 << 30  # bytes that it may need beyond what the process has
RUNS_CODE = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")


class Hangs(BaseException):
    """Reading took too long."""


class RanCode(BaseException):
    """Reading started a process."""


reading, started = False, []


def refuse_processes(event: str, arguments: tuple) -> None:
    if reading and event in RUNS_CODE:
        started.append(f"RanCode: {event}{arguments}")
        raise RanCode(started[-1])


def give_up(*unused: object) -> None:
    raise Hangs


def outcome(kind: Kind, folder: Path, right: object) -> str | None:
    """Returns None where a damaged file was refused or read rightly, else what went wrong."""
    global reading
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True)  # where no Python code runs that a signal could stop
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reading = True
        result = kind.read(folder)
    except InputError as error:
        if started:
            return started.pop()
        text = str(error)
        return None if text and len(text) < 3000 else f"an error of {len(text)} characters: {text[:200]!r}"
    except BaseException:
        started.clear()
        return traceback.format_exc(limit=-4)
    finally:
        reading = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    if started:  # whoever has caught it
        return started.pop()
    try:
        kind.judge(result, right, folder)
    except Exception:
        return "a wrong result, without a word\n" + traceback.format_exc(limit=-3)
    return None


def fuzz(name: str, count: int, seed: int, report: Path) -> dict[str, object]:
    kind, wrong_ones, slowest = KINDS[name], 0, 0.0
    with tempfile.TemporaryDirectory() as made, report.open("a") as lines:
        folder = Path(made)
        targets = kind.make(folder)
        right = kind.read(folder)
        kind.judge(right, right, folder)
        held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            target = targets[number % len(targets)]
            target.write_bytes(kind.damage(held[target], rng))
            before = time.process_time()
            wrong = outcome(kind, folder, right)
            slowest = max(slowest, time.process_time() - before)
            if wrong:
                wrong_ones += 1
                lines.write(json.dumps({"kind": name, "number": number, "seed": seed, "wrong": wrong}) + "\n")
                lines.flush()
            for path in [p for p in folder.rglob("*") if p.is_file() and p not in held]:
                path.unlink()
            for path, content in held.items():
                if not path.is_file() or path.stat().st_size != len(content) or path == target:
                    path.write_bytes(content)
    return {"kind": name, "done": count, "wrong": wrong_ones, "slowest": round(slowest, 2)}


def main() -> None:
    count, seed, report, *names = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, give_up)
    sys.addaudithook(refuse_processes)
    for name in names:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
        done = fuzz(name, int(count), int(seed), Path(report))
        with Path(report).open("a") as lines:
            lines.write(json.dumps(done) + "\n")


if __name__ == "__main__":
    main()
