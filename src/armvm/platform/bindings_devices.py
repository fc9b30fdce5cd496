"""The bindings of the devices of virtual machines (Linux, Documentation/devicetree/bindings), as rules on one node."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from armvm.errors import InputError
from armvm.platform.fdt import DeviceTree, Node
from armvm.platform.fdt_values import interrupts, reg, windows
from armvm.printable import printable
from armvm.spec.verdict import Evidence, Problem
from armvm.units import MIB

GIC_V3 = ("arm,gic-v3",)
GIC_V2 = ("arm,cortex-a15-gic", "arm,cortex-a7-gic", "arm,cortex-a9-gic", "arm,gic-400")
TIMERS = ("arm,armv8-timer", "arm,armv7-timer")
PSCI = ("arm,psci", "arm,psci-0.2", "arm,psci-1.0")
UARTS = ("arm,pl011", "arm,sbsa-uart")
PCI_HOSTS = ("pci-host-ecam-generic", "pci-host-cam-generic")
_VIRTUAL_TIMER = 2
"""Its place in a timer's interrupts, behind secure and non-secure physical (timer/arm,arch_timer.yaml)."""


def pci_hosts(tree: DeviceTree) -> tuple[Node, ...]:
    """Every PCI host bridge that is described, also of kinds whose binding is not known here."""
    return tuple(
        node
        for node in tree.nodes
        if (node.string("device_type") == "pci" or any(kind in PCI_HOSTS for kind in node.compatible)) and node.enabled
    )


def fault(
    code: str, tree: DeviceTree, node: Node, found: str, expected: str | None = None, *, serious: bool = True
) -> Problem:
    """What is wrong with ``node``."""
    where = tree.where(node)
    return Problem(code, f"{where}: {printable(found)}", Evidence(where, printable(found), expected), serious)


def _gic(tree: DeviceTree, node: Node, *, least: int, what: str) -> Iterator[Problem]:
    """interrupt-controller/arm,gic.yaml and arm,gic-v3.yaml."""
    if "interrupt-controller" not in node.properties:
        yield fault("gic-marker", tree, node, "no interrupt-controller property", "interrupt-controller")
    if node.cell("#interrupt-cells") not in (3, 4):
        yield fault("gic-cells", tree, node, f"#interrupt-cells {node.cell('#interrupt-cells')}", "<3>")
    count = _reg_count(tree, node)
    if count is not None and count < least:
        yield fault("gic-reg", tree, node, f"{count} regions in reg", what)


