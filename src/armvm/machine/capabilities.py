"""What a hypervisor can be, as facts; what it cannot is said from these before anything is started."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from armvm.execution import ExecutionState
from armvm.machine.definition import (
    Bus,
    Console,
    DiskInterface,
    GicVersion,
    HardwareDescription,
    Machine,
    UserNetwork,
)
from armvm.machine.devices import BridgeNetwork, LinkNetwork, Nic, TapNetwork, WatchdogAction, Writes
from armvm.units import MIB


class NicKind(enum.Enum):
    """What stands behind a network card on the host."""

    USER = "user-mode network"
    TAP = "tap device"
    BRIDGE = "bridge"
    LINK = "link between two instances"


NIC_KINDS: Mapping[type[Nic], NicKind] = {
    UserNetwork: NicKind.USER,
    TapNetwork: NicKind.TAP,
    BridgeNetwork: NicKind.BRIDGE,
    LinkNetwork: NicKind.LINK,
}


class Feature(enum.Enum):
    """What a hypervisor has, or has not; each is a sentence's subject."""

    PORT_FORWARD = "port forwarding"
    HOTPLUG_PORTS = "empty hotplug ports"
    SCSI_CONTROLLER = "a virtio-scsi controller"
    MORE_CONSOLES = "further consoles"
    RNG = "a virtio random number generator"
    BALLOON = "a virtio balloon"
    SHARED_FOLDERS = "shared folders"
    TPM = "a TPM"
    SECURE_BOOT = "Secure Boot"
    GRAPHICS = "a screen"
    USB_KEYBOARD = "a USB keyboard"
    VSOCK = "vsock"
    GUEST_AGENT = "the guest agent's port"
    CLOCK = "a clock that starts at a chosen time"
    VARIABLES = "UEFI variables kept in a file"
    # What a machine does not ask for when it is started, but may want while it runs:
    HOTPLUG_DISK = "disks that come and go while the machine runs"
    HOTPLUG_NIC = "network cards that come and go while the machine runs"
    SNAPSHOTS = "snapshots of disks and variables"
    LIVE_SNAPSHOTS = "snapshots with memory"


ALL = frozenset(Feature)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """All that one hypervisor, as it is on this host, can be.

    ``most_memory_bytes`` is the limit by execution state, absent where there is none. ``why`` gives the reason for
    what is missing, by the missing member. ``disk_formats`` and ``variables_formats`` are spelt as QEMU does.
    """

    hypervisor: str
    states: frozenset[ExecutionState] = frozenset(ExecutionState)
    gics: frozenset[GicVersion] = frozenset({GicVersion.V2, GicVersion.V3})
    descriptions: frozenset[HardwareDescription] = frozenset(HardwareDescription)
    consoles: frozenset[Console] = frozenset({Console.PL011, Console.VIRTIO})
    buses: frozenset[Bus] = frozenset({Bus.PCI, Bus.MMIO})
    disk_formats: frozenset[str] = frozenset({"raw", "qcow2"})
    disk_interfaces: frozenset[DiskInterface] = frozenset(DiskInterface)
    sector_sizes: frozenset[int] = frozenset({512, 4096})
    writes: frozenset[Writes] = frozenset(Writes)
    nics: frozenset[NicKind] = frozenset(NicKind)
    watchdog_actions: frozenset[WatchdogAction] = frozenset(WatchdogAction)
    variables_formats: frozenset[str] = frozenset({"raw", "qcow2"})
    features: frozenset[Feature] = ALL
    most_memory_bytes: Mapping[ExecutionState, int] = field(default_factory=dict)
    why: Mapping[enum.Enum, str] = field(default_factory=dict)


