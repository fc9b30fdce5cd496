"""The libvirt domain of a machine: a pure function from the Machine value to XML (libvirt, docs/formatdomain.rst).

Choices that matter, and why:

* ``<acpi/>`` is left out unless ACPI is asked for: libvirt then starts QEMU with ACPI off, and EDK2 publishes a device
  tree.
* Every device stands at an address of its own on the root bus, as with ``qemu.command``: none moves when another comes.
  The root ports are all empty, for what is attached later.
* The boot menu is on with a time of 0, and the disks have boot orders: EDK2 neither counts down nor tries the network.
* No balloon, USB controller or ROM that was not asked for: libvirt adds them when it is not told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import assert_never
from xml.etree import ElementTree as ET  # it writes here; what is read goes through libvirt.xml_reader

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import EMULATORS, FirmwareKind
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import (
    Bus,
    Console,
    DiskDevice,
    DiskInterface,
    HardwareDescription,
    Machine,
    Nic,
    VariablesFile,
    disk_names,
    nic_names,
)
from armvm.machine.devices import (
    BridgeNetwork,
    Graphics,
    LinkNetwork,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    Writes,
)
from armvm.units import MIB

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ALIAS = "ua-"
"""What libvirt wants a device's name to begin with that the user gives."""

_ARCHITECTURES = {ExecutionState.AARCH64: "aarch64", ExecutionState.AARCH32: "armv7l"}
_TCG_CPU = {ExecutionState.AARCH64: "cortex-a72", ExecutionState.AARCH32: "cortex-a15"}
_SERIAL_SLOT, _FIRST_NIC_SLOT, _FIRST_DISK_SLOT, _FIRST_MORE_SLOT = 1, 2, 8, 16
_FIRST_PORT_SLOT, _USB_SLOT, _SCSI_SLOT = 24, 23, 31
_VARIABLES_NODE = "libvirt-armvm-variables"


@dataclass(frozen=True, slots=True)
class Domain:
    """How a machine is told to libvirt.

    ``console`` is the unix socket that the console is connected to, on which somebody listens; None makes it a
    terminal of libvirt's. ``variables_by_command`` hands the variable store over on QEMU's own command line, for a
    libvirt that knows only raw ones. ``passt`` lets passt forward ports; without it they are left out.
    """

    name: str
    accelerator: AcceleratorKind = AcceleratorKind.TCG
    emulator: str | None = None
    cpu: str | None = None
    console: Path | None = None
    variables_by_command: bool = False
    passt: bool = True
    comments: tuple[str, ...] = ()


