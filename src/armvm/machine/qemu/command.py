"""The QEMU command line of a machine: a pure function from the Machine value to an argument list.

Choices that matter, and why:

* ``acpi=off`` unless ACPI is asked for: with ``acpi=on``, QEMU's default, EDK2 publishes no device tree at all.
* ``-boot menu=on,splash-time=0`` and ``bootindex``: EDK2 neither counts down nor tries the network, whatever the
  variable store holds. Network cards carry no boot ROM.
* Every device has an address of its own (PCI slot, MMIO transport): adding one moves no other, so that what the
  firmware remembered of the disk still holds.
* A file is always given with its format and as a plain file: QEMU never probes a guest's bytes for a format, and no
  file name is taken for a protocol.
* QEMU's virt machine always has a pl011, and EDK2 speaks there and nowhere else. With a virtio console, it leads
  nowhere: what is seen is what the guest itself says on hvc0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from armvm.execution import ExecutionState
from armvm.firmware.discovery import FirmwareKind
from armvm.machine import capabilities
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.capabilities import Capabilities
from armvm.machine.definition import (
    GICV2_MOST_VCPUS,
    Bus,
    Console,
    GicVersion,
    HardwareDescription,
    Machine,
    disk_names,
    nic_names,
)
from armvm.machine.devices import BridgeNetwork, DiskCache, DiskDevice, DiskInterface, Nic, Writes
from armvm.machine.qemu.devices import (
    SCSI_CONTROLLER,
    VARIABLES_NODE,
    blockdev_of,
    device_of_disk,
    device_of_nic,
    file_options,
    hotplug_port,
    image_options,
    netdev_of,
    option,
)
from armvm.machine.qemu.extras import by_virtiofs, device, extras, memory
from armvm.machine.qemu.places import Slot, place_of, place_of_disk, place_of_nic, place_of_port
from armvm.units import MIB

_TCG_CPU = {ExecutionState.AARCH64: "cortex-a72", ExecutionState.AARCH32: "cortex-a15"}
"""ARMv8.0 and ARMv7 with the virtualization extensions; ``max`` costs up to four times as much (pointer
authentication)."""

AGENT = "agent"
"""The channel to the guest agent."""
AGENT_PORT = "org.qemu.guest_agent.0"
"""The name of the serial port that qemu-guest-agent opens in the guest."""
_AGENT_NUMBER = 30  # the last port of a virtio-serial device, so that no console moves it


# RAM starts at 1 GiB; EDK2 for AArch32 says nothing and hangs when its end does not fit into 32 bits.
CAPABILITIES = Capabilities(
    hypervisor="QEMU",
    disk_formats=frozenset({"raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi"}),
    most_memory_bytes={ExecutionState.AARCH32: 3071 * MIB},
    why={
        GicVersion.V4: "QEMU offers no GICv4 to a guest that starts at EL1: under emulation it comes only together with"
        " EL2, and KVM and HVF have none for guests"
    },
)
"""What QEMU's ``virt`` machine can be."""


@dataclass(frozen=True, slots=True)
class Channels:
    """What QEMU inherits by descriptor, beside the console on its standard input and output: nothing listens.

    ``control`` is a socket for QMP; ``variables`` the ephemeral variable store, None when the machine has its own file;
    ``more`` are the sockets of ``channel_names`` by their names. ``given`` leads to what runs beside QEMU
    (``companions``): a tap device by the name of its network card, ``share0`` …, ``tpm``, and VNC's ``password``.
    """

    control: int
    variables: int | None = None
    more: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, int] = field(default_factory=dict)


def channel_names(machine: Machine) -> tuple[str, ...]:
    """What QEMU needs further sockets for: every console beside the first (``console1`` …), the guest agent."""
    consoles = (f"console{index}" for index in range(1, machine.more_consoles + 1))
    return (*consoles, *((AGENT,) if machine.guest_agent else ()))


