"""The Machine value: everything that a virtual machine is, and nothing of how a hypervisor is told so."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import Firmware
from armvm.units import GIB, MIB, SECTOR_SIZES, format_size

GICV2_MOST_VCPUS = 8
MOST_VCPUS = 512
MOST_DISKS = 16
MOST_NICS = 6
MOST_HOTPLUG_PORTS = 7
LEAST_MEMORY_BYTES = 128 * MIB
"""EDK2 for virtual machines says nothing and hangs with less."""

DEFAULT_VCPUS = 2
DEFAULT_HOTPLUG_PORTS = 2
"""A disk and a network card can be added to every machine on PCI, as the specification strongly recommends."""
DEFAULT_MEMORY_BYTES = {ExecutionState.AARCH64: 2 * GIB, ExecutionState.AARCH32: GIB}


class GicVersion(enum.Enum):
    """The versions of the Generic Interrupt Controller architecture that a VM may have."""

    V2 = 2
    V3 = 3
    V4 = 4


class HardwareDescription(enum.Enum):
    """How the firmware describes the hardware to the guest."""

    DT = "dt"
    ACPI = "acpi"


class Console(enum.Enum):
    """The device behind the serial console."""

    PL011 = "pl011"
    VIRTIO = "virtio"
    XEN = "xen"
    """The Xen PV console."""


class Bus(enum.Enum):
    """What disks and network cards stand on: a transport of virtio, or the Xen PV bus."""

    PCI = "pci"
    MMIO = "mmio"
    XEN = "xen"


class Writes(enum.Enum):
    """What becomes of what the guest writes to a disk."""

    KEPT = "kept"
    DISCARDED = "discarded"
    """The guest can write, and what it wrote is gone when the VM ends."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DiskDevice:
    """A disk of the machine: an image, its format (as QEMU spells it), and the sector size that the guest sees."""

    path: Path
    format: str
    sector_size: int = 512
    writes: Writes = Writes.DISCARDED


@dataclass(frozen=True, slots=True)
class PortForward:
    """A TCP port of this host, on its loopback address only, that leads to a port of the guest."""

    host_port: int
    guest_port: int


@dataclass(frozen=True, slots=True)
class UserNetwork:
    """A network card behind user-mode NAT: the guest reaches out, and only ``forwards`` lead in."""

    forwards: tuple[PortForward, ...] = ()


@dataclass(frozen=True, slots=True)
class VariablesFile:
    """The file that keeps this machine's UEFI variables, and its format."""

    path: Path
    format: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine.

    ``gic`` None leaves the choice to the backend. ``variables`` None gives the firmware a fresh store that vanishes
    with the VM. ``clock`` is what the RTC starts at, None for the host's time. The first disk is what is booted.
    ``hotplug_ports`` are empty PCIe root ports, each for one device; a machine on MMIO has none.
    ``scsi_controller`` adds a virtio-scsi controller, whose disks come and go without PCI hotplug.
    """

    state: ExecutionState
    firmware: Firmware
    disks: tuple[DiskDevice, ...]
    memory_bytes: int
    vcpus: int = DEFAULT_VCPUS
    gic: GicVersion | None = None
    description: HardwareDescription = HardwareDescription.DT
    console: Console = Console.PL011
    bus: Bus = Bus.PCI
    nics: tuple[UserNetwork, ...] = (UserNetwork(),)
    variables: VariablesFile | None = None
    clock: datetime | None = None
    hotplug_ports: int = DEFAULT_HOTPLUG_PORTS
    scsi_controller: bool = False


def problems(machine: Machine) -> tuple[str, ...]:
    """Everything that makes no sense about ``machine`` on any hypervisor, one sentence each."""
    found: list[str] = []
    if not 1 <= machine.vcpus <= MOST_VCPUS:
        found.append(f"{machine.vcpus} vCPUs: a machine has 1 to {MOST_VCPUS}")
    if machine.gic is GicVersion.V2 and machine.vcpus > GICV2_MOST_VCPUS:
        found.append(
            f"{machine.vcpus} vCPUs on a GICv2: it limits the number of virtual CPUs to {GICV2_MOST_VCPUS} cores"
            " (VM System Specification v1.0, VM Platform); take a GICv3"
        )
    if machine.memory_bytes < LEAST_MEMORY_BYTES:
        shown, least = format_size(machine.memory_bytes), format_size(LEAST_MEMORY_BYTES)
        found.append(f"{shown} of memory: UEFI firmware does not start with less than {least}")
    elif machine.memory_bytes % MIB:
        found.append(f"{machine.memory_bytes} bytes of memory: it comes in whole MiB")
    if machine.description is HardwareDescription.ACPI and machine.state is ExecutionState.AARCH32:
        found.append("ACPI on an AArch32 machine: its firmware describes the hardware by a device tree only")
    if not 0 <= machine.hotplug_ports <= MOST_HOTPLUG_PORTS:
        found.append(f"{machine.hotplug_ports} hotplug ports: a machine has at most {MOST_HOTPLUG_PORTS}")
    found += _disk_problems(machine.disks)
    found += _network_problems(machine.nics)
    return tuple(found)


def _disk_problems(disks: tuple[DiskDevice, ...]) -> list[str]:
    found = [
        f"{disk.path}: sectors of {disk.sector_size} bytes; a disk has sectors of 512 or 4096"
        for disk in disks
        if disk.sector_size not in SECTOR_SIZES
    ]
    if len(disks) > MOST_DISKS:
        found.append(f"{len(disks)} disks: a machine has at most {MOST_DISKS}")
    return found


def _network_problems(nics: tuple[UserNetwork, ...]) -> list[str]:
    found = [f"{len(nics)} network cards: a machine has at most {MOST_NICS}"] if len(nics) > MOST_NICS else []
    taken: set[int] = set()
    for forward in (forward for nic in nics for forward in nic.forwards):
        found += [f"no TCP port: {port}" for port in (forward.host_port, forward.guest_port) if not 0 < port < 65536]
        if forward.host_port in taken:
            found.append(f"port {forward.host_port} of this host is forwarded twice")
        taken.add(forward.host_port)
    return found


def require_sound(found: tuple[str, ...]) -> None:
    """Raise UsageError that names every one of these problems; none is no error."""
    if found:
        raise UsageError("this machine cannot be: " + "; ".join(found))
