"""Whether the device tree describes what the VM has: the tree against UEFI, PCI, Linux and the VM's definition.

UEFI's memory map, its device handles and the PCI functions were found by the firmware; Linux says what it brought up;
the host says what it made. What one of them knows, and the tree does not lead to, is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.firmware.device_path import format_device_path
from armvm.machine.definition import Bus, Console, GicVersion
from armvm.platform.bindings import cpu_nodes, described_memory
from armvm.platform.bindings_devices import GIC_V2, GIC_V3, PCI_HOSTS, pci_hosts
from armvm.platform.fdt import DeviceTree
from armvm.platform.fdt_values import Region, RegionSet, Window, reg, regions, windows
from armvm.platform.host import ExpectedMachine
from armvm.platform.seen import Seen
from armvm.printable import printable
from armvm.probe.efi_facts import EfiRun, PciFunction
from armvm.probe.linux_run import LinuxRun
from armvm.spec.verdict import Evidence
from armvm.units import format_size

_MEMORY_KINDS = frozenset({1, 2, 3, 4, 5, 6, 7, 9})
"""The types of the memory map that are memory, and the system's to describe (UEFI 2.10 §7.2, table 7.10)."""
_AFFINITY = 0xFF00FFFFFF
"""The bits of MPIDR that a CPU's ``reg`` gives (Linux, arm/cpus.yaml)."""
_MMIO_NODE = re.compile(r"(?:VirtioMmio\(|MemoryMapped\(0x[0-9a-f]+,)(0x[0-9a-f]+)")
_MOST_FAULTS = 16
_MOST_HOSTS = 64
_MOST_REGIONS = 65_536


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that the VM has and the tree does not describe, or describes otherwise."""

    message: str
    evidence: Evidence


def undescribed(seen: Seen, tree: DeviceTree) -> tuple[Missing, ...]:
    """Everything that UEFI, PCI, Linux or the host know of, and the tree does not lead to; at most 16 of them."""
    found: list[Missing] = []
    for faults in (_by_uefi(seen, tree), _by_linux(seen, tree), _by_machine(seen, tree)):
        for fault in faults:
            if fault not in found:
                found.append(fault)
            if len(found) >= _MOST_FAULTS:
                return tuple(found)
    return tuple(found)


def _by_uefi(seen: Seen, tree: DeviceTree) -> Iterator[Missing]:
    for where, run in seen.each(lambda run: run):
        yield from _memory(f"{where}, memory map", _map_regions(run), tree)
        yield from _this_cpu(where, run, tree)
        yield from _handles(where, run, tree)
        yield from _functions(where, run, tree)


def _map_regions(run: EfiRun) -> Iterator[Region]:
    for entry in run.memory.ranges if run.memory else ():
        if entry.kind in _MEMORY_KINDS and entry.pages:
            yield Region(entry.start, entry.size_bytes)


def _memory(where: str, ranges: Iterable[Region], tree: DeviceTree) -> Iterator[Missing]:
    described = described_memory(tree)
    if not described.regions:
        return  # no memory at all is a fault of its own
    for region in ranges:
        if not described.covers(region):
            expected = "inside a memory node: " + ", ".join(map(str, described.regions[:8]))
            yield Missing(f"memory at {region} is not described", Evidence(where, str(region), expected))


def _this_cpu(where: str, run: EfiRun, tree: DeviceTree) -> Iterator[Missing]:
    """The CPU that the probe ran on is one of those described."""
    name = "MPIDR" if run.begin.state is ExecutionState.AARCH32 else "MPIDR_EL1"
    value = run.cpu.registers.get(name) if run.cpu else None
    described = _cpu_numbers(tree)
    if value is not None and described and value & _AFFINITY not in described:
        known = ", ".join(f"{number:#x}" for number in sorted(described)[:16])
        evidence = Evidence(f"{where}, {name}", f"{value & _AFFINITY:#x}", f"the reg of a CPU: {known}")
        yield Missing("the CPU that the probe ran on is not described", evidence)


def _cpu_numbers(tree: DeviceTree) -> set[int]:
    numbers = set()
    for node in cpu_nodes(tree):
        try:
            numbers |= {region.address for region in reg(tree, node)}
        except InputError:
            continue
    return numbers


def _handles(where: str, run: EfiRun, tree: DeviceTree) -> Iterator[Missing]:
    """Every device of the firmware stands behind a described PCI host, or where a node says."""
    paths = [*(block.path for block in run.blocks if not block.partition), *(nic.path for nic in run.networks)]
    paths += run.consoles.serial_ports if run.consoles else ()
    devices, hosts = _devices(tree), pci_hosts(tree)
    for raw in paths:
        path = format_device_path(raw)
        match = _MMIO_NODE.search(path)
        if match is not None and devices.overlapping(Region(int(match[1], 16), 1)) is None:
            evidence = Evidence(where, path, f"a node with registers at {match[1]}")
            yield Missing(f"the device at {match[1]} is not described", evidence)
        if path.startswith(("PciRoot", "PcieRoot")) and not hosts:
            yield Missing("the PCI host bridge is not described", Evidence(where, path, "a PCI host bridge"))


@lru_cache(maxsize=1)
def _devices(tree: DeviceTree) -> RegionSet:
    """Where the registers of all devices are."""
    found: list[Region] = []
    for node in tree.nodes:
        try:
            found += regions(tree, node)
        except InputError:
            continue
        if len(found) >= _MOST_REGIONS:
            break
    return RegionSet(found)


@dataclass(frozen=True, slots=True)
class _Host:
    segment: int | None
    """None where the kernel numbers the hosts by itself."""
    first_bus: int
    last_bus: int
    through: tuple[Window, ...]

    def reaches(self, function: PciFunction) -> bool:
        return self.segment in (None, function.segment) and self.first_bus <= function.bus <= self.last_bus

    def covers(self, space: int, address: int) -> bool:
        """Whether ``address`` lies in a window for I/O (1) or for memory (2: of 32 bits, 3: of 64)."""
        return any(
            (window.flags is not None and (window.flags >> 24 & 3 == 1) == (space == 1))
            and window.child_address <= address < window.child_address + window.size_bytes
            for window in self.through
        )


def _hosts(tree: DeviceTree) -> tuple[_Host, ...]:
    found = []
    for node in pci_hosts(tree)[:_MOST_HOSTS]:
        buses = node.cells("bus-range") or (0, 255)
        try:
            through = windows(tree, node) or ()
        except InputError:
            continue
        if len(buses) == 2:
            found.append(_Host(node.cell("linux,pci-domain"), buses[0], buses[1], through))
    return tuple(found)


def _functions(where: str, run: EfiRun, tree: DeviceTree) -> Iterator[Missing]:
    hosts = _hosts(tree)
    for function in run.pci.functions if run.pci else ():
        host = next((host for host in hosts if host.reaches(function)), None)
        what = f"{where}, PCI function {function.address}"
        if host is None:
            found = f"{function.vendor_id:04x}:{function.device_id:04x}"
            evidence = Evidence(what, found, "a described host bridge with its bus in bus-range")
            yield Missing(f"the PCI function {function.address} stands behind no described host bridge", evidence)
            continue
        for space, address in _bars(function):
            if not host.covers(space, address):
                evidence = Evidence(what, f"a BAR at {address:#x}", "inside the host bridge's ranges")
                yield Missing(f"a BAR of {function.address} lies outside of the host bridge's ranges", evidence)


def _bars(function: PciFunction) -> Iterator[tuple[int, int]]:
    """Kind of space and address of each base address register that is set (PCI Local Bus 3.0 §6.2.5.1)."""
    index = 0
    count = 6 if function.header_type & 0x7F == 0 else 2
    bars = function.bars[:count]
    while index < len(bars):
        value = bars[index]
        if value & 1:
            space, address, used = 1, value & 0xFFFFFFFC, 1
        elif value >> 1 & 3 == 2 and index + 1 < len(bars):
            space, address, used = 3, bars[index + 1] << 32 | value & 0xFFFFFFF0, 2
        else:
            space, address, used = 2, value & 0xFFFFFFF0, 1
        if address:
            yield space, address
        index += used


def _by_linux(seen: Seen, tree: DeviceTree) -> Iterator[Missing]:
    for run in seen.linux:
        if run.boot is not None and run.boot.acpi_tables:
            continue  # it never looked at the tree
        yield from _linux_cpus(run, tree)
        ranges = [Region(start, end - start) for start, end in run.memory.ranges] if run.memory else []
        yield from _memory("Linux probe, System RAM", ranges, tree)


def _linux_cpus(run: LinuxRun, tree: DeviceTree) -> Iterator[Missing]:
    online = run.cpus.online if run.cpus else None
    described = len(cpu_nodes(tree))
    if online is not None and len(online) < described:
        evidence = Evidence("Linux probe, CPUs online", str(len(online)), f"the {described} CPUs that are described")
        yield Missing("Linux did not bring up every CPU that is described", evidence)


def _by_machine(seen: Seen, tree: DeviceTree) -> Iterator[Missing]:
    machine = seen.machine
    if machine is None:
        return
    cpus = len(cpu_nodes(tree))
    if machine.vcpus is not None and cpus != machine.vcpus:
        evidence = Evidence("device tree, /cpus", f"{cpus} CPUs", f"the {machine.vcpus} that the VM has")
        yield Missing(f"{cpus} of {machine.vcpus} CPUs are described", evidence)
    described = described_memory(tree).size_bytes
    if machine.memory_bytes is not None and described and described != machine.memory_bytes:
        expected = f"the {format_size(machine.memory_bytes)} that the VM has"
        evidence = Evidence("device tree, memory", format_size(described), expected)
        yield Missing("the memory that is described is not what the VM has", evidence)
    yield from _machine_devices(machine, tree)


def _machine_devices(machine: ExpectedMachine, tree: DeviceTree) -> Iterator[Missing]:
    wanted: list[tuple[str, tuple[str, ...]]] = []
    if machine.gic is not None:
        wanted.append((f"GICv{machine.gic.value}", GIC_V2 if machine.gic is GicVersion.V2 else GIC_V3))
    if machine.console is Console.PL011:
        wanted.append(("pl011 UART", ("arm,pl011",)))
    if machine.bus is Bus.PCI:
        wanted.append(("PCI host bridge", PCI_HOSTS))
    if machine.bus is Bus.MMIO:
        wanted.append(("virtio-mmio devices", ("virtio,mmio",)))
    for what, kinds in wanted:
        if not any(node.enabled for node in tree.compatible_with(*kinds)):
            evidence = Evidence("device tree", f"no node compatible with {printable(kinds[0])}", f"the VM's {what}")
            yield Missing(f"the VM's {what} is not described", evidence)
