"""The xl configuration of a machine: a pure function from the Machine value to the text of an xl.cfg(5).

Choices that matter, and why:

* ``type="pvh"``: on ARM every domain is one; EDK2's ArmVirtXen stands in the kernel's place, finds the disk on the Xen
  PV bus and boots it as any UEFI firmware does. Xen tells AArch64 from AArch32 by the header of that file.
* ``on_reboot="preserve"`` and the like: whoever started the domain sees why it went down, takes it away, and starts it
  anew where it asked for that. A configuration that is exported has xl do that itself (``standalone``).
* ``target=`` comes last in a disk's description: it takes the rest of it, whatever is in a file's name
  (xl-disk-configuration(5)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.firmware.discovery import Firmware, FirmwareKind
from armvm.machine.definition import (
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

MOST_VCPUS = 128
"""Xen, xen/arch/arm: what its GICv3 serves in one domain."""
FORMATS = ("raw", "qcow2", "vhd")
"""The disk formats that xl takes (xl-disk-configuration(5)); all but raw through a QEMU in the control domain."""
_FIRST_DISK = ord("a")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class XenHost:
    """How a host connects its domains. None leaves it to xl.

    ``bridge`` is what network cards are put on. ``block_script`` and ``vif_script`` are the host's own hotplug scripts,
    in /etc/xen/scripts; with a block script, disks go through Linux's block backend.
    """

    bridge: str | None = None
    block_script: str | None = None
    vif_script: str | None = None


@dataclass(frozen=True, slots=True)
class Adapted:
    """A machine as Xen can be it, and what was changed for that, one sentence each."""

    machine: Machine
    changes: tuple[str, ...]


def problems(machine: Machine) -> tuple[str, ...]:
    """Why a Xen domain cannot be ``machine``, one sentence each."""
    found: list[str] = []
    if machine.console is not Console.XEN or machine.bus is not Bus.XEN:
        found.append("a Xen domain has Xen PV devices only: its console and its bus are `xen`, and nothing is virtio")
    if machine.gic is GicVersion.V4:
        found.append("Xen offers its domains a GICv2 or a GICv3, no GICv4")
    if machine.vcpus > MOST_VCPUS:
        found.append(f"{machine.vcpus} vCPUs: a Xen domain on ARM has at most {MOST_VCPUS}")
    if machine.variables is not None or machine.firmware.keeps_variables:
        found.append("the UEFI firmware of a Xen domain keeps no variables: each start has a fresh store")
    if machine.clock is not None:
        found.append("the clock of a Xen domain on ARM is the host's and cannot be set")
    if machine.scsi_controller:
        found.append("a Xen domain has no virtio-scsi controller; every PV disk can come and go")
    for disk in machine.disks:
        found += _disk_problems(disk)
    if any(nic.forwards for nic in machine.nics):
        found.append("Xen puts network cards on a bridge of the host, and forwards no ports")
    return tuple(found)


def _disk_problems(disk: DiskDevice) -> list[str]:
    found = []
    if disk.sector_size != 512:
        found.append(f"{disk.path}: a Xen PV disk that is a file has sectors of 512 bytes, not {disk.sector_size}")
    if disk.format not in FORMATS:
        found.append(f"{disk.path}: xl takes disks of the formats {', '.join(FORMATS)}, not {disk.format}")
    if disk.writes is Writes.DISCARDED:
        found.append(f"{disk.path}: Xen keeps what the guest writes to a disk, or lets it write nothing")
    if not str(disk.path).isprintable():
        found.append(f"{str(disk.path)!r}: a name with unprintable characters cannot stand in an xl configuration")
    return found


def adapt(machine: Machine, firmware: Firmware) -> Adapted:
    """``machine`` with what Xen has in place of what it cannot be; ``firmware`` is the one for Xen domains.

    What has no counterpart (a kept variable store, port forwards, a set clock) is left out, and said. What remains
    impossible (sector size, disk format) is for ``problems`` to say.
    """
    changes: list[str] = []
    if machine.console is not Console.XEN:
        changes.append(f"the console is Xen's (hvc0) in place of {machine.console.value}")
    if machine.bus is not Bus.XEN:
        changes.append("disks and network cards are Xen PV devices (xvda …) in place of virtio ones")
    if machine.variables is not None:
        changes.append("UEFI variables are not kept: the firmware boots by the removable-media path")
    if machine.gic is GicVersion.V4:
        changes.append("the interrupt controller is what the host offers in place of a GICv4")
    if machine.clock is not None:
        changes.append("the clock is the host's")
    if any(nic.forwards for nic in machine.nics):
        changes.append("no ports are forwarded: the network cards stand on a bridge of the host")
    if any(disk.writes is Writes.DISCARDED for disk in machine.disks):
        changes.append("what the guest writes to its disks is kept")
    adapted = replace(
        machine,
        firmware=firmware,
        console=Console.XEN,
        bus=Bus.XEN,
        variables=None,
        gic=None if machine.gic is GicVersion.V4 else machine.gic,
        clock=None,
        scsi_controller=False,
        nics=tuple(UserNetwork() for _ in machine.nics),
        disks=tuple(
            replace(disk, writes=Writes.KEPT) if disk.writes is Writes.DISCARDED else disk for disk in machine.disks
        ),
    )
    return Adapted(adapted, tuple(changes))


def xen_firmware(code: Path, *, source: str = "the user") -> Firmware:
    """The value for a firmware that is built for Xen domains (EDK2's ArmVirtXen), which stands in a kernel's place."""
    return Firmware(
        name="EDK2 ArmVirtXen",
        kind=FirmwareKind.BIOS,
        code=code,
        code_format="raw",
        vars_template=None,
        vars_format="raw",
        source=source,
        keeps_variables=False,
    )


def is_domain_name(name: str) -> bool:
    """Whether ``name`` can name a domain: letters, digits and ``_.+-``, not a number alone (that is a domain's id)."""
    return _NAME.fullmatch(name) is not None and not name.isdigit()


def render(machine: Machine, *, name: str, host: XenHost | None = None, standalone: bool = True) -> str:
    """The text of the configuration. ``standalone`` has xl itself restart the domain that resets itself.

    What ``problems`` names is the caller's to refuse.
    """
    host = host or XenHost()
    endings = ("destroy", "restart", "destroy") if standalone else ("preserve", "preserve", "preserve")
    lines = [
        f"name = {quoted(name)}",
        'type = "pvh"',
        f"kernel = {quoted(str(machine.firmware.code.absolute()))}",
        f"memory = {machine.memory_bytes // MIB}",
        f"vcpus = {machine.vcpus}",
        *([f'gic_version = "v{machine.gic.value}"'] if machine.gic else []),
        *(["acpi = 1"] if machine.description is HardwareDescription.ACPI else []),
        _list("disk", [disk_specification(disk, index, host) for index, disk in enumerate(machine.disks)]),
        _list("vif", [nic_specification(host) for _ in machine.nics]),
        *(f'on_{event} = "{what}"' for event, what in zip(("poweroff", "reboot", "crash"), endings, strict=True)),
    ]
    return "".join(f"{line}\n" for line in lines)


def disk_specification(disk: DiskDevice, index: int, host: XenHost) -> str:
    """A disk as xl takes it, the ``index``-th of its domain (xvda, xvdb …)."""
    access = "ro" if disk.writes is Writes.REFUSED else "rw"
    parts = [f"format={disk.format}", f"vdev={device_name(index)}", f"access={access}"]
    if host.block_script is not None and disk.format == "raw":
        parts += ["backendtype=phy", f"script={host.block_script}"]
    return ",".join([*parts, f"target={disk.path.absolute()}"])


def nic_specification(host: XenHost, *, mac: str | None = None) -> str:
    """A network card as xl takes it; without ``mac`` xl makes one up."""
    if mac is not None and not _MAC.fullmatch(mac):
        raise ValueError(f"no MAC address: {mac!r}")
    parts = [f"mac={mac}"] if mac else []
    parts += [f"bridge={host.bridge}"] if host.bridge else []
    parts += [f"script={host.vif_script}"] if host.vif_script else []
    return ",".join(parts)


def device_name(index: int) -> str:
    """What a domain calls its ``index``-th disk."""
    return f"xvd{chr(_FIRST_DISK + index)}"


def quoted(text: str) -> str:
    r"""A string in the configuration's syntax (Xen, libxlu_cfg_l.l), of printable characters only.

    xl takes any byte but a line feed as it is; its numeric escapes are broken (4.17 refuses ``\x41``).
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _list(name: str, entries: list[str]) -> str:
    return f"{name} = [{', '.join(map(quoted, entries))}]"
