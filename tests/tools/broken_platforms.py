"""Every way in which a platform can be broken, as a change of a good one's story."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from armvm.machine.definition import GicVersion
from armvm.platform.host import HotplugKind
from armvm.probe.report import After
from tools import device_trees
from tools.device_trees import Node
from tools.probe_logs import ACPI_TABLE, FDT_TABLE, NOT_FOUND, UNSUPPORTED, Record, Story, nonce

Mutation = Callable[[Story], None]


def _withdraw(story: Story, table: str) -> None:
    for run in story.runs:
        run.facts = [record for record in run.facts if record.get("guid") != table]


def _acpi_only(story: Story) -> None:
    story.tree = None
    _withdraw(story, FDT_TABLE)
    for run in story.runs:
        run.facts.append({"t": "table", "guid": ACPI_TABLE, "address": "0x7fff0000"})
    story.every("fdt", present=False)
    story.every("acpi", present=True, revision=2)
    story.linux_says("boot", fdt=False, acpi=["FACP", "APIC", "GTDT"])


def _no_description(story: Story) -> None:
    _acpi_only(story)
    _withdraw(story, ACPI_TABLE)
    story.every("acpi", present=False)
    story.linux = []


def _lost(after: After) -> Mutation:
    def mutate(story: Story) -> None:
        for run in story.runs:
            if run.after is after:
                for record in run.of("variable-test"):
                    record.update(found=None, read_status=NOT_FOUND)

    return mutate


def _foreign(story: Story) -> None:
    story.runs[4].of("variable-test")[0].update(found={"run": 4, "nonce_hex": nonce("first", 4)}, read_status="0x0")


def _tree(change: Callable[[Node], object]) -> Mutation:
    def mutate(story: Story) -> None:
        assert isinstance(story.tree, Node)
        change(story.tree)

    return mutate


def _property(path: str, name: str, value: Any = ...) -> Mutation:
    def change(tree: Node) -> None:
        node = tree.at(path) if path else tree
        if value is ...:
            del node.properties[name]
        else:
            node.properties[name] = value

    return _tree(change)


def _without(path: str) -> Mutation:
    return _tree(lambda tree: tree.remove(path))


def _with(name: str, **properties: Any) -> Mutation:
    return _tree(
        lambda tree: tree.children.update({name: Node({k.replace("_", "-"): v for k, v in properties.items()})})
    )


def _says(kind: str, **changes: Any) -> Mutation:
    return lambda story: story.every(kind, **changes)


def _linux_says(kind: str, **changes: Any) -> Mutation:
    return lambda story: story.linux_says(kind, **changes)


def _ends(test: str, result: str, *kinds: str) -> Mutation:
    def mutate(story: Story) -> None:
        for run in story.runs:
            run.ends[test] = result
            run.drop(*kinds)

    return mutate


def _attempts(kind: HotplugKind, **changes: Any) -> Mutation:
    def mutate(story: Story) -> None:
        assert story.hotplug is not None
        attempts = (replace(a, **changes) if a.kind is kind else a for a in story.hotplug.attempts)
        story.hotplug = replace(story.hotplug, attempts=tuple(attempts))

    return mutate


def _events(subsystem: str, action: str | None = None, **changes: Any) -> Mutation:
    """Change the hotplug events of a subsystem, or leave them out when there are no changes."""

    def chosen(record: Record) -> bool:
        of_kind = record["t"] == "hotplug" and record["subsystem"] == subsystem
        return of_kind and action in (None, record["action"])

    def mutate(story: Story) -> None:
        for records in story.linux:
            for record in filter(chosen, records):
                record.update(changes)
            if not changes:
                records[:] = [record for record in records if not chosen(record)]

    return mutate


def _no_port(kind: HotplugKind, subsystem: str) -> Mutation:
    return _both(
        _attempts(kind, added=False, removed=None, error="Bus 'pcie.0' does not support hotplugging"),
        _events(subsystem),
    )


def _both(*mutations: Mutation) -> Mutation:
    def mutate(story: Story) -> None:
        for one in mutations:
            one(story)

    return mutate


def _machine(**changes: Any) -> Mutation:
    def mutate(story: Story) -> None:
        assert story.machine is not None
        story.machine = replace(story.machine, **changes)

    return mutate


def _nine_cpus_on_gicv2(story: Story) -> None:
    story.tree = device_trees.virt(cpus=9, gic=2)
    story.every("gic", description="v2", pidr2="0x2b", arch=2)
    _machine(vcpus=9, gic=GicVersion.V2)(story)
    story.linux = []


def _set(**changes: Any) -> Mutation:
    def mutate(story: Story) -> None:
        for name, value in changes.items():
            setattr(story, name, value)

    return mutate


def _other_console(story: Story) -> None:
    _property("pl011@9000000", "compatible", "ns16550a")(story)
    _machine(console=None)(story)
    _linux_says("consoles", lines=["ttyS0 -W- (EC p a) 4:64"])(story)


COMPLETE = "description.fdt-complete"
ENUMERABLE = "platform.enumerable"
BLOCK, NETWORK = HotplugKind.BLOCK, HotplugKind.NETWORK
LONG_AGO = [1970, 1, 1, 0, 0, 5, 0, 2047, 0]

BROKEN: dict[str, tuple[tuple[str, ...], Mutation]] = {
    "no UEFI": (
        ("firmware.uefi",),
        _set(runs=[], linux=[], hotplug=None, efi_failure="nothing on the console within 60 s"),
    ),
    "UEFI 2.3.1": (("firmware.uefi-version",), _says("system", uefi_revision=0x2001F)),
    # variables
    "lost by a reset": (("firmware.variables-persist",), _lost(After.RESET)),
    "lost by a power cycle": (("firmware.variables-persist",), _lost(After.POWER_CYCLE)),
    "lost by a kill": (("firmware.variables-persist",), _lost(After.KILL)),
    "read-only store": (
        ("firmware.variables-persist",),
        _says("variable-test", write_status="0x8000000000000008", written=None, found=None, read_status=NOT_FOUND),
    ),
    "value does not read back": (("firmware.variables-persist",), _says("variable-test", read_back_ok=False)),
    "variables crash": (
        ("firmware.variables-persist",),
        _ends("variables", "crashed", "variable-test", "variable-store", "variable-boot"),
    ),
    "ubootefi.var": (("firmware.variables-per-instance",), _says("variable-store", file_store=True)),
    "another instance's variable": (("firmware.variables-per-instance",), _foreign),
    "image changed": (("firmware.variables-per-instance",), _set(image_unchanged=False)),
    # clock
    "no RTC": (("firmware.rtc",), _says("rtc", get_status=UNSUPPORTED, time=None, later=None, set_status=UNSUPPORTED)),
    "clock not set": (("firmware.rtc",), _says("rtc", time=LONG_AGO, later=LONG_AGO)),
    "no date": (("firmware.rtc",), _says("rtc", time=[2026, 13, 40, 25, 61, 61, 0, 2047, 0])),
    "clock stands": (("firmware.rtc",), _says("rtc", later=[2026, 3, 1, 23, 59, 59, 0, 2047, 0])),
    "clock races": (("firmware.rtc",), _says("rtc", later=[2026, 3, 2, 0, 0, 30, 0, 2047, 0])),
    "clock cannot be set": (("firmware.rtc",), _says("rtc", set_status=UNSUPPORTED)),
    "clock takes no time": (("firmware.rtc",), _says("rtc", set_read=[2026, 3, 2, 0, 0, 1, 0, 2047, 0])),
    "GetTime crashes": (("firmware.rtc",), _ends("rtc", "crashed", "rtc")),
    "GetTime faults": (("firmware.rtc",), _ends("rtc", "fault", "rtc")),
    # description
    "ACPI only": (("description.fdt",), _acpi_only),
    "no description": (("description.uefi-table",), _no_description),
    "no device tree there": (("description.fdt",), _set(tree=b"\x7fELF" + bytes(100))),
    "device tree lies": (
        ("description.fdt",),
        _set(tree=device_trees.blob(b"\0\0\0\x01", b"", off_dt_struct=0x7FFFFFFF)),
    ),
    "no kernel boots": (
        ("description.mainline-boots",),
        _both(_set(linux=[], linux_failure="nothing within 60 s"), _set(hotplug=None)),
    ),
    "CPU removed": ((COMPLETE, ENUMERABLE), _without("cpus/cpu@1")),
    "no CPUs": ((COMPLETE, ENUMERABLE), _without("cpus")),
    "CPU twice": ((COMPLETE,), _property("cpus/cpu@1", "reg", 0)),
    "CPU without a type": ((COMPLETE,), _property("cpus/cpu@1", "device_type")),
    "CPU of no kind": ((COMPLETE,), _property("cpus/cpu@1", "compatible")),
    "CPU that nothing starts": ((COMPLETE,), _property("cpus/cpu@1", "enable-method")),
    "CPU started by magic": ((COMPLETE,), _property("cpus/cpu@1", "enable-method", "magic")),
    "spin table without an address": ((COMPLETE,), _property("cpus/cpu@1", "enable-method", "spin-table")),
    "CPU that does not start": ((COMPLETE, ENUMERABLE), _linux_says("cpus", online="0")),
    "another boot CPU": ((COMPLETE, ENUMERABLE), _says("cpu", registers={"MPIDR_EL1": "0x80000100"})),
    "no PSCI": ((COMPLETE,), _without("psci")),
    "PSCI without a method": ((COMPLETE,), _property("psci", "method")),
    "memory not described": (
        (COMPLETE, ENUMERABLE),
        _property("memory@40000000", "reg", (0, 0x40000000, 0, 0x20000000)),
    ),
    "no memory": ((COMPLETE,), _without("memory@40000000")),
    "less memory than the VM has": ((COMPLETE, ENUMERABLE), _machine(memory_bytes=2 << 30)),
    "timer removed": ((COMPLETE,), _without("timer")),
    "timer without the virtual one": ((COMPLETE,), _property("timer", "interrupts", (1, 13, 4, 1, 14, 4))),
    "timer's names without the virtual one": (
        (COMPLETE,),
        _property("timer", "interrupt-names", ("sec-phys", "phys", "hyp-phys", "hyp-virt")),
    ),
    "stdout-path removed": ((COMPLETE,), _property("chosen", "stdout-path")),
    "stdout-path leads nowhere": ((COMPLETE,), _property("chosen", "stdout-path", "/serial@0")),
    "stdout-path leads to the firmware's": ((COMPLETE,), _property("chosen", "stdout-path", "/pl031@9010000")),
    "UART without a clock": ((COMPLETE,), _property("pl011@9000000", "clocks")),
    "UART's clock is none": ((COMPLETE,), _property("pl011@9000000", "clocks", (device_trees.GIC, 1))),
    "UART without an interrupt": ((COMPLETE,), _property("pl011@9000000", "interrupts")),
    "interrupt of two cells": ((COMPLETE,), _property("pl011@9000000", "interrupts", (0, 1))),
    "interrupt-parent leads nowhere": ((COMPLETE,), _property("", "interrupt-parent", 0x77)),
    "GIC removed": ((COMPLETE, ENUMERABLE), _without("intc@8000000")),
    "GIC without redistributors": ((COMPLETE,), _property("intc@8000000", "reg", (0, 0x8000000, 0, 0x10000))),
    "GIC that is no controller": ((COMPLETE,), _property("intc@8000000", "interrupt-controller")),
    "reg in memory": ((COMPLETE,), _property("virtio_mmio@a000000", "reg", (0, 0x50000000, 0, 0x200))),
    "reg of three cells": ((COMPLETE,), _property("virtio_mmio@a000000", "reg", (0, 0xA000000, 0))),
    "clock without a frequency": ((COMPLETE,), _property("apb-pclk", "clock-frequency")),
    "PCI removed": ((COMPLETE, ENUMERABLE), _without("pcie@10000000")),
    "PCI on other buses": ((COMPLETE, ENUMERABLE), _property("pcie@10000000", "bus-range", (16, 31))),
    "PCI without ranges": ((COMPLETE, ENUMERABLE), _property("pcie@10000000", "ranges")),
    "PCI with too little configuration space": ((COMPLETE,), _property("pcie@10000000", "reg", (0x40, 0, 0, 0x100000))),
    "PCI interrupts lead nowhere": (
        (COMPLETE,),
        _property("pcie@10000000", "interrupt-map", (0, 0, 0, 1, 0x77, 0, 0, 0, 3, 4)),
    ),
    "PCI without a map's mask": ((COMPLETE,), _property("pcie@10000000", "interrupt-map-mask")),
    "BAR outside": (
        (COMPLETE, ENUMERABLE),
        _says("pci-function", functions=[["0000:00:01.0", 1, 2, 3, 0, ["0x9000000"]]]),
    ),
    "virtio-mmio not described": (
        (COMPLETE, ENUMERABLE),
        # VenHw(VirtioMmio, 0xa003e00)
        _says("block", path_hex="01041c009eca7d8374e8824db29a23fe0e23d1e2" + "003e000a00000000" + "7fff0400"),
    ),
    "root without cells": ((COMPLETE,), _property("", "#size-cells")),
    "machine of no kind": ((COMPLETE,), _property("", "compatible")),
    # hardware
    "disk that no guest finds": ((ENUMERABLE,), lambda story: _drop_linux(story, "block")),
    "console of another kind": (("platform.console",), _other_console),
    "9 vCPUs on a GICv2": (("platform.gic",), _nine_cpus_on_gicv2),
    "GIC is another": (("platform.gic",), _says("gic", pidr2="0x2b", arch=2)),
    "GICv1": (("platform.gic",), _says("gic", pidr2="0x1b", arch=1)),
    "counter stands": (
        ("platform.timer",),
        _says("counter", samples=[["0x9459e30", 1795493708, 0], ["0x9459e30", 1795493709, 0]], stall_ticks=0),
    ),
    "counter runs at another rate": (("platform.timer",), _says("counter", frequency=1000000)),
    "counter slow against Stall": (("platform.timer",), _says("counter", stall_ticks=1000)),
    "counter runs backwards": (("platform.timer",), _says("counter", monotonic=False)),
    "counter without a frequency": (("platform.timer",), _says("counter", frequency=0)),
    "no timer interrupts": (
        ("platform.timer",),
        _both(
            _says("timer", pending=False, event={"armed_ms": 50, "fired": False}),
            _linux_says("interrupts", timer_later=[]),
        ),
    ),
    "timer does not expire": (
        ("platform.timer",),
        _both(
            _says("timer", istatus=False, pending=False, event={"armed_ms": 50, "fired": False}),
            _linux_says("interrupts", timer_later=[]),
        ),
    ),
    "no ticks on one CPU": (("platform.timer",), _linux_says("interrupts", timer=[285, 0], timer_later=[351, 0])),
    "no ticks any more": (("platform.timer",), _linux_says("interrupts", timer_later=[285, 285])),
    # hotplug
    "no port for disks": (("platform.hotplug-block",), _no_port(BLOCK, "block")),
    "no port for NICs": (("platform.hotplug-network",), _no_port(NETWORK, "net")),
    "disk never seen": (("platform.hotplug-block",), _events("block")),
    "NIC never seen": (("platform.hotplug-network",), _events("net")),
    "disk stays": (("platform.hotplug-block",), _events("block", "remove")),
    "NIC stays": (("platform.hotplug-network",), _events("net", "remove")),
    "disk cannot be read": (("platform.hotplug-block",), _events("block", "add", read=False)),
    "disk with other content": (("platform.hotplug-block",), _events("block", "add", sha256_hex="00" * 32)),
    "NIC without a link": (("platform.hotplug-network",), _events("net", "add", carrier=False)),
    "NIC without a driver": (("platform.hotplug-network",), _events("net", "add", driver=None)),
    "disk cannot be removed": (("platform.hotplug-block",), _attempts(BLOCK, removed=False, error="refused")),
}
"""What is broken: the requirements that fail by it, and how a good story becomes it."""


def _drop_linux(story: Story, kind: str) -> None:
    for records in story.linux:
        records[:] = [record for record in records if record["t"] != kind]


def _no_acpi(story: Story) -> None:
    story.every("acpi", present=False, tables=[])
    _withdraw(story, ACPI_TABLE)


BROKEN_V2: dict[str, tuple[tuple[str, ...], Mutation]] = {
    "UEFI 2.5": (("firmware.uefi-version",), _says("system", uefi_revision=131122)),
    "EL2": (("firmware.el1",), _says("cpu", el=2)),
    "no ACPI": (("description.acpi",), _no_acpi),
    "ACPI without a timer": (
        ("description.acpi",),
        _says("acpi", tables=[{"signature": name} for name in ("FACP", "DSDT", "APIC", "SPCR")]),
    ),
    "ACPI table damaged": (
        ("description.acpi",),
        _says(
            "acpi",
            tables=[{"signature": s, "checksum_ok": s != "APIC"} for s in ("FACP", "DSDT", "APIC", "GTDT", "SPCR")],
        ),
    ),
    "virtio console only": (("platform.console",), _other_console),
    "PSCI 0.1": (("platform.psci",), _linux_says("cpus", psci="psci: PSCIv0.1 detected in firmware.")),
    "PSCI not described": (
        ("platform.psci",),
        _both(
            _without("psci"),
            _property("cpus/cpu@1", "enable-method", "spin-table"),
            _property("cpus/cpu@1", "cpu-release-addr", (0, 0x40000000)),
        ),
    ),
}
"""The same for what v2.0 alone asks."""
