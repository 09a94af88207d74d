"""``python -m mxa``."""

from .cli import main

main()
