"""Cloud Hypervisor's command line of a machine: a pure function from the Machine value to an argument list.

Source: Cloud Hypervisor, docs/arm64.md, docs/uefi.md, docs/device_model.md, docs/hotplug.md.
"""

from __future__ import annotations

from pathlib import Path

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.machine.capabilities import Capabilities, Feature, NicKind
from armvm.machine.capabilities import problems as lacks
from armvm.machine.definition import (
    Bus,
    Console,
    DiskDevice,
    DiskInterface,
    GicVersion,
    HardwareDescription,
    Machine,
    Nic,
    TapNetwork,
    WatchdogAction,
    Writes,
)
from armvm.units import MIB

PROGRAM = "cloud-hypervisor"
FIRMWARE = "CLOUDHV_EFI.fd"
"""EDK2 built for Cloud Hypervisor (ArmVirtPkg/ArmVirtCloudHv.dsc); firmware for QEMU does not start on it."""

CAPABILITIES = Capabilities(
    hypervisor="Cloud Hypervisor",
    states=frozenset({ExecutionState.AARCH64}),
    gics=frozenset({GicVersion.V3}),
    descriptions=frozenset({HardwareDescription.ACPI}),
    buses=frozenset({Bus.PCI}),
    disk_formats=frozenset({"raw", "qcow2", "vhdx"}),
    disk_interfaces=frozenset({DiskInterface.VIRTIO_BLK}),
    sector_sizes=frozenset({512}),
    writes=frozenset({Writes.KEPT, Writes.REFUSED}),
    nics=frozenset({NicKind.TAP}),
    watchdog_actions=frozenset({WatchdogAction.RESET}),
    features=frozenset(
        {Feature.RNG, Feature.BALLOON, Feature.HOTPLUG_PORTS, Feature.HOTPLUG_DISK, Feature.HOTPLUG_NIC}
    ),
    why={
        ExecutionState.AARCH32: "it runs AArch64 guests with KVM, and nothing else",
        HardwareDescription.DT: "its firmware hands on ACPI tables",
        GicVersion.V2: "it has a GICv3 with ITS",
        Writes.DISCARDED: "it has no disks that forget; give it an overlay or a copy",
        Feature.VARIABLES: "its firmware keeps UEFI variables in memory only",
        NicKind.USER: "it has no user-mode network; give it a tap device",
    },
)
"""What Cloud Hypervisor can be on an ARM host with KVM."""


def problems(machine: Machine) -> tuple[str, ...]:
    """Why Cloud Hypervisor cannot be ``machine``, one sentence each."""
    return lacks(CAPABILITIES, machine)


def plan(machine: Machine, *, program: str = PROGRAM, firmware: Path, api_socket: Path | None = None) -> list[str]:
    """The argument list, the console on standard input and output. What the machine has beyond it is left out."""
    arguments = [program, "--kernel", _word(firmware)]
    arguments += ["--cpus", f"boot={machine.vcpus}", "--memory", f"size={machine.memory_bytes // MIB}M"]
    if machine.disks:
        arguments += ["--disk", *map(_disk, machine.disks)]
    taps = [_nic(nic) for nic in machine.nics if isinstance(nic, TapNetwork)]
    if taps:
        arguments += ["--net", *taps]
    pl011 = machine.console is Console.PL011
    arguments += ["--serial", "tty" if pl011 else "off", "--console", "off" if pl011 else "tty"]
    if machine.rng:
        arguments += ["--rng", "src=/dev/urandom"]
    if machine.balloon:
        arguments += ["--balloon", "size=0"]
    if machine.watchdog is not None:
        arguments.append("--watchdog")
    if api_socket is not None:
        arguments += ["--api-socket", f"path={_word(api_socket)}"]
    return arguments


def _disk(disk: DiskDevice) -> str:
    words = [f"path={_word(disk.path)}"]
    if disk.writes is Writes.REFUSED:
        words.append("readonly=on")
    if disk.serial:
        words.append(f"serial={disk.serial}")
    if disk.name:
        words.append(f"id={disk.name}")
    if disk.format == "qcow2":
        words.append("backing_files=on")
    return ",".join(words)


def _nic(nic: Nic) -> str:
    words = [f"tap={nic.interface}"] if isinstance(nic, TapNetwork) else []
    if nic.mac:
        words.append(f"mac={nic.mac}")
    if nic.name:
        words.append(f"id={nic.name}")
    return ",".join(words)


def _word(path: Path) -> str:
    """A path as an option's value, which has no way of quoting a comma."""
    text = str(path.absolute())
    if any(character in text for character in ',[]"'):
        raise UsageError(f"Cloud Hypervisor's options take no path with a comma, bracket or quote in it: {text}")
    return text
