"""A running machine as its supervisor's operations see it, and what an operation is.

The supervisor is one process with one loop, which carries the console. An operation that has to wait (for a job of the
hypervisor, for the guest) is a generator: it yields wherever it waits, and is resumed when something has happened, or
after a twentieth of a second at the latest. One operation runs at a time. What it returns is the answer; an ArmvmError
that it raises is the answer too, and must leave the machine as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol

from armvm.instance.definition import Definition
from armvm.instance.store import Instance
from armvm.machine.qemu.session import QemuSession

Request = Mapping[str, Any]
Step = Generator[None, None, dict[str, Any]]


class Running(Protocol):
    """The machine that the supervisor runs. ``definition`` is what it is now, with what was attached since its start.

    ``gone`` are the names of devices that the guest has let go of since the start; an operation takes out what it has
    seen.
    """

    instance: Instance
    definition: Definition
    session: QemuSession
    gone: set[str]

    def restart(self, definition: Definition, *, paused: bool) -> None:
        """End the hypervisor at once and start another as ``definition``; ``paused``: its vCPUs do not run yet.

        The console's watchers stay. Raises MachineError when it does not start: then the machine is over.
        """
        ...


Operation = Callable[[Running, Request], Step]
"""An operation by its name in a request's ``do``: see ``operations.OPERATIONS``."""


def until(reached: Callable[[], bool], timeout_seconds: float) -> Generator[None, None, bool]:
    """Wait within an operation, by ``yield from``, until ``reached`` says so; whether it did in time."""
    deadline = time.monotonic() + timeout_seconds
    while not reached():
        if time.monotonic() >= deadline:
            return False
        yield
    return True
