"""What every hypervisor backend is: it says what it cannot be, plans purely, and starts what was planned.

A backend is one folder beside ``qemu``. Nothing above this module knows which one it talks to.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from armvm.machine.definition import Machine


class Ending(enum.Enum):
    """How a VM came to its end."""

    POWERED_OFF = "the guest powered off"
    STOPPED = "it was told to stop"


@dataclass(frozen=True, slots=True)
class ConsoleOutput:
    """The guest said something on its console."""

    data: bytes


@dataclass(frozen=True, slots=True)
class GuestReset:
    """The guest reset itself, for the ``count``-th time in this run."""

    count: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The VM is no more; nothing follows."""

    how: Ending


@dataclass(frozen=True, slots=True)
class Readable:
    """One of the caller's own file descriptors has something to read."""

    descriptor: int


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """The guest has let go of a device that it was asked to give up; ``name`` is what it was attached as."""

    name: str


Event = ConsoleOutput | GuestReset | DeviceGone | Ended | Readable


class Session(Protocol):
    """A running VM. Leaving its context ends it at once, whatever happened."""

    @property
    def pending_bytes(self) -> int:
        """How much of what was sent still waits for the guest to take it."""
        ...

    def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
        """Wait for events; an empty list when the time is over. ``watch`` names descriptors of the caller's own.

        Raises MachineError when the hypervisor fails.
        """
        ...

    def send(self, data: bytes) -> None:
        """Type ``data`` on the guest's console. Never blocks."""
        ...

    def request_power_off(self) -> None:
        """Press the power button. What comes of it is the guest's choice."""
        ...

    def reset(self) -> None:
        """Press the reset button. Raises MachineError when the hypervisor refuses."""
        ...

    def kill(self) -> None:
        """End the VM as a crash of the host would: nothing is flushed, nobody is asked."""
        ...

    def end(self) -> None:
        """End the VM at once, keeping what it has written to its disks. Ending twice is no error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Backend(Protocol):
    """A hypervisor on this host."""

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why this hypervisor cannot be ``machine``, one sentence each."""
        ...

    def start(self, machine: Machine, *, hold: Sequence[int] = ()) -> Session:
        """Start ``machine``. The VM keeps the descriptors ``hold`` (locks) open as long as it lives.

        Raises UsageError for a machine that cannot be, MissingError when the hypervisor is not there, MachineError
        when it fails.
        """
        ...
