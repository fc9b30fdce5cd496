"""What the command line knows of the terminal it talks to: colour, progress, and what goes where."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from armvm.report.style import Style


def stdout_style() -> Style:
    """Colour when standard output is a terminal that wants it (https://no-color.org)."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(colour=wanted)


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress on standard error while the block runs: the yielded function takes the step, bytes done, bytes in all.

    Nothing is shown when standard error is no terminal or ``quiet``.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _step, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda step, done, total: bar.update(task, description=step, completed=done, total=total)


def notes(*, quiet: bool) -> Callable[[str], None]:
    """A function that says one line about what is being done, on standard error; silent when ``quiet``."""
    if quiet:
        return lambda _line: None
    return lambda line: print(f"… {line}", file=sys.stderr, flush=True)
