"""What the host knows of a VM that it made itself: what it is, and what was plugged into it while it ran."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from armvm.execution import ExecutionState
from armvm.machine.definition import Bus, Console, GicVersion, HardwareDescription, Machine


@dataclass(frozen=True, slots=True)
class ExpectedMachine:
    """What a VM has by the one who made it; None where that is not known. ``firmware`` is what it starts first."""

    state: ExecutionState
    vcpus: int | None = None
    memory_bytes: int | None = None
    gic: GicVersion | None = None
    description: HardwareDescription | None = None
    console: Console | None = None
    bus: Bus | None = None
    disks: int | None = None
    nics: int | None = None
    firmware: str | None = None


def expected_machine(machine: Machine) -> ExpectedMachine:
    """What the probes have to find in a VM made from ``machine``."""
    return ExpectedMachine(
        state=machine.state,
        vcpus=machine.vcpus,
        memory_bytes=machine.memory_bytes,
        gic=machine.gic,
        description=machine.description,
        console=machine.console,
        bus=machine.bus,
        disks=len(machine.disks),
        nics=len(machine.nics),
        firmware=machine.firmware.name,
    )


class HotplugKind(enum.Enum):
    """What was plugged."""

    BLOCK = "disk"
    NETWORK = "network interface"


@dataclass(frozen=True, slots=True)
class HotplugAttempt:
    """One device that the host added to the running VM and took away again.

    ``added`` and ``removed`` tell whether the hypervisor took the request, None where it was not made; ``error`` is
    what it answered instead. The guest knows the device by ``serial`` and ``sha256_hex`` (of the disk's first 4096
    bytes) or by ``mac``. ``bus`` names what it was plugged into.
    """

    kind: HotplugKind
    bus: str
    added: bool | None = None
    removed: bool | None = None
    error: str | None = None
    serial: str | None = None
    sha256_hex: str | None = None
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class HotplugRecord:
    """All that the host plugged. ``guest_lacks`` says why the guest's kernel cannot see it, where that is known."""

    attempts: tuple[HotplugAttempt, ...]
    guest_lacks: str | None = None
