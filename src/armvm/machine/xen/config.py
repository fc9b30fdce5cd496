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
from dataclasses import dataclass
from pathlib import Path

from armvm.firmware.discovery import Firmware, FirmwareKind
from armvm.machine import capabilities
from armvm.machine.capabilities import Capabilities, Feature, NicKind
from armvm.machine.definition import (
    BridgeNetwork,
    Bus,
    Console,
    DiskDevice,
    DiskInterface,
    GicVersion,
    HardwareDescription,
    Machine,
    Nic,
    Writes,
)
from armvm.machine.export.source import Exported, Source, comment_lines
from armvm.units import MIB

CAPABILITIES = Capabilities(
    hypervisor="Xen",
    consoles=frozenset({Console.XEN}),
    buses=frozenset({Bus.XEN}),
    disk_formats=frozenset({"raw", "qcow2", "vpc"}),
    disk_interfaces=frozenset({DiskInterface.VIRTIO_BLK}),
    sector_sizes=frozenset({512}),
    writes=frozenset({Writes.KEPT, Writes.REFUSED}),
    nics=frozenset({NicKind.BRIDGE}),
    watchdog_actions=frozenset(),
    variables_formats=frozenset(),
    features=frozenset({Feature.HOTPLUG_DISK, Feature.HOTPLUG_NIC}),
    why={
        Console.PL011: "a domain has Xen's own console",
        Console.VIRTIO: "a domain has Xen's own console",
        Bus.PCI: "a domain has Xen PV devices, and nothing is virtio",
        Bus.MMIO: "a domain has Xen PV devices, and nothing is virtio",
        GicVersion.V4: "Xen offers its domains a GICv2 or a GICv3",
        Writes.DISCARDED: "Xen keeps what the guest writes to a disk, or lets it write nothing",
        NicKind.USER: "Xen puts network cards on a bridge of the host",
        Feature.VARIABLES: "the UEFI firmware of a domain keeps none, and each start has a fresh store",
        Feature.CLOCK: "the clock of a domain on ARM is the host's",
        Feature.SCSI_CONTROLLER: "every PV disk can come and go without one",
        Feature.PORT_FORWARD: "Xen puts network cards on a bridge of the host",
    },
)
"""What a domain on ARM can be. Formats but raw go through a QEMU in the control domain (xl-disk-configuration(5))."""
MOST_VCPUS = 128
"""Xen, xen/arch/arm: what its GICv3 serves in one domain."""
DEFAULT_BRIDGE = "xenbr0"
FIRMWARE_PLACE = Path("/usr/local/lib/xen/boot/XEN_EFI.fd")
"""Where an exported configuration expects the firmware: no distribution packages it."""
_FORMATS = {"raw": "raw", "qcow2": "qcow2", "vpc": "vhd"}
"""QEMU's word to xl's."""
_FIRST_DISK = ord("a")
_MOST_DISKS = 26
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_WORD = re.compile(r"[A-Za-z0-9_.:-]+")


@dataclass(frozen=True, slots=True)
class XenHost:
    """How a host connects its domains: its own hotplug scripts, in /etc/xen/scripts. None leaves it to xl.

    With a block script, disks go through Linux's block backend, which takes raw ones only.
    """

    block_script: str | None = None
    vif_script: str | None = None


@dataclass(frozen=True, slots=True)
class Adapted:
    """A machine as Xen can be it, and what was changed for that, one sentence each."""

    machine: Machine
    changes: tuple[str, ...]


def problems(machine: Machine, able: Capabilities = CAPABILITIES) -> tuple[str, ...]:
    """Why a Xen domain cannot be ``machine``, one sentence each."""
    found = [*capabilities.problems(able, machine)]
    if machine.vcpus > MOST_VCPUS:
        found.append(f"{machine.vcpus} vCPUs: a Xen domain on ARM has at most {MOST_VCPUS}")
    if len(machine.disks) >= _MOST_DISKS:
        found.append(f"{len(machine.disks)} disks: a Xen domain has fewer than {_MOST_DISKS}")
    found += [
        f"{str(path)!r}: a name with unprintable characters cannot stand in an xl configuration"
        for path in (machine.firmware.code, *(disk.path for disk in machine.disks))
        if not str(path).isprintable()
    ]
    found += [
        f"{nic.bridge!r} cannot be the name of a bridge in an xl configuration"
        for nic in machine.nics
        if isinstance(nic, BridgeNetwork) and not _WORD.fullmatch(nic.bridge)
    ]
    return tuple(found)