def plan(
    machine: Machine,
    *,
    program: str,
    accelerator: AcceleratorKind,
    cpu: str | None = None,
    narrow: bool = False,
    sandbox: bool = True,
    paused: bool = False,
    uring: bool = False,
    channels: Channels | None = None,
) -> list[str]:
    """The argument list that makes QEMU's ``program`` be ``machine``.

    ``narrow`` runs an AArch32 guest on the 64-bit QEMU's host CPU. ``paused`` starts it with its vCPUs stopped, and
    ``uring`` has disks read by io_uring, not by threads. Without ``channels`` the console is on standard input and
    output, with QEMU's monitor behind Ctrl-a.
    """
    arguments = [program, "-no-user-config", "-nodefaults", "-display", "none"]
    if sandbox:
        arguments += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    if paused:
        arguments.append("-S")
    description = "on" if machine.description is HardwareDescription.ACPI else "off"
    shared = ",memory-backend=memory" if by_virtiofs(machine) else ""
    given = {} if channels is None else channels.given
    gic = _gic(machine, accelerator)
    arguments += [
        *("-machine", f"{machine.platform or 'virt'},gic-version={gic},acpi={description}{shared}"),
        *("-accel", "tcg,thread=multi" if accelerator is AcceleratorKind.TCG else accelerator.value),
        *("-cpu", cpu or _cpu(machine.state, accelerator, narrow=narrow)),
        *("-smp", str(machine.vcpus)),
        *("-m", f"{machine.memory_bytes // MIB}M"),
        *memory(machine),
        *("-rtc", _clock(machine)),
        *("-boot", "menu=on,splash-time=0"),
        *_firmware(machine, channels),
    ]
    arguments += _hotplug(machine)  # first, for devices that sit there from the start
    for index, (name, disk) in enumerate(zip(disk_names(machine), machine.disks, strict=True)):
        arguments += _disk(machine, disk, name, index, uring=uring)
    for index, (name, nic) in enumerate(zip(nic_names(machine), machine.nics, strict=True)):
        arguments += _nic(machine, nic, name, index, given)
    return arguments + extras(machine, given) + _console(machine, channels)


def problems(machine: Machine) -> tuple[str, ...]:
    """Why QEMU's ``virt`` machine cannot be ``machine``, one sentence each."""
    return capabilities.problems(CAPABILITIES, machine)


def _gic(machine: Machine, accelerator: AcceleratorKind) -> str:
    if machine.gic is not None:
        return str(machine.gic.value)
    if accelerator is AcceleratorKind.KVM:
        return "host"  # what the host's own interrupt controller can virtualise
    if accelerator is AcceleratorKind.HVF and machine.vcpus <= GICV2_MOST_VCPUS:
        return "2"  # a GICv3 under HVF needs QEMU 8.0
    return "3"


def _cpu(state: ExecutionState, accelerator: AcceleratorKind, *, narrow: bool) -> str:
    if accelerator is AcceleratorKind.TCG:
        return _TCG_CPU[state]
    return "host,aarch64=off" if narrow else "host"


def _clock(machine: Machine) -> str:
    if machine.clock is None:
        return "base=utc"
    return f"base={machine.clock:%Y-%m-%dT%H:%M:%S}"


def _firmware(machine: Machine, channels: Channels | None) -> list[str]:
    """Code and variables. Without a variables file the second flash chip has only memory behind it."""
    firmware = machine.firmware
    if firmware.kind is FirmwareKind.BIOS:
        arguments = ["-bios", str(firmware.code.absolute())]
    else:
        code = file_options(firmware.code, firmware.code_format)
        arguments = ["-drive", f"if=pflash,unit=0,readonly=on,{code}"]
    if not firmware.keeps_variables:
        return arguments
    flash = f"if=pflash,unit=1,node-name={VARIABLES_NODE}"
    if machine.variables is not None:
        arguments += ["-drive", f"{flash},{file_options(machine.variables.path, machine.variables.format)}"]
    elif channels is not None and channels.variables is not None:
        arguments += ["-add-fd", f"fd={channels.variables},set=1"]
        # Without auto-read-only=off QEMU would first open the set for reading only, which the descriptor is not.
        arguments += ["-drive", f"{flash},auto-read-only=off,{file_options(Path('/dev/fdset/1'), 'raw')}"]
    return arguments


