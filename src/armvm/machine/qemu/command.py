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

from dataclasses import dataclass
from pathlib import Path

from armvm.execution import ExecutionState
from armvm.firmware.discovery import FirmwareKind
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import (
    GICV2_MOST_VCPUS,
    Bus,
    Console,
    DiskDevice,
    GicVersion,
    HardwareDescription,
    Machine,
    UserNetwork,
    Writes,
)
from armvm.units import MIB

_TCG_CPU = {ExecutionState.AARCH64: "cortex-a72", ExecutionState.AARCH32: "cortex-a15"}
"""ARMv8.0 and ARMv7 with the virtualization extensions; ``max`` costs up to four times as much (pointer
authentication)."""

_SERIAL_SLOT = 1
_FIRST_NIC_SLOT = 2
_FIRST_DISK_SLOT = 8
_FIRST_PORT_SLOT = 24
_SCSI_SLOT = 31


SCSI_CONTROLLER = "scsi0"
"""QEMU's name of the SCSI controller."""


def hotplug_port(index: int) -> str:
    """QEMU's name of an empty root port."""
    return f"port{index}"


@dataclass(frozen=True, slots=True)
class Channels:
    """What QEMU inherits by descriptor, beside the console on its standard input and output: nothing listens.

    ``control`` is a socket for QMP; ``variables`` the ephemeral variable store, None when the machine has its own file.
    """

    control: int
    variables: int | None = None


def plan(
    machine: Machine,
    *,
    program: str,
    accelerator: AcceleratorKind,
    cpu: str | None = None,
    narrow: bool = False,
    sandbox: bool = True,
    channels: Channels | None = None,
) -> list[str]:
    """The argument list that makes QEMU's ``program`` be ``machine``.

    ``narrow`` runs an AArch32 guest on the 64-bit QEMU's host CPU. Without ``channels`` the console is on standard
    input and output, with QEMU's monitor behind Ctrl-a.
    """
    arguments = [program, "-no-user-config", "-nodefaults", "-display", "none"]
    if sandbox:
        arguments += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    description = "on" if machine.description is HardwareDescription.ACPI else "off"
    arguments += [
        *("-machine", f"virt,gic-version={_gic(machine, accelerator)},acpi={description}"),
        *("-accel", "tcg,thread=multi" if accelerator is AcceleratorKind.TCG else accelerator.value),
        *("-cpu", cpu or _cpu(machine.state, accelerator, narrow=narrow)),
        *("-smp", str(machine.vcpus)),
        *("-m", f"{machine.memory_bytes // MIB}M"),
        *("-rtc", _clock(machine)),
        *("-boot", "menu=on,splash-time=0"),
        *_firmware(machine, channels),
    ]
    for index, disk in enumerate(machine.disks):
        arguments += _disk(disk, index, machine.bus)
    for index, nic in enumerate(machine.nics):
        arguments += _nic(nic, index, machine.bus)
    return arguments + _hotplug(machine) + _console(machine, channels)


def problems(machine: Machine) -> tuple[str, ...]:
    """Why QEMU's ``virt`` machine cannot be ``machine``, one sentence each."""
    found: list[str] = []
    if machine.gic is GicVersion.V4:
        found.append(
            "QEMU offers no GICv4 to a guest that starts at EL1: under emulation it comes only together with EL2,"
            " and KVM and HVF have none for guests"
        )
    if machine.console is Console.XEN or machine.bus is Bus.XEN:
        found.append("QEMU's virt machine has no Xen PV devices: those are what a Xen domain has")
    # RAM starts at 1 GiB; EDK2 for AArch32 says nothing and hangs when its end does not fit into 32 bits.
    most = 3071 * MIB
    if machine.state is ExecutionState.AARCH32 and machine.memory_bytes > most:
        found.append(f"{machine.memory_bytes // MIB} MiB of memory: AArch32 firmware starts with at most {most // MIB}")
    return tuple(found)


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
        code = _file(firmware.code, firmware.code_format)
        arguments = ["-drive", f"if=pflash,unit=0,readonly=on,{code}"]
    if not firmware.keeps_variables:
        return arguments
    if machine.variables is not None:
        arguments += ["-drive", f"if=pflash,unit=1,{_file(machine.variables.path, machine.variables.format)}"]
    elif channels is not None and channels.variables is not None:
        arguments += ["-add-fd", f"fd={channels.variables},set=1"]
        # Without auto-read-only=off QEMU would first open the set for reading only, which the descriptor is not.
        arguments += ["-drive", f"if=pflash,unit=1,auto-read-only=off,{_file(Path('/dev/fdset/1'), 'raw')}"]
    return arguments