def domain_xml(machine: Machine, how: Domain) -> str:
    """The domain. Raises UsageError when a part of ``machine`` has no place in it."""
    root = ET.Element("domain", type="qemu" if how.accelerator is AcceleratorKind.TCG else how.accelerator.value)
    for comment in how.comments:
        root.append(ET.Comment(f" {comment.replace('--', '- -')} "))
    _text(root, "name", how.name)
    _text(root, "memory", str(machine.memory_bytes // MIB), unit="MiB")
    if any(_driver(share) is ShareDriver.VIRTIOFS for share in machine.shares):
        backing = ET.SubElement(root, "memoryBacking")
        ET.SubElement(backing, "source", type="memfd")
        ET.SubElement(backing, "access", mode="shared")
    _text(root, "vcpu", str(machine.vcpus))
    _os(root, machine, how)
    features = ET.SubElement(root, "features")
    if machine.description is HardwareDescription.ACPI:
        ET.SubElement(features, "acpi")
    ET.SubElement(features, "gic", version=_gic(machine, how))
    _cpu(root, machine, how)
    _clock(root, machine)
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(root, event, action)
    _devices(ET.SubElement(root, "devices"), machine, how)
    if how.variables_by_command and machine.variables is not None:
        _variables_by_command(root, machine.variables)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def device_xml(device: DiskDevice | Nic, index: int) -> str:
    """A device to be attached to a running machine, at its port; ``index`` is one that no other disk has."""
    parent = ET.Element("devices")
    if isinstance(device, DiskDevice):
        _disk(parent, device, device.name or f"disk{index}", index, Bus.PCI, boots=False)
    else:
        _nic(parent, device, device.name or f"net{index}", index, Bus.PCI, passt=False)
    return ET.tostring(parent[0], encoding="unicode") + "\n"


def _text(parent: ET.Element, tag: str, content: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    if not all(character.isprintable() or character == " " for character in content):
        raise UsageError(f"libvirt takes no control characters: {content!r}")
    element.text = content
    return element


def _path(path: Path) -> str:
    text = str(path.absolute())
    if not text.isprintable():
        raise UsageError(f"libvirt takes no path with control characters: {text!r}")
    return text


def _os(root: ET.Element, machine: Machine, how: Domain) -> None:
    firmware = machine.firmware
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch=_ARCHITECTURES[machine.state], machine=machine.platform or "virt")
    if firmware.kind is FirmwareKind.BIOS:
        _text(system, "loader", _path(firmware.code), type="rom")
    else:
        loader = {"readonly": "yes", "type": "pflash"}
        if firmware.code_format != "raw":
            loader["format"] = firmware.code_format
        _text(system, "loader", _path(firmware.code), **loader)
    if firmware.keeps_variables and machine.variables is not None and not how.variables_by_command:
        form = {} if machine.variables.format == "raw" else {"format": machine.variables.format}
        _text(system, "nvram", _path(machine.variables.path), **form)
    ET.SubElement(system, "bootmenu", enable="yes", timeout="0")


def _gic(machine: Machine, how: Domain) -> str:
    if machine.gic is not None:
        return str(machine.gic.value)
    return "host" if how.accelerator is AcceleratorKind.KVM else "3"


def _cpu(root: ET.Element, machine: Machine, how: Domain) -> None:
    if how.cpu is None and how.accelerator is not AcceleratorKind.TCG:
        ET.SubElement(root, "cpu", mode="host-passthrough", check="none")
        return
    cpu = ET.SubElement(root, "cpu", mode="custom", match="exact", check="none")
    _text(cpu, "model", how.cpu or _TCG_CPU[machine.state], fallback="forbid")


def _clock(root: ET.Element, machine: Machine) -> None:
    if machine.clock is None:
        ET.SubElement(root, "clock", offset="utc")
    else:
        moment = machine.clock if machine.clock.tzinfo else machine.clock.replace(tzinfo=UTC)
        ET.SubElement(root, "clock", offset="absolute", start=str(int(moment.timestamp())))


def _devices(devices: ET.Element, machine: Machine, how: Domain) -> None:
    _text(devices, "emulator", how.emulator or f"/usr/bin/{EMULATORS[machine.state]}")
    _controllers(devices, machine)
    for index, (name, disk) in enumerate(zip(disk_names(machine), machine.disks, strict=True)):
        _disk(devices, disk, name, index, machine.bus)
    for index, (name, nic) in enumerate(zip(nic_names(machine), machine.nics, strict=True)):
        _nic(devices, nic, name, index, machine.bus, passt=how.passt)
    _consoles(devices, machine, how)
    for share in machine.shares:
        _share(devices, share)
    if machine.graphics is not None:
        _graphics(devices, machine.graphics)
    if machine.usb_keyboard:
        ET.SubElement(devices, "input", type="keyboard", bus="usb")
    if machine.tpm:
        tpm = ET.SubElement(devices, "tpm", model="tpm-tis")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    if machine.watchdog is not None:
        ET.SubElement(devices, "watchdog", model="i6300esb", action=machine.watchdog.value)
    balloon = ET.SubElement(devices, "memballoon", model="virtio" if machine.balloon else "none")
    if machine.balloon:
        _address(balloon, machine.bus, _FIRST_MORE_SLOT)
    if machine.rng:
        rng = ET.SubElement(devices, "rng", model="virtio")
        _text(rng, "backend", "/dev/urandom", model="random")
        _address(rng, machine.bus, _FIRST_MORE_SLOT + 1)
    if machine.vsock_cid is not None:
        vsock = ET.SubElement(devices, "vsock", model="virtio")
        ET.SubElement(vsock, "cid", auto="no", address=str(machine.vsock_cid))
        _address(vsock, machine.bus, _FIRST_MORE_SLOT + 2)


def _controllers(devices: ET.Element, machine: Machine) -> None:
    if machine.bus is Bus.PCI:
        ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
        for index in range(machine.hotplug_ports):
            port = ET.SubElement(devices, "controller", type="pci", index=str(index + 1), model="pcie-root-port")
            ET.SubElement(port, "target", chassis=str(index + 1), port=hex(8 + index))
            _address(port, Bus.PCI, _FIRST_PORT_SLOT + index)
    usb = machine.usb_keyboard or machine.graphics is not None
    controller = ET.SubElement(devices, "controller", type="usb", index="0", model="qemu-xhci" if usb else "none")
    if usb:
        _address(controller, Bus.PCI, _USB_SLOT)
    if machine.scsi_controller or any(disk.interface is DiskInterface.VIRTIO_SCSI for disk in machine.disks):
        scsi = ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
        _address(scsi, machine.bus, _SCSI_SLOT)


def _disk(parent: ET.Element, disk: DiskDevice, name: str, index: int, bus: Bus, *, boots: bool = True) -> None:
    if disk.interface is DiskInterface.NVME:
        raise UsageError(f"libvirt has no NVMe disks over an image ({name})")
    element = ET.SubElement(parent, "disk", type="file", device="disk")
    discard = "unmap" if disk.discard and disk.writes is not Writes.REFUSED else "ignore"
    ET.SubElement(element, "driver", name="qemu", type=disk.format, cache=disk.cache.value, discard=discard)
    ET.SubElement(element, "source", file=_path(disk.path))
    scsi = disk.interface is DiskInterface.VIRTIO_SCSI
    letter = chr(ord("a") + index)
    ET.SubElement(element, "target", dev=f"{'sd' if scsi else 'vd'}{letter}", bus="scsi" if scsi else "virtio")
    if disk.sector_size != 512:
        size = str(disk.sector_size)
        ET.SubElement(element, "blockio", logical_block_size=size, physical_block_size=size)
    if disk.writes is Writes.REFUSED:
        ET.SubElement(element, "readonly")
    elif disk.writes is Writes.DISCARDED:
        ET.SubElement(element, "transient")
    if disk.serial:
        _text(element, "serial", disk.serial)
    if boots:
        ET.SubElement(element, "boot", order=str(index + 1))
    ET.SubElement(element, "alias", name=f"{ALIAS}{name}")
    if scsi:
        ET.SubElement(element, "address", type="drive", controller="0", bus="0", target="0", unit=str(index))
    else:
        _address(element, bus, _FIRST_DISK_SLOT + index, disk.port)


def _nic(parent: ET.Element, nic: Nic, name: str, index: int, bus: Bus, *, passt: bool) -> None:
    if isinstance(nic, UserNetwork):
        element = ET.SubElement(parent, "interface", type="user")
    elif isinstance(nic, BridgeNetwork):
        element = ET.SubElement(parent, "interface", type="bridge")
        ET.SubElement(element, "source", bridge=nic.bridge)
    elif isinstance(nic, TapNetwork):
        element = ET.SubElement(parent, "interface", type="ethernet")
        ET.SubElement(element, "target", dev=nic.interface, managed="no")
    elif isinstance(nic, LinkNetwork):
        raise UsageError(f"libvirt has no cable between two instances ({name})")
    else:
        assert_never(nic)
    if nic.mac:
        ET.SubElement(element, "mac", address=nic.mac)
    ET.SubElement(element, "model", type="virtio")
    if isinstance(nic, UserNetwork) and nic.forwards and passt:
        ET.SubElement(element, "backend", type="passt")
        forward = ET.SubElement(element, "portForward", proto="tcp", address="127.0.0.1")
        for pair in nic.forwards:
            ET.SubElement(forward, "range", start=str(pair.host_port), to=str(pair.guest_port))
    if bus is Bus.PCI:
        ET.SubElement(element, "rom", enabled="no")
    ET.SubElement(element, "alias", name=f"{ALIAS}{name}")
    _address(element, bus, _FIRST_NIC_SLOT + index, nic.port)


def _consoles(devices: ET.Element, machine: Machine, how: Domain) -> None:
    pl011 = machine.console is Console.PL011
    virtio = (0 if pl011 else 1) + machine.more_consoles
    if virtio or machine.guest_agent:
        bus = ET.SubElement(devices, "controller", type="virtio-serial", index="0")
        _address(bus, machine.bus, _SERIAL_SLOT)
    if pl011:
        serial = _character_device(devices, "serial", how.console)
        target = ET.SubElement(serial, "target", type="system-serial", port="0")
        ET.SubElement(target, "model", name="pl011")
        if virtio:  # a console element that is not the serial port's would take its place
            alias = _character_device(devices, "console", how.console)
            ET.SubElement(alias, "target", type="serial", port="0")
    else:  # firmware speaks on the serial port and nowhere else, and libvirt's machines always have one
        ET.SubElement(ET.SubElement(devices, "serial", type="null"), "target", type="system-serial", port="0")
        ET.SubElement(ET.SubElement(devices, "console", type="null"), "target", type="serial", port="0")
    for index in range(virtio):
        console = _character_device(devices, "console", None if pl011 or index else how.console)
        ET.SubElement(console, "target", type="virtio", port=str(index + 1))
    if machine.guest_agent:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")


def _character_device(parent: ET.Element, tag: str, socket: Path | None) -> ET.Element:
    if socket is None:
        return ET.SubElement(parent, tag, type="pty")
    element = ET.SubElement(parent, tag, type="unix")
    ET.SubElement(element, "source", mode="connect", path=_path(socket))
    return element


def _driver(share: SharedFolder) -> ShareDriver:
    return ShareDriver.NINE_P if share.driver is ShareDriver.AUTO else share.driver


def _share(devices: ET.Element, share: SharedFolder) -> None:
    element = ET.SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
    if _driver(share) is ShareDriver.VIRTIOFS:
        ET.SubElement(element, "driver", type="virtiofs")
    else:
        element.set("accessmode", "mapped")
    ET.SubElement(element, "source", dir=_path(share.path))
    ET.SubElement(element, "target", dir=share.tag)
    if share.read_only:
        ET.SubElement(element, "readonly")


def _graphics(devices: ET.Element, graphics: Graphics) -> None:
    element = ET.SubElement(devices, "graphics", type="vnc")
    if graphics.port is not None:
        element.set("port", str(graphics.port))
        element.set("autoport", "no")
        ET.SubElement(element, "listen", type="address", address="127.0.0.1")
    elif graphics.socket is not None:
        ET.SubElement(element, "listen", type="socket", socket=_path(graphics.socket))
    else:
        ET.SubElement(element, "listen", type="none")
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", type="virtio")


def _address(parent: ET.Element, bus: Bus, slot: int, port: int | None = None) -> None:
    """The place of a device: a slot of the root bus, an empty root port, or a transport of QEMU's choice."""
    if bus is Bus.MMIO:
        ET.SubElement(parent, "address", type="virtio-mmio")
        return
    place = (0, slot) if port is None else (port + 1, 0)
    ET.SubElement(
        parent,
        "address",
        type="pci",
        domain="0x0000",
        bus=f"{place[0]:#04x}",
        slot=f"{place[1]:#04x}",
        function="0x0",
    )


def _variables_by_command(root: ET.Element, variables: VariablesFile) -> None:
    """The second flash chip, told to QEMU itself (the options of ``-machine`` add up)."""
    import json

    ET.register_namespace("qemu", QEMU_NAMESPACE)
    command = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
    file = {"driver": "file", "filename": _path(variables.path)}
    node = {"driver": variables.format, "node-name": _VARIABLES_NODE, "read-only": False, "file": file}
    for value in ("-blockdev", json.dumps(node), "-machine", f"pflash1={_VARIABLES_NODE}"):
        ET.SubElement(command, f"{{{QEMU_NAMESPACE}}}arg", value=value)
