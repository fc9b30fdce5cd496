"""What the command line knows of the terminal it talks to: colour, progress, and what goes where."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from armvm.report.style import Style

if TYPE_CHECKING:
    from armvm.disk.storage import Traffic


def stdout_style() -> Style:
    """Colour when standard output is a terminal that wants it (https://no-color.org)."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(colour=wanted)


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress on standard error while the block runs: the yielded function takes the step, bytes done, bytes in all.

    Nothing is shown when standard error is no terminal or ``quiet``, and nothing before the function is first called.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _step, _done, _total: None
        return
    with ExitStack() as shown:
        bars: list[Callable[[str, int, int], None]] = []

        def show(step: str, done: int, total: int) -> None:
            if not bars:
                bars.append(_bar(shown))
            bars[0](step, done, total)

        yield show


def _bar(shown: ExitStack) -> Callable[[str, int, int], None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    bar = shown.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task("", total=None)
    return lambda step, done, total: bar.update(task, description=step, completed=done, total=total)


def notes(*, quiet: bool) -> Callable[[str], None]:
    """A function that says one line about what is being done, on standard error; silent when ``quiet``."""
    if quiet:
        return lambda _line: None
    return lambda line: print(f"… {line}", file=sys.stderr, flush=True)


def say_traffic(traffic: Traffic | None, *, quiet: bool, name: str | None = None) -> None:
    """Say what was read of an image on a server, on standard error; of one that is on this machine, nothing."""
    if traffic is None:
        return
    from armvm.units import format_size

    read, whole = format_size(traffic.transferred_bytes), format_size(traffic.size_bytes)
    requests = "1 request" if traffic.requests == 1 else f"{traffic.requests} requests"
    notes(quiet=quiet)(f"{f'{name}: ' if name else ''}read {read} of {whole} in {requests}")
