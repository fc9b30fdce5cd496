"""The Machine value: everything that a virtual machine is, and nothing of how a hypervisor is told so.

Its devices are defined in ``machine.devices``, and can be imported from here too.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import Firmware
from armvm.machine.device_problems import device_problems
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    Graphics,
    LinkNetwork,
    Nic,
    PortForward,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    WatchdogAction,
    Writes,
)
from armvm.printable import printable
from armvm.units import GIB, MIB, format_size

if TYPE_CHECKING:
    from datetime import datetime  # few machines have a clock of their own

__all__ = [
    "BridgeNetwork",
    "Bus",
    "Console",
    "DiskCache",
    "DiskDevice",
    "DiskInterface",
    "GicVersion",
    "Graphics",
    "HardwareDescription",
    "LinkNetwork",
    "Machine",
    "Nic",
    "PortForward",
    "ShareDriver",
    "SharedFolder",
    "TapNetwork",
    "UserNetwork",
    "VariablesFile",
    "WatchdogAction",
    "Writes",
    "disk_names",
    "nic_names",
    "problems",
    "require_sound",
]

GICV2_MOST_VCPUS = 8
MOST_VCPUS = 512
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
    ``more_consoles`` are virtio consoles beside the first (hvc0 … in the guest). ``rng`` and ``balloon`` are the virtio
    devices of that name. ``tpm`` needs swtpm. ``secure_boot`` asks for firmware that refuses unsigned programs.
    ``vsock_cid`` is the guest's address on vhost-vsock, 3 or more. ``guest_agent`` adds the serial port that
    qemu-guest-agent listens on. ``platform`` is the hypervisor's own name of its virtual board with a version
    (virt-7.2), which memory that was kept needs; None for its newest.
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
    nics: tuple[Nic, ...] = (UserNetwork(),)
    variables: VariablesFile | None = None
    clock: datetime | None = None
    hotplug_ports: int = DEFAULT_HOTPLUG_PORTS
    scsi_controller: bool = False
    more_consoles: int = 0
    rng: bool = False
    balloon: bool = False
    shares: tuple[SharedFolder, ...] = ()
    tpm: bool = False
    secure_boot: bool = False
    watchdog: WatchdogAction | None = None
    graphics: Graphics | None = None
    usb_keyboard: bool = False
    vsock_cid: int | None = None
    guest_agent: bool = False
    platform: str | None = None


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
    if machine.secure_boot:
        found += _secure_boot_problems(machine)
    found += device_problems(machine, disk_names(machine), nic_names(machine))
    return tuple(found)


def _secure_boot_problems(machine: Machine) -> list[str]:
    if machine.state is ExecutionState.AARCH32:
        return [
            "Secure Boot on an AArch32 machine: no firmware has keys for it; leave secure_boot out, and enroll own ones"
        ]
    if not machine.firmware.enforces_secure_boot:
        name = printable(machine.firmware.code.name)
        return [f"Secure Boot with {name}: it is not known to refuse unsigned programs; leave one of them out"]
    return []


def disk_names(machine: Machine) -> tuple[str, ...]:
    """What each disk is called: by the user, on the command line of QEMU, and where it is detached."""
    return tuple(disk.name or f"disk{index}" for index, disk in enumerate(machine.disks))


def nic_names(machine: Machine) -> tuple[str, ...]:
    """What each network card is called."""
    return tuple(nic.name or f"net{index}" for index, nic in enumerate(machine.nics))


def require_sound(found: tuple[str, ...]) -> None:
    """Raise UsageError that names every one of these problems; none is no error."""
    if found:
        raise UsageError("this machine cannot be: " + "; ".join(found))