def _gic_v3(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    redistributors = node.cell("#redistributor-regions") or 1
    yield from _gic(tree, node, least=1 + redistributors, what=f"the distributor and {redistributors} redistributors")


def _gic_v2(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    yield from _gic(tree, node, least=2, what="the distributor and the CPU interface")


def _msi_controller(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    if "msi-controller" not in node.properties:
        yield fault("msi-marker", tree, node, "no msi-controller property", "msi-controller")
    if _reg_count(tree, node) == 0:
        yield fault("msi-reg", tree, node, "no reg", "its registers")


def _timer(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """timer/arm,arch_timer.yaml: the interrupts stand in a fixed order, or have names."""
    names = node.strings("interrupt-names")
    count = _interrupt_count(tree, node)
    if count is None:
        return
    if names is not None:
        if "virt" not in names[:count]:
            yield fault("timer-virtual", tree, node, f"interrupts {', '.join(names)}", 'one named "virt"')
    elif count <= _VIRTUAL_TIMER:
        expected = "secure, non-secure, virtual and hypervisor interrupt"
        yield fault("timer-interrupts", tree, node, f"{count} interrupts", expected)
    elif count < 4:
        yield fault("timer-hypervisor", tree, node, f"{count} interrupts", "4 of them", serious=False)


def _uart(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """serial/pl011.yaml: registers, an interrupt, and clocks, without which Linux does not drive it."""
    yield from _registers_and_interrupt(tree, node)
    if "arm,pl011" in node.compatible:
        yield from _clocks(tree, node)


def _rtc(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """rtc/arm,pl031.yaml."""
    yield from _registers_and_interrupt(tree, node)


def _registers_and_interrupt(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    if _reg_count(tree, node) == 0:
        yield fault("no-reg", tree, node, "no reg", "its registers")
    if _interrupt_count(tree, node) == 0:
        yield fault("no-interrupt", tree, node, "no interrupts", "its interrupt")


def _clocks(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """clock/clock.yaml of dt-schema: each entry is a phandle and as many cells as its #clock-cells say."""
    cells = node.cells("clocks")
    if not cells:
        yield fault("no-clock", tree, node, "no clocks", "the clock that drives it")
        return
    offset = 0
    while offset < len(cells):
        provider = tree.by_phandle(cells[offset])
        size = provider.cell("#clock-cells") if provider is not None else None
        if size is None:
            yield fault("clock-nowhere", tree, node, f"clocks: phandle {cells[offset]:#x} is no clock", "a clock")
            return
        offset += 1 + size


def _fixed_clock(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """clock/fixed-clock.yaml."""
    if node.cell("#clock-cells") != 0 or node.cell("clock-frequency") is None:
        yield fault("clock", tree, node, "no #clock-cells = <0> or no clock-frequency", "both")


def _virtio_mmio(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """virtio/mmio.yaml."""
    yield from _registers_and_interrupt(tree, node)


def _psci(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """arm/psci.yaml."""
    if node.string("method") not in ("smc", "hvc"):
        yield fault("psci-method", tree, node, f"method {node.string('method')!r}", '"hvc" or "smc"')
    if node.compatible == ("arm,psci",) and node.cell("cpu_on") is None:
        yield fault("psci-cpu-on", tree, node, "PSCI 0.1 without cpu_on", "the function's number")


def _pci_host(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """pci/host-generic-pci.yaml."""
    cells = (node.cell("#address-cells"), node.cell("#size-cells"))
    if cells != (3, 2):
        yield fault("pci-cells", tree, node, f"#address-cells {cells[0]}, #size-cells {cells[1]}", "3 and 2")
        return
    if node.string("device_type") != "pci":
        yield fault("pci-type", tree, node, f"device_type {node.string('device_type')!r}", '"pci"')
    try:
        configuration, through = reg(tree, node), windows(tree, node)
    except InputError as error:
        yield fault("malformed", tree, node, str(error), "reg and ranges that can be followed")
        return
    if not through:
        yield fault("pci-ranges", tree, node, "no ranges", "the windows of its memory and I/O space")
    bus_range = node.cells("bus-range")
    if bus_range is not None and (len(bus_range) != 2 or not bus_range[0] <= bus_range[1] <= 255):
        shown = " ".join(map(str, bus_range[:4]))
        yield fault("pci-bus-range", tree, node, f"bus-range <{shown}>", "first and last bus")
        return
    first, last = bus_range or (0, 255)
    bus_bytes = MIB if "pci-host-ecam-generic" in node.compatible else MIB // 16
    if len(configuration) != 1 or configuration[0].size_bytes < (last - first + 1) * bus_bytes:
        found = ", ".join(map(str, configuration)) or "no reg"
        yield fault("pci-reg", tree, node, found, f"configuration space of {last - first + 1} buses")
    if "interrupt-map" in node.properties and len(node.cells("interrupt-map-mask") or ()) != 4:
        yield fault("pci-map-mask", tree, node, "no interrupt-map-mask of four cells", "interrupt-map-mask")
    yield from _msi_map(tree, node)


def _msi_map(tree: DeviceTree, node: Node) -> Iterator[Problem]:
    """pci/pci-msi.txt: requester, controller, base, length."""
    if "msi-map" not in node.properties:
        return
    cells = node.cells("msi-map") or ()
    if not cells or len(cells) % 4 or any(tree.by_phandle(phandle) is None for phandle in cells[1::4]):
        yield fault("pci-msi-map", tree, node, "msi-map leads nowhere", "an MSI controller")


def _reg_count(tree: DeviceTree, node: Node) -> int | None:
    """How many entries ``reg`` has; None when it is malformed, which is said where every node is looked at."""
    try:
        return len(reg(tree, node))
    except InputError:
        return None


def _interrupt_count(tree: DeviceTree, node: Node) -> int | None:
    try:
        return len(interrupts(tree, node))
    except InputError:
        return None


DEVICE_RULES: tuple[tuple[tuple[str, ...], Callable[[DeviceTree, Node], Iterator[Problem]]], ...] = (
    (GIC_V3, _gic_v3),
    (GIC_V2, _gic_v2),
    (("arm,gic-v3-its", "arm,gic-v2m-frame"), _msi_controller),
    (TIMERS, _timer),
    (UARTS, _uart),
    (("arm,pl031",), _rtc),
    (("fixed-clock",), _fixed_clock),
    (("virtio,mmio",), _virtio_mmio),
    (PSCI, _psci),
    (PCI_HOSTS, _pci_host),
)
"""What a node is compatible with, and the rule on it."""
