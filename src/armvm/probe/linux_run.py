"""What one run of the Linux probe saw, as values (docs/probe-wire.md, "The Linux probe")."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from armvm.execution import ExecutionState
from armvm.printable import printable
from armvm.probe.fields import Fields, Notes, Said, as_number, join_parts
from armvm.probe.wire import Record, Run

_MOST_CPUS = 4096
_MOST_EVENTS = 1024
_CPU_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


class Action(enum.Enum):
    """What happened to a device while the VM ran."""

    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Boot:
    """By which description the kernel was booted. ``acpi_tables`` are the tables that it was given."""

    efi: bool | None
    fdt: bool | None
    acpi_tables: tuple[str, ...]
    fdt_data: bytes | None
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cpus:
    """The CPUs that the kernel knows, and those that it brought up. ``psci`` is the kernel's line on PSCI."""

    present: frozenset[int] | None
    online: frozenset[int] | None
    psci: str | None
    enable_methods: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Memory:
    """What the kernel has: MemTotal, and the System RAM of /proc/iomem as (start, end), the end outside."""

    total_kib: int | None
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Interrupts:
    """Interrupts by controller; the timer's counts for each CPU, and again one second later."""

    controllers: Mapping[str, int]
    timer: tuple[int, ...]
    timer_later: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClockDevice:
    """A real-time clock; ``time`` in seconds since 1970."""

    name: str
    driver: str | None
    time: int | None


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock source in use and the real-time clocks."""

    source: str | None
    clocks: tuple[ClockDevice, ...]


@dataclass(frozen=True, slots=True)
class LinuxConsoles:
    """The kernel's consoles (lines of /proc/consoles), the terminal devices, and where stdout-path points."""

    consoles: tuple[str, ...]
    terminals: tuple[str, ...]
    stdout_path: str | None


