"""Whether a device tree keeps to the bindings: what every tree needs (Devicetree Specification v0.4 §3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from armvm.errors import InputError
from armvm.platform.bindings_devices import DEVICE_RULES, GIC_V2, GIC_V3, PSCI, TIMERS, UARTS, fault
from armvm.platform.fdt import DeviceTree, Node
from armvm.platform.fdt_values import Region, RegionSet, interrupt_map, interrupts, reg, regions
from armvm.spec.verdict import Problem

_ENABLE_METHODS = ("psci", "spin-table")
_MOST_PROBLEMS = 64
_MOST_MEMORY_REGIONS = 4096
_MOST_VALUES = 65_536


def check_bindings(tree: DeviceTree) -> tuple[Problem, ...]:
    """Every fault of ``tree`` against the core rules, at most 64; those that are not serious deserve a mention only."""
    found = list(tree.problems)
    for rule in (*_TREE_RULES, *(_over_nodes(kinds, rule) for kinds, rule in DEVICE_RULES)):
        for problem in rule(tree):
            found.append(problem)
            if len(found) >= _MOST_PROBLEMS:
                return tuple(found)
    return tuple(found)


def cpu_nodes(tree: DeviceTree) -> tuple[Node, ...]:
    """The CPUs that the tree describes; one with ``status = "fail"`` is none (§3.8.1)."""
    cpus = tree.find("/cpus")
    if cpus is None:
        return ()
    return tuple(
        node
        for node in tree.children(cpus)
        if (node.string("device_type") == "cpu" or node.base_name == "cpu")
        and not (node.string("status") or "").startswith("fail")
    )


@lru_cache(maxsize=4)
def described_memory(tree: DeviceTree) -> RegionSet:
    """The memory that the tree describes (§3.4)."""
    found: list[Region] = []
    for node in tree.nodes:
        if node.string("device_type") == "memory" and node.enabled:
            try:
                found += [region for region in reg(tree, node) if region.size_bytes]
            except InputError:
                continue  # a malformed reg has its own problem
            if len(found) >= _MOST_MEMORY_REGIONS:
                break
    return RegionSet(found)


def stdout_node(tree: DeviceTree) -> tuple[str, Node | None] | None:
    """What ``stdout-path`` says and the node that it leads to; None when there is no such property (§3.6)."""
    chosen = tree.find("/chosen")
    path = None if chosen is None else chosen.string("stdout-path") or chosen.string("linux,stdout-path")
    return None if path is None else (path, tree.find(path.partition(":")[0]))


def _over_nodes(
    kinds: tuple[str, ...], rule: Callable[[DeviceTree, Node], Iterator[Problem]]
) -> Callable[[DeviceTree], Iterator[Problem]]:
    def every(tree: DeviceTree) -> Iterator[Problem]:
        for node in tree.compatible_with(*kinds):
            if node.enabled:
                yield from rule(tree, node)

    return every


def _root(tree: DeviceTree) -> Iterator[Problem]:
    for name in ("#address-cells", "#size-cells"):
        if tree.root.cell(name) not in (1, 2):
            yield fault("root-cells", tree, tree.root, f"{name} is {tree.root.cell(name)}", f"{name} = <1> or <2>")
    if not tree.root.compatible:
        yield fault("root-compatible", tree, tree.root, "no compatible", "what machine it is")
    if tree.root.string("model") is None:
        yield fault("root-model", tree, tree.root, "no model", "a model", serious=False)


def _cpus(tree: DeviceTree) -> Iterator[Problem]:
    bus = tree.find("/cpus")
    nodes = cpu_nodes(tree)
    if bus is None or not nodes:
        yield fault("no-cpus", tree, bus or tree.root, "no CPU is described", "/cpus with a node for each CPU")
        return
    if bus.cell("#address-cells") not in (1, 2) or bus.cell("#size-cells") != 0:
        found = f"#address-cells {bus.cell('#address-cells')}, #size-cells {bus.cell('#size-cells')}"
        yield fault("cpus-cells", tree, bus, found, "#address-cells 1 or 2, #size-cells 0")
    seen: dict[int, str] = {}
    has_psci = bool(tree.compatible_with(*PSCI))
    for node in nodes:
        if node.string("device_type") != "cpu":
            yield fault("cpu-type", tree, node, "no device_type", 'device_type = "cpu"')
        if not node.compatible:
            yield fault("cpu-compatible", tree, node, "no compatible", "what CPU it is")
        try:
            places = reg(tree, node)
        except InputError:
            continue
        if len(places) != 1:
            yield fault("cpu-reg", tree, node, f"{len(places)} entries in reg", "its MPIDR in reg")
        elif places[0].address in seen:
            found = f"the same reg as {seen[places[0].address]}"
            yield fault("cpu-reg-twice", tree, node, found, "a reg of its own")
        else:
            seen[places[0].address] = tree.where(node)
            if len(nodes) > 1 and places[0].address != tree.boot_cpu:
                yield from _enable_method(tree, node, has_psci=has_psci)


def _enable_method(tree: DeviceTree, node: Node, *, has_psci: bool) -> Iterator[Problem]:
    """How a secondary CPU is started (Linux, arm/cpus.yaml)."""
    method = node.string("enable-method")
    if method is None:
        yield fault("cpu-enable-method", tree, node, "no enable-method", 'enable-method = "psci"')
    elif method == "psci" and not has_psci:
        yield fault("no-psci", tree, node, 'enable-method "psci", and no PSCI node', "/psci")
    elif method == "spin-table" and len(node.properties.get("cpu-release-addr", b"")) not in (4, 8):
        yield fault("cpu-release", tree, node, "no cpu-release-addr", "the address that releases this CPU")
    elif method not in _ENABLE_METHODS:
        yield fault("cpu-enable-method", tree, node, f"enable-method {method!r}", '"psci" or "spin-table"')


def _memory(tree: DeviceTree) -> Iterator[Problem]:
    if not described_memory(tree).regions:
        yield fault(
            "no-memory", tree, tree.root, "no memory is described", 'a node with device_type = "memory" and reg'
        )


def _gic(tree: DeviceTree) -> Iterator[Problem]:
    if not any(node.enabled for node in tree.compatible_with(*GIC_V2, *GIC_V3)):
        yield fault("no-gic", tree, tree.root, "no interrupt controller is described", "a GIC")


def _timer(tree: DeviceTree) -> Iterator[Problem]:
    if not any(node.enabled for node in tree.compatible_with(*TIMERS)):
        yield fault("no-timer", tree, tree.root, "no timer is described", 'a node compatible with "arm,armv8-timer"')


def _stdout(tree: DeviceTree) -> Iterator[Problem]:
    chosen = tree.find("/chosen")
    said = stdout_node(tree)
    if said is None:
        # Only a UART has a node that stdout-path could lead to; virtio and Xen consoles stand on their own buses.
        uart = next((node for node in tree.compatible_with(*UARTS) if node.enabled), None)
        if uart is not None:
            expected = f'stdout-path = "{tree.where(uart)}"'
            yield fault("no-stdout", tree, chosen or tree.root, "no stdout-path", expected)
        return
    path, node = said
    if node is None:
        yield fault("stdout-nowhere", tree, chosen or tree.root, f"stdout-path {path!r} leads to no node", "a console")
    elif not node.enabled:
        yield fault("stdout-disabled", tree, node, "the console of stdout-path is disabled", 'status "okay"')


def _every_node(tree: DeviceTree) -> Iterator[Problem]:
    """What holds for every device: ``reg`` and interrupts can be read, and lead somewhere."""
    memory = described_memory(tree)
    looked_at = 0
    for node in tree.nodes:
        if not node.enabled:
            continue
        if looked_at >= _MOST_VALUES:
            yield fault("too-much", tree, node, "more values than any machine has are not looked at", serious=False)
            return
        try:
            looked_at += len(reg(tree, node)) + len(interrupts(tree, node)) + len(interrupt_map(tree, node))
        except InputError as error:
            yield fault("malformed", tree, node, str(error), "properties that can be followed")
            continue
        yield from _clear_of_memory(tree, node, memory)


def _clear_of_memory(tree: DeviceTree, node: Node, memory: RegionSet) -> Iterator[Problem]:
    if "reg" not in node.properties or node.string("device_type") == "memory" or _inside(tree, node, "reserved-memory"):
        return
    try:
        places = regions(tree, node)
    except InputError as error:
        yield fault("malformed", tree, node, str(error), "ranges that can be followed")
        return
    for place in places:
        overlapped = memory.overlapping(place)
        if overlapped is not None and not _inside(tree, node, "cpus"):
            yield fault("in-memory", tree, node, f"{place} overlaps the memory at {overlapped}", "a place of its own")
            return


def _inside(tree: DeviceTree, node: Node, name: str) -> bool:
    here: Node | None = node
    while here is not None:
        if here.parent == 0 and here.name == name:
            return True
        here = tree.parent(here)
    return False


_TREE_RULES = (_root, _cpus, _memory, _gic, _timer, _stdout, _every_node)
