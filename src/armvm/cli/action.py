"""What an action of a verb with many of them is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its help, its arguments, and what does it and returns the exit code.

    ``runs_command``: whatever stands after ``--`` is another program's, and ends up in ``command``.
    """

    description: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace], int]
    runs_command: bool = False