def _disk(machine: Machine, disk: DiskDevice, name: str, index: int, *, uring: bool) -> list[str]:
    guest_side = device_of_disk(disk, name, place=place_of_disk(machine, index)) | {"bootindex": index}
    if disk.writes is Writes.DISCARDED:
        # -blockdev has no snapshot=on: an overlay that QEMU unlinks as soon as it is open.
        cache = "" if disk.cache is DiskCache.WRITEBACK else f",cache={disk.cache.value}"
        host_side = ["-drive", f"if=none,id={name},{image_options(disk.path, disk.format)}{cache},snapshot=on"]
        guest_side["drive"] = name
    else:
        node = blockdev_of(disk, name)
        if uring:
            node["file"]["aio"] = "io_uring"
        host_side = ["-blockdev", "driver=" + option(node, first="driver")]
    return [*host_side, "-device", option(guest_side, first="driver")]


def _nic(machine: Machine, nic: Nic, name: str, index: int, given: Mapping[str, int]) -> list[str]:
    tap = given.get(name) if isinstance(nic, BridgeNetwork) else None
    guest_side = device_of_nic(nic, name, place=place_of_nic(machine, index))
    host_side = netdev_of(nic, name, tap=tap)
    return ["-netdev", option(host_side, first="type"), "-device", option(guest_side, first="driver")]


def _hotplug(machine: Machine) -> list[str]:
    """Empty root ports, and a SCSI controller: where devices can come and go while the VM runs."""
    arguments: list[str] = []
    if machine.bus is Bus.PCI:
        for index in range(machine.hotplug_ports):
            port = {"id": hotplug_port(index), "chassis": index + 1, "slot": index + 1, **place_of_port(index)}
            arguments += ["-device", option({"driver": "pcie-root-port", **port}, first="driver")]
    if machine.scsi_controller or any(disk.interface is DiskInterface.VIRTIO_SCSI for disk in machine.disks):
        place = place_of(Slot.SCSI, machine.bus)
        arguments += ["-device", device("virtio-scsi", place, {"id": SCSI_CONTROLLER})]
    return arguments


def _console(machine: Machine, channels: Channels | None) -> list[str]:
    if channels is None:
        arguments = ["-chardev", "stdio,id=console,mux=on,signal=off", "-mon", "chardev=console,mode=readline"]
    else:
        # Pipes hold a serial port's single bytes as such; a socket is full after some hundred, and the guest waits.
        arguments = ["-chardev", "stdio,id=console,signal=off"]
        arguments += ["-chardev", f"socket,id=control,fd={channels.control}", "-mon", "chardev=control,mode=control"]
    on_virtio = machine.console is Console.VIRTIO
    arguments += ["-serial", "none" if on_virtio else "chardev:console"]
    more = channel_names(machine)
    if on_virtio or more:
        arguments += ["-device", device("virtio-serial", place_of(Slot.SERIAL, machine.bus))]
    if on_virtio:
        arguments += ["-device", "virtconsole,chardev=console"]
    for number, name in enumerate(more, start=1):
        sockets = {} if channels is None else channels.more
        by_hand = "null" if name == AGENT else "pty"
        host_side = f"socket,id={name},fd={sockets[name]}" if name in sockets else f"{by_hand},id={name}"
        guest_side = f"virtconsole,chardev={name},name={name},nr={number}"
        if name == AGENT:
            guest_side = f"virtserialport,chardev={name},name={AGENT_PORT},nr={_AGENT_NUMBER}"
        arguments += ["-chardev", host_side, "-device", guest_side]
    return arguments
