"""What properties of a device tree mean together: ``reg``, ``ranges``, interrupts, references (Devicetree v0.4 §2)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from armvm.errors import InputError
from armvm.platform.fdt import DeviceTree, Node

_MOST_CELLS = 4
"""More cells than this for an address or a size make no sense: PCI has three."""
_MOST_ENTRIES = 1024
_MOST_BUSES = 16
_MOST_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Region:
    """A range of addresses."""

    address: int
    size_bytes: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size_bytes

    def overlaps(self, other: Region) -> bool:
        """Whether the two have an address in common."""
        return self.address < other.end and other.address < self.end

    def __str__(self) -> str:
        """First and last address."""
        return f"{self.address:#x}-{max(self.end - 1, self.address):#x}"


class RegionSet:
    """Regions, sorted and with neighbours joined, that can be asked what lies in them."""

    def __init__(self, found: Iterable[Region]) -> None:
        self.regions: list[Region] = []
        for region in sorted(found, key=lambda region: region.address):
            last = self.regions[-1] if self.regions else None
            if last is not None and region.address <= last.end:
                self.regions[-1] = Region(last.address, max(region.end, last.end) - last.address)
            else:
                self.regions.append(region)
        self._starts = [region.address for region in self.regions]

    @property
    def size_bytes(self) -> int:
        """How many addresses lie in it."""
        return sum(region.size_bytes for region in self.regions)

    def covers(self, region: Region) -> bool:
        """Whether the whole of ``region`` lies in it."""
        index = bisect_right(self._starts, region.address) - 1
        return index >= 0 and region.end <= self.regions[index].end

    def overlapping(self, region: Region) -> Region | None:
        """The last part of it that has an address in common with ``region``."""
        index = bisect_right(self._starts, max(region.end - 1, region.address)) - 1
        return self.regions[index] if index >= 0 and self.regions[index].overlaps(region) else None


@dataclass(frozen=True, slots=True)
class Window:
    """An entry of ``ranges``: an address of the bus below, and what it is above (§2.3.8).

    ``flags`` is the first of PCI's three address cells.
    """

    child_address: int
    parent_address: int
    size_bytes: int
    flags: int | None = None


@dataclass(frozen=True, slots=True)
class Interrupt:
    """An interrupt of a device: which node it goes to, and its specifier there."""

    controller: Node
    specifier: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InterruptRoute:
    """An entry of an interrupt-map (§2.4.3)."""

    unit: tuple[int, ...]
    specifier: tuple[int, ...]
    target: Interrupt


def reg(tree: DeviceTree, node: Node) -> tuple[Region, ...]:
    """``reg`` in the address space of the parent; nothing when there is none.

    Raises InputError when it is malformed.
    """
    parent = tree.parent(node)
    if parent is None or "reg" not in node.properties:
        return ()
    address_cells, size_cells = _counts(tree, parent)
    return tuple(
        Region(_number(entry[:address_cells]), _number(entry[address_cells:]))
        for entry in _entries(tree, node, "reg", address_cells + size_cells)
    )


@lru_cache(maxsize=1024)
def windows(tree: DeviceTree, node: Node) -> tuple[Window, ...] | None:
    """``ranges`` of a bus; empty when it is the identity, None when there is none: nothing below can be reached."""
    parent = tree.parent(node)
    if "ranges" not in node.properties or parent is None:
        return None
    child_cells, size_cells = _counts(tree, node)
    parent_cells, _ = _counts(tree, parent)
    found: list[Window] = []
    for entry in _entries(tree, node, "ranges", child_cells + parent_cells + size_cells):
        if len(found) >= _MOST_WINDOWS:
            raise _error(tree, node, "ranges", f"more than {_MOST_WINDOWS} entries")
        # The first of three cells is PCI's kind of space and not part of the number (IEEE 1275 PCI §2.2.1.1).
        skipped = 1 if child_cells == 3 else 0
        found.append(
            Window(
                _number(entry[skipped:child_cells]),
                _number(entry[child_cells : child_cells + parent_cells]),
                _number(entry[child_cells + parent_cells :]),
                entry[0] if skipped else None,
            )
        )
    return tuple(found)


def regions(tree: DeviceTree, node: Node) -> tuple[Region, ...]:
    """``reg`` as the CPU sees it, through the ``ranges`` of every bus above; what cannot be reached is left out."""
    found = reg(tree, node)
    bus = tree.parent(node)
    for _ in range(_MOST_BUSES):
        if bus is None or bus.parent is None or not found:
            return found
        through = windows(tree, bus)
        if through is None:
            return ()
        if through:
            found = tuple(region for region in (_translated(region, through) for region in found) if region)
        bus = tree.parent(bus)
    return ()


def _translated(region: Region, through: tuple[Window, ...]) -> Region | None:
    for window in through:
        offset = region.address - window.child_address
        if offset >= 0 and offset + region.size_bytes <= window.size_bytes:
            return Region(window.parent_address + offset, region.size_bytes)
    return None


def interrupt_parent(tree: DeviceTree, node: Node) -> Node | None:
    """The node that the interrupts of ``node`` go to: its own ``interrupt-parent`` or the next one above (§2.4.1).

    Raises InputError when that refers to no node.
    """
    here: Node | None = node
    while here is not None:
        if "interrupt-parent" in here.properties:
            return referred(tree, here, "interrupt-parent")
        here = tree.parent(here)
    return None


def interrupts(tree: DeviceTree, node: Node) -> tuple[Interrupt, ...]:
    """The interrupts of a device, from ``interrupts-extended`` or ``interrupts``.

    Raises InputError when one goes nowhere or has the wrong number of cells.
    """
    if "interrupts-extended" in node.properties:
        cells = _cells(tree, node, "interrupts-extended")
        return tuple(_extended(tree, node, cells))
    if "interrupts" not in node.properties:
        return ()
    controller = interrupt_parent(tree, node)
    if controller is None:
        raise _error(tree, node, "interrupts", "there is no interrupt-parent")
    size = _interrupt_cells(tree, controller)
    return tuple(Interrupt(controller, entry) for entry in _entries(tree, node, "interrupts", size))


def _extended(tree: DeviceTree, node: Node, cells: tuple[int, ...]) -> Iterator[Interrupt]:
    offset = 0
    while offset < len(cells):
        controller = tree.by_phandle(cells[offset])
        if controller is None:
            raise _error(tree, node, "interrupts-extended", f"no node has the phandle {cells[offset]:#x}")
        size = _interrupt_cells(tree, controller)
        specifier = cells[offset + 1 : offset + 1 + size]
        if len(specifier) < size:
            raise _error(tree, node, "interrupts-extended", "cut off")
        yield Interrupt(controller, specifier)
        offset += 1 + size


def interrupt_map(tree: DeviceTree, node: Node) -> tuple[InterruptRoute, ...]:
    """``interrupt-map`` of a nexus such as a PCI host bridge. Raises InputError when it is malformed."""
    if "interrupt-map" not in node.properties:
        return ()
    cells = _cells(tree, node, "interrupt-map")
    unit_cells, _ = _counts(tree, node)
    own_cells = _interrupt_cells(tree, node)
    found: list[InterruptRoute] = []
    offset = 0
    while offset < len(cells):
        place = offset + unit_cells + own_cells
        target = tree.by_phandle(cells[place]) if place < len(cells) else None
        if target is None or len(found) >= _MOST_ENTRIES:
            shown = f"phandle {cells[place]:#x}" if place < len(cells) else "cut off"
            raise _error(tree, node, "interrupt-map", f"entry {len(found)} leads nowhere ({shown})")
        # The parent's unit address has as many cells as its own #address-cells say; none when it has none (§2.4.3.1).
        parent_unit = target.cell("#address-cells") or 0
        end = place + 1 + parent_unit + _interrupt_cells(tree, target)
        if end > len(cells) or parent_unit > _MOST_CELLS:
            raise _error(tree, node, "interrupt-map", f"entry {len(found)} is cut off")
        found.append(
            InterruptRoute(
                unit=cells[offset : offset + unit_cells],
                specifier=cells[offset + unit_cells : place],
                target=Interrupt(target, cells[place + 1 + parent_unit : end]),
            )
        )
        offset = end
    return tuple(found)


def referred(tree: DeviceTree, node: Node, name: str) -> Node:
    """The node that the first cell of a property refers to. Raises InputError when there is none."""
    cells = _cells(tree, node, name)
    target = tree.by_phandle(cells[0]) if cells else None
    if target is None:
        raise _error(tree, node, name, f"no node has the phandle {cells[0]:#x}" if cells else "it is empty")
    return target


def _interrupt_cells(tree: DeviceTree, controller: Node) -> int:
    cells = controller.cell("#interrupt-cells")
    if cells is None or not 1 <= cells <= _MOST_CELLS:
        raise _error(tree, controller, "#interrupt-cells", f"it is {cells}")
    return cells


def _counts(tree: DeviceTree, bus: Node) -> tuple[int, int]:
    address_cells, size_cells = tree.address_cells(bus), tree.size_cells(bus)
    if address_cells > _MOST_CELLS or size_cells > _MOST_CELLS:
        raise _error(tree, bus, "#address-cells", f"addresses of {address_cells} and sizes of {size_cells} cells")
    return address_cells, size_cells


def _cells(tree: DeviceTree, node: Node, name: str) -> tuple[int, ...]:
    cells = node.cells(name)
    if cells is None:
        raise _error(tree, node, name, "it does not consist of cells")
    return cells


def _entries(tree: DeviceTree, node: Node, name: str, size: int) -> Iterator[tuple[int, ...]]:
    cells = _cells(tree, node, name)
    if not cells:
        return
    if not size or len(cells) % size or len(cells) // size > _MOST_ENTRIES:
        raise _error(tree, node, name, f"{len(cells)} cells are not entries of {size} cells")
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _number(cells: tuple[int, ...]) -> int:
    number = 0
    for cell in cells:
        number = number << 32 | cell
    return number


def _error(tree: DeviceTree, node: Node, name: str, what: str) -> InputError:
    return InputError(what, subject=f"{tree.where(node)}, {name}")