def _disk(disk: DiskDevice, index: int, bus: Bus) -> list[str]:
    drive = f"if=none,id=disk{index},{_file(disk.path, disk.format)}"
    if disk.writes is Writes.DISCARDED:
        drive += ",snapshot=on"  # an overlay that QEMU unlinks as soon as it is open
    elif disk.writes is Writes.REFUSED:
        drive += ",readonly=on"
    else:
        drive += ",discard=unmap"
    device = f"{_device('virtio-blk', bus, _FIRST_DISK_SLOT + index)},drive=disk{index},bootindex={index}"
    if disk.sector_size != 512:
        device += f",logical_block_size={disk.sector_size},physical_block_size={disk.sector_size}"
    return ["-drive", drive, "-device", device]


def _nic(nic: UserNetwork, index: int, bus: Bus) -> list[str]:
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{forward.host_port}-:{forward.guest_port}" for forward in nic.forwards)
    device = f"{_device('virtio-net', bus, _FIRST_NIC_SLOT + index)},netdev=net{index}"
    if bus is Bus.PCI:
        device += ",romfile="
    return ["-netdev", f"user,id=net{index}{forwards}", "-device", device]


def _hotplug(machine: Machine) -> list[str]:
    """Empty root ports, and a SCSI controller: where devices can come and go while the VM runs."""
    arguments: list[str] = []
    if machine.bus is Bus.PCI:
        for index in range(machine.hotplug_ports):
            slot = _FIRST_PORT_SLOT + index
            port = f"pcie-root-port,id={hotplug_port(index)},chassis={index + 1},slot={index + 1},addr={slot:#x}"
            arguments += ["-device", port]
    if machine.scsi_controller:
        arguments += ["-device", f"{_device('virtio-scsi', machine.bus, _SCSI_SLOT)},id={SCSI_CONTROLLER}"]
    return arguments


def _console(machine: Machine, channels: Channels | None) -> list[str]:
    if channels is None:
        arguments = ["-chardev", "stdio,id=console,mux=on,signal=off", "-mon", "chardev=console,mode=readline"]
    else:
        # Pipes hold a serial port's single bytes as such; a socket is full after some hundred, and the guest waits.
        arguments = ["-chardev", "stdio,id=console,signal=off"]
        arguments += ["-chardev", f"socket,id=control,fd={channels.control}", "-mon", "chardev=control,mode=control"]
    if machine.console is Console.PL011:
        return [*arguments, "-serial", "chardev:console"]
    bus = _device("virtio-serial", machine.bus, _SERIAL_SLOT)
    return [*arguments, "-serial", "none", "-device", bus, "-device", "virtconsole,chardev=console"]


def _device(name: str, bus: Bus, slot: int) -> str:
    """A virtio device at its place: PCI slot ``slot``, or the virtio-mmio transport of the same number."""
    return f"{name}-pci,addr={slot:#x}" if bus is Bus.PCI else f"{name}-device,bus=virtio-mmio-bus.{slot}"


def _file(path: Path, form: str) -> str:
    """A file as QEMU's option syntax has it: relative to nothing, no protocol, commas doubled.

    Whether it is a block device is the one thing that is looked at: QEMU has another driver for these.
    """
    name = str(path.absolute()).replace(",", ",,")
    driver = "host_device" if path.is_block_device() else "file"
    return f"driver={form},file.driver={driver},file.filename={name}"
