"""``python -m mxa.run SCRIPT.py ...``: runs a script with mxa's models registered, such as timm's ``train.py``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import mxa  # noqa: F401  (registers the models)


def main() -> None:
    """Runs the script named first, with the arguments that follow, as ``python SCRIPT.py ...`` would."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m mxa.run SCRIPT.py [ARGUMENTS ...]")
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
