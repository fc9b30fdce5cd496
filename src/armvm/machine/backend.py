"""What every hypervisor backend is: it says what it cannot be, plans purely, and starts what was planned.

A backend is one folder beside ``qemu``. Nothing above this module knows which one it talks to.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from armvm.machine.capabilities import Capabilities
from armvm.machine.definition import DiskDevice, Machine, Nic


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


@dataclass(frozen=True, slots=True)
class Report:
    """Anything else that the hypervisor reports, in its own words: a job's new state, a device's trouble."""

    name: str
    data: dict[str, Any]


Event = ConsoleOutput | GuestReset | DeviceGone | Report | Ended | Readable


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

    def end(self) -> None:
        """End the VM at once, keeping what it has written to its disks. Ending twice is no error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class ControlledSession(Session, Protocol):
    """A running VM with everything that can be done to it from outside."""

    def reset(self) -> None:
        """Press the reset button. Raises MachineError when the hypervisor does not."""
        ...

    def attach(self, device: DiskDevice | Nic) -> None:
        """Add ``device``, which has a name, at its hotplug port, or behind the SCSI controller.

        Raises MachineError when the hypervisor does not take it; that it does says nothing about the guest.
        """
        ...

    def request_detach(self, device: DiskDevice | Nic) -> None:
        """Ask the guest to give ``device`` up; a DeviceGone event follows when it has. Raises MachineError."""
        ...

    def kill(self) -> None:
        """End the VM as a power cut would: the guest is not asked, and nothing is flushed that it did not flush."""
        ...


class Backend(Protocol):
    """A hypervisor on this host. ``name`` is what it is called in reports and messages."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can be, as it is here."""
        ...

    def describe(self, machine: Machine) -> str:
        """What ``machine`` is in its own language, to be read or pasted: a command, or a file."""
        ...

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why this hypervisor cannot be ``machine``, one sentence each."""
        ...

    def start(self, machine: Machine, *, hold: Sequence[int] = ()) -> ControlledSession:
        """Start ``machine``. The VM keeps the descriptors ``hold`` (locks) open as long as it lives.

        Raises UsageError for a machine that cannot be, MissingError when the hypervisor is not there, MachineError
        when it fails.
        """
        ...