def asked_features(machine: Machine) -> frozenset[Feature]:
    """What ``machine`` must have of its hypervisor to be started."""
    asked = {
        Feature.PORT_FORWARD: any(isinstance(nic, UserNetwork) and nic.forwards for nic in machine.nics),
        Feature.SCSI_CONTROLLER: machine.scsi_controller,
        Feature.MORE_CONSOLES: machine.more_consoles > 0,
        Feature.RNG: machine.rng,
        Feature.BALLOON: machine.balloon,
        Feature.SHARED_FOLDERS: bool(machine.shares),
        Feature.TPM: machine.tpm,
        Feature.SECURE_BOOT: machine.secure_boot,
        Feature.GRAPHICS: machine.graphics is not None,
        Feature.USB_KEYBOARD: machine.usb_keyboard,
        Feature.VSOCK: machine.vsock_cid is not None,
        Feature.GUEST_AGENT: machine.guest_agent,
        Feature.CLOCK: machine.clock is not None,
        Feature.VARIABLES: machine.variables is not None,
    }
    return frozenset(feature for feature, wanted in asked.items() if wanted)


def problems(capabilities: Capabilities, machine: Machine) -> tuple[str, ...]:
    """Why the hypervisor cannot be ``machine``, one sentence each."""
    name = capabilities.hypervisor
    found: list[str] = []

    def lacks(what: str, member: enum.Enum | None = None) -> None:
        reason = capabilities.why.get(member) if member is not None else None
        found.append(f"{name} cannot be {what}" + (f": {reason}" if reason else ""))

    if machine.state not in capabilities.states:
        lacks(f"an {machine.state.label} machine here", machine.state)
    if machine.gic is not None and machine.gic not in capabilities.gics:
        lacks(f"a machine with a GICv{machine.gic.value}", machine.gic)
    if machine.description not in capabilities.descriptions:
        lacks(f"a machine described by {machine.description.value}", machine.description)
    if machine.console not in capabilities.consoles:
        lacks(f"a machine with a {machine.console.value} console", machine.console)
    if machine.bus not in capabilities.buses:
        devices = "Xen PV devices" if machine.bus is Bus.XEN else f"virtio on {machine.bus.value}"
        lacks(f"a machine with {devices}", machine.bus)
    most = capabilities.most_memory_bytes.get(machine.state)
    if most is not None and machine.memory_bytes > most:
        found.append(
            f"{machine.memory_bytes // MIB} MiB of memory: {machine.state.label} firmware starts with at most"
            f" {most // MIB}"
        )
    for feature in sorted(asked_features(machine) - capabilities.features, key=lambda one: one.name):
        lacks(f"a machine with {feature.value}", feature)
    if machine.variables is not None and machine.variables.format not in capabilities.variables_formats:
        lacks(f"a machine with its UEFI variables in a {machine.variables.format} file")
    if machine.watchdog is not None and machine.watchdog not in capabilities.watchdog_actions:
        lacks(f"a machine whose watchdog does {machine.watchdog.value}", machine.watchdog)
    found += _disk_problems(capabilities, machine)
    kinds = {NIC_KINDS[type(nic)] for nic in machine.nics} - capabilities.nics
    for kind in sorted(kinds, key=lambda one: one.name):
        lacks(f"a machine with a network card on a {kind.value}", kind)
    return tuple(found)


def _disk_problems(capabilities: Capabilities, machine: Machine) -> list[str]:
    name = capabilities.hypervisor
    found = []
    for disk in machine.disks:
        if disk.format not in capabilities.disk_formats:
            found.append(f"{name} has no disks of format {disk.format} ({disk.path}): armvm convert makes another")
        if disk.sector_size not in capabilities.sector_sizes:
            found.append(f"{name} has no disks with sectors of {disk.sector_size} bytes ({disk.path})")
        if disk.interface not in capabilities.disk_interfaces:
            reason = capabilities.why.get(disk.interface)
            found.append(
                f"{name} has no {disk.interface.value} disks ({disk.path})" + (f": {reason}" if reason else "")
            )
        if disk.writes not in capabilities.writes:
            reason = capabilities.why.get(disk.writes)
            found.append(
                f"{name} has no disks whose writes are {disk.writes.value} ({disk.path})"
                + (f": {reason}" if reason else "")
            )
    return found
