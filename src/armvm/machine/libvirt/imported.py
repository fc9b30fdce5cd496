"""A libvirt domain of somebody else's, as a Machine, with what of it was left out and which requirements it breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree.ElementTree import Element

from armvm.errors import InputError, MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import Firmware, find_firmware
from armvm.machine.definition import (
    GICV2_MOST_VCPUS,
    MOST_HOTPLUG_PORTS,
    MOST_VCPUS,
    Bus,
    Console,
    DiskDevice,
    DiskInterface,
    GicVersion,
    HardwareDescription,
    Machine,
    Nic,
)
from armvm.machine.devices import BridgeNetwork, DiskCache, PortForward, TapNetwork, UserNetwork, WatchdogAction, Writes
from armvm.machine.libvirt.xml_reader import parse_xml
from armvm.printable import printable
from armvm.spec.catalogue import DEFAULT_PROFILE, requirement
from armvm.spec.verdict import Evidence, Finding, Level, Verdict
from armvm.units import MIB

_STATES = {
    "aarch64": ExecutionState.AARCH64,
    "armv7l": ExecutionState.AARCH32,
    "armv6l": ExecutionState.AARCH32,
}
_UNITS = {  # libvirt, docs/formatdomain.rst, memory
    "b": 1,
    "bytes": 1,
    "KB": 1000,
    "k": 1 << 10,
    "KiB": 1 << 10,
    "MB": 10**6,
    "M": 1 << 20,
    "MiB": 1 << 20,
    "GB": 10**9,
    "G": 1 << 30,
    "GiB": 1 << 30,
    "TB": 10**12,
    "T": 1 << 40,
    "TiB": 1 << 40,
}
_HEX_BYTE = re.compile(r"0x[0-9a-fA-F]{1,2}")
_TAKEN = frozenset(
    {
        *("emulator", "disk", "interface", "serial", "console", "controller", "rng", "memballoon", "tpm", "watchdog"),
        *("input", "vsock", "channel", "video", "audio"),
    }
)
"""What stands below <devices> and is looked at, or is nothing that a machine would miss."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A domain as a machine. ``findings`` are the requirements that the domain, as it stood there, would break.

    ``left_out`` says what has no place in a Machine, one sentence each. ``loader`` is the firmware that it named.
    """

    name: str
    machine: Machine
    left_out: tuple[str, ...]
    findings: tuple[Finding, ...]
    loader: Path | None


@dataclass(slots=True)
class _Notes:
    """What is gathered while a domain is read."""

    subject: str
    profile: str
    left_out: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def leave_out(self, what: str) -> None:
        self.left_out.append(printable(what))

    def breaks(self, identifier: str, message: str, where: str, found: str, expected: str) -> None:
        broken = requirement(identifier)
        clause = broken.clause(self.profile)
        level = clause.level if clause else Level.MAY
        evidence = (Evidence(where, printable(found), expected),)
        self.findings.append(Finding(identifier, level, Verdict.FAIL, message, evidence, broken.remedy))

    def error(self, message: str, found: str) -> InputError:
        return InputError(message, subject=self.subject, found=printable(found))


def read_domain(
    content: bytes,
    *,
    subject: str,
    profile: str = DEFAULT_PROFILE,
    find: Callable[..., Firmware] = find_firmware,
) -> Imported:
    """The domain that the XML describes, by the rules of libvirt's docs/formatdomain.rst.

    ``find`` finds the firmware, as ``find_firmware`` does. Raises InputError when it is no domain, or none of an ARM
    machine, MissingError when there is no firmware for it.
    """
    root = parse_xml(content, subject=subject)
    notes = _Notes(subject, profile)
    if root.tag != "domain":
        raise notes.error("no libvirt domain", f"<{root.tag[:80]}>")
    system = root.find("os/type")
    architecture = "" if system is None else system.get("arch", "")
    state = _STATES.get(architecture)
    if state is None:
        raise notes.error("a domain of no ARM machine", architecture or "no architecture")
    loader = _loader(root, state, notes, find)
    devices = root.find("devices")
    devices = Element("devices") if devices is None else devices
    bus = _bus(devices)
    nics = tuple(_nic(element, notes) for element in devices.findall("interface"))
    disks = tuple(disk for element in devices.findall("disk") if (disk := _disk(element, notes)) is not None)
    machine = Machine(
        state=state,
        firmware=find(state, override=loader),
        disks=disks,
        memory_bytes=_memory(root, notes),
        vcpus=_vcpus(root, notes),
        gic=_gic(root, notes),
        description=_description(root, notes),
        console=_console(devices, notes),
        bus=bus,
        nics=nics,
        clock=_clock(root, notes),
        hotplug_ports=_spare_ports(devices, bus, notes),
        scsi_controller=devices.find("controller[@type='scsi']") is not None,
        rng=devices.find("rng") is not None,
        balloon=_model(devices, "memballoon", "virtio") != "none",
        tpm=devices.find("tpm") is not None,
        watchdog=_watchdog(devices, notes),
        usb_keyboard=devices.find("input[@type='keyboard'][@bus='usb']") is not None,
        vsock_cid=_vsock(devices, notes),
        guest_agent=devices.find("channel/target[@name='org.qemu.guest_agent.0']") is not None,
    )
    _require_gic_room(machine, notes)
    for element in devices:
        if element.tag not in _TAKEN:
            notes.leave_out(f"<{element.tag}>: a device that a machine of armvm does not have")
    for element in root:
        if element.tag.startswith("{") and element.tag.endswith("}commandline"):
            notes.leave_out("the options on QEMU's own command line")
    name = printable((root.findtext("name") or "").strip())[:200]
    return Imported(name, machine, tuple(notes.left_out), tuple(notes.findings), loader)


def _number(text: str | None, what: str, notes: _Notes, *, most: int) -> int:
    stripped = (text or "").strip()
    if not stripped.isascii() or not stripped.isdigit() or len(stripped) > 20 or int(stripped) > most:
        raise notes.error(f"{what} is no number up to {most}", stripped[:80] or "nothing")
    return int(stripped)


def _memory(root: Element, notes: _Notes) -> int:
    element = root.find("memory")
    if element is None:
        raise notes.error("a domain without memory", "no <memory>")
    unit = element.get("unit", "KiB")
    if unit not in _UNITS:
        raise notes.error("no unit of memory", unit[:80])
    size = _number(element.text, "<memory>", notes, most=1 << 52) * _UNITS[unit]
    return max(size // MIB, 1) * MIB


def _vcpus(root: Element, notes: _Notes) -> int:
    element = root.find("vcpu")
    if element is None:
        return 1
    return max(_number(element.get("current") or element.text, "<vcpu>", notes, most=MOST_VCPUS), 1)


def _loader(root: Element, state: ExecutionState, notes: _Notes, find: Callable[..., Firmware]) -> Path | None:
    """The firmware that the domain names, None for the one that libvirt would find."""
    loader = root.find("os/loader")
    automatic = root.find("os[@firmware='efi']") is not None
    named = (loader.text or "").strip() if loader is not None else ""
    if root.find("os/kernel") is not None:
        notes.leave_out("the kernel, initrd and command line given by the host: the machine boots from its disk")
        notes.breaks(
            "firmware.first-software",
            "the hypervisor starts a kernel instead of the firmware",
            "<os><kernel>",
            (root.findtext("os/kernel") or "").strip(),
            "a UEFI firmware as the first software",
        )
    if not named and not automatic:
        notes.breaks(
            "firmware.uefi",
            "the domain has no UEFI firmware",
            "<os>",
            "neither a <loader> nor firmware='efi'",
            "UEFI firmware",
        )
    store = (root.findtext("os/nvram") or "").strip() or root.find("os/nvram/source") is not None
    kind = loader.get("type", "rom") if loader is not None else "pflash"
    stateless = loader is not None and loader.get("stateless") == "yes"
    if named and (stateless or kind == "rom" or (not store and not automatic)):
        notes.breaks(
            "firmware.variables-persist",
            "the firmware has nowhere to keep its variables",
            "<os>",
            f"a loader of type {kind}, no <nvram>",
            "a variable store of its own",
        )
    if store:
        notes.leave_out(
            "the UEFI variables as they are now: the instance starts with a new store (armvm vars import brings them)"
        )
    if not named:
        return None
    try:
        find(state, override=Path(named))
    except (InputError, MissingError, UsageError) as error:
        notes.leave_out(f"the firmware {named}, which cannot be used ({error.message}): this system's is taken")
        return None
    return Path(named)


def _gic(root: Element, notes: _Notes) -> GicVersion | None:
    element = root.find("features/gic")
    version = "" if element is None else element.get("version", "")
    if version in {"", "host"}:
        return None
    found = next((one for one in GicVersion if str(one.value) == version), None)
    if found is None:
        raise notes.error("no version of the GIC", version[:80])
    return found


def _require_gic_room(machine: Machine, notes: _Notes) -> None:
    if machine.gic is GicVersion.V2 and machine.vcpus > GICV2_MOST_VCPUS:
        notes.breaks(
            "platform.gic",
            f"a GICv2 serves at most {GICV2_MOST_VCPUS} virtual CPUs",
            "<features><gic>, <vcpu>",
            f"version 2 with {machine.vcpus} virtual CPUs",
            "a GICv3",
        )


def _description(root: Element, notes: _Notes) -> HardwareDescription:
    if root.find("features/acpi") is None:
        return HardwareDescription.DT
    notes.breaks(
        "description.fdt",
        "with ACPI on, EDK2 publishes no device tree",
        "<features>",
        "<acpi/>",
        "no <acpi/>",
    )
    return HardwareDescription.ACPI


def _bus(devices: Element) -> Bus:
    kinds = {
        address.get("type")
        for tag in ("disk", "interface")
        for element in devices.findall(tag)
        if (address := element.find("address")) is not None
    }
    return Bus.MMIO if kinds == {"virtio-mmio"} else Bus.PCI


def _disk(element: Element, notes: _Notes) -> DiskDevice | None:
    target = element.find("target")
    name = "" if target is None else target.get("dev", "")
    source = element.find("source")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    if element.get("device", "disk") != "disk" or not path.startswith("/"):
        notes.leave_out(f"the disk {name}: no image or block device of this host")
        return None
    driver = element.find("driver")
    if driver is None:
        driver = Element("driver")
    bus = "virtio" if target is None else target.get("bus", "virtio")
    interface = {"virtio": DiskInterface.VIRTIO_BLK, "scsi": DiskInterface.VIRTIO_SCSI, "nvme": DiskInterface.NVME}.get(
        bus
    )
    if interface is None:
        notes.leave_out(f"the bus {bus} of the disk {name}: it is made a virtio disk, which every guest must know")
    writes = Writes.KEPT
    if element.find("readonly") is not None:
        writes = Writes.REFUSED
    elif element.find("transient") is not None:
        writes = Writes.DISCARDED
    block = element.find("blockio")
    size = (
        512 if block is None else _number(block.get("logical_block_size", "512"), "a sector size", notes, most=1 << 16)
    )
    cache = driver.get("cache", "")
    return DiskDevice(
        Path(path),
        driver.get("type", "raw"),
        size,
        writes,
        interface or DiskInterface.VIRTIO_BLK,
        serial=(element.findtext("serial") or "").strip() or None,
        cache=next((one for one in DiskCache if one.value == cache), DiskCache.WRITEBACK),
        discard=driver.get("discard", "unmap") == "unmap",
    )


def _nic(element: Element, notes: _Notes) -> Nic:
    mac_element = element.find("mac")
    mac = None if mac_element is None else mac_element.get("address")
    source = element.find("source")
    kind = element.get("type", "")
    model = element.find("model")
    if model is not None and model.get("type", "virtio") != "virtio":
        notes.leave_out(f"the network card's model {model.get('type')}: it is made a virtio card")
    if kind == "bridge" and source is not None and source.get("bridge"):
        return BridgeNetwork(source.get("bridge", ""), mac)
    target = element.find("target")
    if kind == "ethernet" and target is not None and target.get("dev"):
        return TapNetwork(target.get("dev", ""), mac)
    if kind != "user":
        what = "" if source is None else source.get("network") or source.get("dev") or ""
        notes.leave_out(f"the network {kind} {what}".rstrip() + ": the card is given user-mode NAT")
    return UserNetwork(tuple(_forwards(element, notes)), mac)


def _forwards(element: Element, notes: _Notes) -> list[PortForward]:
    found = []
    for forward in element.findall("portForward"):
        for span in forward.findall("range"):
            if forward.get("proto") != "tcp" or span.get("end") or span.get("exclude"):
                notes.leave_out("a port forward of another protocol, or of a range of ports")
                continue
            host = _number(span.get("start"), "a port", notes, most=65535)
            guest = _number(span.get("to") or span.get("start"), "a port", notes, most=65535)
            found.append(PortForward(host, guest))
    return found


def _console(devices: Element, notes: _Notes) -> Console:
    virtio = devices.find("console/target[@type='virtio']") is not None
    serial = [element for element in devices.findall("serial") if element.get("type") != "null"]
    if serial or any(_is_serial(element) for element in devices.findall("console")):
        return Console.PL011
    if virtio:
        return Console.VIRTIO
    notes.breaks(
        "platform.console", "the domain has no serial console", "<devices>", "neither <serial> nor <console>", "a pl011"
    )
    return Console.PL011


def _is_serial(console: Element) -> bool:
    target = console.find("target")
    return console.get("type") != "null" and (target is None or target.get("type", "serial") == "serial")


def _spare_ports(devices: Element, bus: Bus, notes: _Notes) -> int:
    """The root ports that no device sits in: what is there for hotplug."""
    if bus is Bus.MMIO:
        spare = 0
    else:
        ports = {
            controller.get("index")
            for controller in devices.findall("controller[@type='pci']")
            if controller.get("model") == "pcie-root-port"
        }
        used = {address.get("bus", "") for address in devices.findall("*/address[@type='pci']")}
        taken = {str(int(place, 16)) for place in used if _HEX_BYTE.fullmatch(place)}
        spare = min(len(ports - taken), MOST_HOTPLUG_PORTS)
    if not spare:
        for identifier in ("platform.hotplug-block", "platform.hotplug-network"):
            notes.breaks(
                identifier,
                "no device can be added while the machine runs",
                "<devices>",
                "no pcie-root-port without a device",
                "two of them",
            )
    return spare


def _model(devices: Element, tag: str, default: str) -> str:
    element = devices.find(tag)
    return default if element is None else element.get("model", default)


def _watchdog(devices: Element, notes: _Notes) -> WatchdogAction | None:
    element = devices.find("watchdog")
    if element is None:
        return None
    action = element.get("action", "reset")
    found = next((one for one in WatchdogAction if one.value == action), None)
    if found is None:
        notes.leave_out(f"the watchdog's action {action}: it resets the machine")
    return found or WatchdogAction.RESET


def _vsock(devices: Element, notes: _Notes) -> int | None:
    cid = devices.find("vsock/cid")
    if cid is None or cid.get("auto") == "yes" or cid.get("address") is None:
        return None
    return _number(cid.get("address"), "the address on vsock", notes, most=(1 << 32) - 1)


def _clock(root: Element, notes: _Notes) -> datetime | None:
    clock = root.find("clock")
    offset = "utc" if clock is None else clock.get("offset", "utc")
    if clock is not None and offset == "absolute":
        start = _number(clock.get("start"), "the clock's start", notes, most=32_503_680_000)
        return datetime.fromtimestamp(start, UTC).replace(tzinfo=None)
    if offset != "utc":
        notes.leave_out(f"the clock's offset {offset}: it runs on UTC")
    return None
