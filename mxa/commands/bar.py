"""A bar over images on stderr, which a pipe does not get."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["images_bar"]


@contextmanager
def images_bar(images: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar with the speed and the time left, where somebody looks; gives what moves it on."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich import console
    from rich import progress as rich

    screen = console.Console(stderr=True)
    speed = rich.TextColumn("{task.fields[speed]}  left")
    columns = rich.TextColumn("images"), rich.BarColumn(), rich.MofNCompleteColumn(), speed, rich.TimeRemainingColumn()
    with rich.Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=images, speed="")

        def advance(count: int) -> None:
            now = bar.tasks[0].speed
            bar.update(task, advance=count, speed=f"{now:,.0f}/s" if now else "")

        yield advance