@dataclass(frozen=True, slots=True)
class Device:
    """A device on a bus. ``details`` holds what else the probe said of it (vendor, class, transport …)."""

    name: str
    driver: str | None
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A disk. ``read`` tells whether its first 4096 bytes could be read; they have that SHA-256."""

    name: str
    size_bytes: int | None
    serial: str | None
    driver: str | None
    read: bool | None
    sha256_hex: str | None


@dataclass(frozen=True, slots=True)
class NetworkDevice:
    """A network interface, after it was set up."""

    name: str
    mac: str | None
    carrier: bool | None
    driver: str | None
    operstate: str | None


@dataclass(frozen=True, slots=True)
class HotplugEvent:
    """A device that came or went while the kernel ran."""

    action: Action
    subsystem: str
    name: str
    path: str | None
    block: BlockDevice | None
    network: NetworkDevice | None


@dataclass(frozen=True, slots=True)
class LinuxRun:
    """One run of the Linux probe; what was not said, or did not come through, is None or empty.

    ``modules_missing`` names the kernel modules that could not be loaded.
    """

    version: str | None
    state: ExecutionState | None
    kernel: str | None
    machine: str | None
    command_line: str | None
    complete: bool
    ready: bool
    modules_missing: tuple[str, ...]
    boot: Boot | None
    cpus: Cpus | None
    memory: Memory | None
    interrupts: Interrupts | None
    clock: Clock | None
    consoles: LinuxConsoles | None
    devices: Mapping[str, tuple[Device, ...]]
    blocks: tuple[BlockDevice, ...]
    networks: tuple[NetworkDevice, ...]
    hotplug: tuple[HotplugEvent, ...]
    notes: tuple[str, ...]
    unknown: tuple[Record, ...]


_BUSES = ("pci", "virtio", "xen", "platform", "amba")
_KNOWN = frozenset(
    {
        *("begin", "complete", "boot", "fdt-data", "cpus", "memory-total", "interrupts", "clock", "consoles"),
        *("devices", "error", "module", "block", "net", "ready", "hotplug"),
    }
)


def read_linux_run(run: Run) -> LinuxRun:
    """The values that ``run`` carries. What cannot be understood is missing, with a note."""
    said = Said(run)
    notes, last = said.notes, said.last
    for fields in said.all("error"):
        notes.add(f"the probe says: {printable(fields.text('what') or '?')}")
    begin = last("begin") or Fields({}, "begin", notes)
    boot, cpus, memory, interrupts = last("boot"), last("cpus"), last("memory-total"), last("interrupts")
    clock, consoles = last("clock"), last("consoles")
    state = begin.text("state")
    return LinuxRun(
        version=begin.text("version"),
        state=next((known for known in ExecutionState if known.value == state), None),
        kernel=begin.text("kernel"),
        machine=begin.text("machine"),
        command_line=begin.text("cmdline"),
        complete=run.complete,
        ready=last("ready") is not None,
        modules_missing=_modules_missing(said.all("module")),
        boot=_boot(boot, said.all("fdt-data"), notes) if boot else None,
        cpus=_cpus(cpus) if cpus else None,
        memory=_memory(memory) if memory else None,
        interrupts=_interrupts(interrupts) if interrupts else None,
        clock=_clock(clock) if clock else None,
        consoles=_consoles(consoles) if consoles else None,
        devices=_devices(said.all("devices")),
        # They are said again when the host asks for a report: each counts once, as it was at first.
        blocks=tuple({block.name: block for block in map(_block, said.all("block")[::-1]) if block}.values())[::-1],
        networks=tuple({net.name: net for net in map(_network, said.all("net")[::-1]) if net}.values())[::-1],
        hotplug=tuple(event for event in map(_event, said.all("hotplug")[:_MOST_EVENTS]) if event),
        notes=notes.all(),
        unknown=tuple(record for record in run.records if record.type not in _KNOWN),
    )


def _modules_missing(said: Iterable[Fields]) -> tuple[str, ...]:
    return tuple(name for fields in said if fields.flag("loaded") is False and (name := fields.text("name")))


def _boot(fields: Fields, parts: Iterable[Fields], notes: Notes) -> Boot:
    return Boot(
        efi=fields.flag("efi"),
        fdt=fields.flag("fdt"),
        acpi_tables=fields.texts("acpi"),
        fdt_data=join_parts(parts, "data_b64", notes, "the device tree"),
        messages=fields.texts("dmesg"),
    )


def _cpus(fields: Fields) -> Cpus:
    return Cpus(
        present=_cpu_list(fields, "present"),
        online=_cpu_list(fields, "online"),
        psci=fields.text("psci"),
        enable_methods=fields.strings("enable"),
    )


def _cpu_list(fields: Fields, name: str) -> frozenset[int] | None:
    """A list of CPUs as sysfs writes it: ``0-3,6``."""
    text = fields.text(name)
    if text is None:
        return None
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        match = _CPU_RANGE.fullmatch(part)
        first, end = (int(match[1]), int(match[2] or match[1]) + 1) if match else (0, 0)
        if match is None or end > _MOST_CPUS:
            fields.wrong(name, "a list of CPUs")
            return None
        found.update(range(first, end))
    return frozenset(found)


def _memory(fields: Fields) -> Memory:
    return Memory(fields.number("kib"), fields.items("ranges", _memory_range, "first and last address"))


def _memory_range(value: Any) -> tuple[int, int] | None:
    ends = [as_number(entry) for entry in value] if isinstance(value, list) and len(value) == 2 else []
    first, last = ends or (None, None)
    return None if first is None or last is None or not 0 <= first <= last else (first, last + 1)


def _interrupts(fields: Fields) -> Interrupts:
    return Interrupts(fields.table("controllers"), fields.numbers("timer"), fields.numbers("timer_later"))


def _clock(fields: Fields) -> Clock:
    clocks = tuple(
        ClockDevice(entry.text("name") or "", entry.text("driver"), entry.number("time"))
        for entry in fields.objects("rtc")
    )
    return Clock(fields.text("clocksource"), clocks)


def _consoles(fields: Fields) -> LinuxConsoles:
    return LinuxConsoles(
        consoles=fields.texts("lines"),
        terminals=fields.texts("tty"),
        stdout_path=fields.text("stdout_path"),
    )


def _devices(said: Iterable[Fields]) -> dict[str, tuple[Device, ...]]:
    found: dict[str, dict[str, Device]] = {bus: {} for bus in _BUSES}
    for fields in said:
        for bus in _BUSES:
            for entry in fields.objects(bus):
                name = entry.text("slot") or entry.text("name")
                if name is not None:
                    found[bus][name] = _device(entry, name)
    return {bus: tuple(devices.values()) for bus, devices in found.items() if devices}


def _device(fields: Fields, name: str) -> Device:
    details = {}
    for key in fields.names():
        if key not in ("slot", "name", "driver"):
            details[key] = fields.shown(key)
    return Device(name, fields.text("driver"), details)


def _block(fields: Fields) -> BlockDevice | None:
    name = fields.text("name")
    if name is None:
        return None
    return BlockDevice(
        name=name,
        size_bytes=fields.number("size_bytes"),
        serial=fields.text("serial"),
        driver=fields.text("driver"),
        read=fields.flag("read"),
        sha256_hex=fields.text("sha256_hex"),
    )


def _network(fields: Fields) -> NetworkDevice | None:
    name = fields.text("name")
    if name is None:
        return None
    carrier = fields.switch("carrier")
    return NetworkDevice(name, fields.text("mac"), carrier, fields.text("driver"), fields.text("operstate"))


def _event(fields: Fields) -> HotplugEvent | None:
    action = fields.text("action")
    known = next((entry for entry in Action if entry.value == action), None)
    subsystem, name = fields.text("subsystem"), fields.text("name")
    if known is None or subsystem is None or name is None:
        return None
    return HotplugEvent(
        action=known,
        subsystem=subsystem,
        name=name,
        path=fields.text("devpath"),
        block=_block(fields) if subsystem == "block" else None,
        network=_network(fields) if subsystem == "net" else None,
    )
