"""The ``mxa`` command with the study's models registered: ``python examples/study ablate --config ...``."""

import forms  # noqa: F401

from mxa.cli import main

main()