def adapt(machine: Machine, firmware: Firmware) -> Adapted:
    """``machine`` with what Xen has in place of what it cannot be; ``firmware`` is the one for Xen domains.

    What has no counterpart (a kept variable store, port forwards, a set clock) is left out, and said. What remains
    impossible (sector size, disk format) is for ``problems`` to say.
    """
    able = CAPABILITIES
    changes: list[str] = []
    if machine.console not in able.consoles:
        changes.append(f"the console is Xen's (hvc0) in place of {machine.console.value}")
    if machine.bus not in able.buses:
        changes.append("disks and network cards are Xen PV devices (xvda …) in place of virtio ones")
    if machine.variables is not None:
        changes.append("UEFI variables are not kept: the firmware boots by the removable-media path")
    if machine.gic not in {None, *able.gics}:
        changes.append("the interrupt controller is what the host offers in place of a GICv4")
    nics = tuple(
        nic if isinstance(nic, BridgeNetwork) else BridgeNetwork(DEFAULT_BRIDGE, nic.mac) for nic in machine.nics
    )
    if nics != machine.nics:
        changes.append(f"network cards stand on the host's bridge {DEFAULT_BRIDGE}, and no ports are forwarded")
    if any(disk.writes is Writes.DISCARDED for disk in machine.disks):
        changes.append("what the guest writes to its disks is kept: give it a copy")
    lost = capabilities.asked_features(machine) - able.features - {Feature.VARIABLES, Feature.PORT_FORWARD}
    changes += [f"{feature.value} is left out" for feature in sorted(lost, key=lambda one: one.name)]
    adapted = Machine(
        state=machine.state,
        firmware=firmware,
        disks=tuple(
            DiskDevice(
                disk.path,
                disk.format,
                disk.sector_size,
                Writes.KEPT if disk.writes is Writes.DISCARDED else disk.writes,
                name=disk.name,
            )
            for disk in machine.disks
        ),
        memory_bytes=machine.memory_bytes,
        vcpus=machine.vcpus,
        gic=machine.gic if machine.gic in able.gics else None,
        description=machine.description,
        console=Console.XEN,
        bus=Bus.XEN,
        nics=nics,
    )
    return Adapted(adapted, tuple(changes))


def export(source: Source) -> Exported:
    """The configuration of the nearest machine that Xen can be, with what that changes as warnings.

    Raises UsageError for what has no counterpart (disks of 4096-byte sectors).
    """
    from armvm.machine.definition import require_sound

    adapted = adapt(source.machine, xen_firmware(FIRMWARE_PLACE))
    require_sound(problems(adapted.machine))
    warnings = (
        *adapted.changes,
        f"the firmware is EDK2's ArmVirtXen, which `armvm lab up xen` builds: put it at {FIRMWARE_PLACE}",
    )
    name = source.name if is_domain_name(source.name) else f"vm-{re.sub(r'[^A-Za-z0-9_.+-]', '-', source.name)[:59]}"
    head = comment_lines((f"{source.name}: made by armvm vm export, for `xl create`", *warnings))
    return Exported(head + render(adapted.machine, name=name), warnings)


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
        _list("vif", [nic_specification(nic, host) for nic in machine.nics]),
        *(f'on_{event} = "{what}"' for event, what in zip(("poweroff", "reboot", "crash"), endings, strict=True)),
    ]
    return "".join(f"{line}\n" for line in lines)


def disk_specification(disk: DiskDevice, index: int, host: XenHost) -> str:
    """A disk as xl takes it, the ``index``-th of its domain (xvda, xvdb …)."""
    access = "ro" if disk.writes is Writes.REFUSED else "rw"
    parts = [f"format={_FORMATS[disk.format]}", f"vdev={device_name(index)}", f"access={access}"]
    if host.block_script is not None and disk.format == "raw":
        parts += ["backendtype=phy", f"script={host.block_script}"]
    return ",".join([*parts, f"target={disk.path.absolute()}"])


def nic_specification(nic: Nic, host: XenHost) -> str:
    """A network card as xl takes it; without an address xl makes one up, without a bridge the host's script decides."""
    parts = []
    if nic.mac is not None:
        if not _MAC.fullmatch(nic.mac):
            raise ValueError(f"no MAC address: {nic.mac!r}")
        parts.append(f"mac={nic.mac.lower()}")
    if isinstance(nic, BridgeNetwork):
        parts.append(f"bridge={nic.bridge}")
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
