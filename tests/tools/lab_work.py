"""Work for processes of their own (``lab.workers``): they take it from a module that they can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

Notes = Callable[[str], None]


def square(number: int, notes: Notes) -> int:
    notes(f"squaring {number}")
    return number * number


def meet(task: tuple[Path, int], _notes: Notes) -> bool:
    """Whether the other worker was there at the same time."""
    folder, number = task
    (folder / str(number)).touch()
    deadline = time.monotonic() + 20
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def fail(number: int, _notes: Notes) -> int:
    raise ValueError(f"no such number: {number}")


def die(_number: int, _notes: Notes) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def wait_for_ever(folder: Path, notes: Notes) -> None:
    try:
        (folder / f"{os.getpid()}").touch()
        notes("waiting")
        while True:
            time.sleep(1)
    finally:
        (folder / "tidied up").touch()
