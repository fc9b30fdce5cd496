"""Flattened device trees: bytes → a frozen tree of nodes and properties (Devicetree Specification v0.4 §5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from armvm.errors import InputError
from armvm.printable import printable
from armvm.spec.verdict import Evidence, Problem
from armvm.units import KIB, MIB, format_size

MAGIC = 0xD00DFEED
MOST_BYTES = 16 * MIB
MOST_DEPTH = 64
MOST_NODES = 16_384
MOST_PROPERTIES = 65_536

_SUBJECT = "device tree"
_MOST_NAME_BYTES = 255
_MOST_RESERVATIONS = 1024
_MOST_VALUE_BYTES = 256 * KIB
"""Longer properties hold data, and no cells or strings that anybody counts."""
_MOST_SHOWN = 200
_MOST_PROBLEMS = 32
_HEADER = struct.Struct(">10I")
_HEADER_16_BYTES = 36
"""Version 16 has no size of the structure block (§5.2: size_dt_struct came with version 17)."""
_BEGIN_NODE, _END_NODE, _PROPERTY, _NOP, _END = 1, 2, 3, 4, 9
_DEFAULT_ADDRESS_CELLS, _DEFAULT_SIZE_CELLS = 2, 1


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A node. ``index`` is its place in ``DeviceTree.nodes``; ``parent`` and ``children`` are such places too."""

    index: int
    name: str
    parent: int | None
    children: tuple[int, ...]
    properties: Mapping[str, bytes]

    @property
    def base_name(self) -> str:
        """The name without its unit address (§2.2.1)."""
        return self.name.partition("@")[0]

    def cells(self, name: str) -> tuple[int, ...] | None:
        """A property as 32-bit cells; None when it is not there or does not consist of cells (§2.2.4)."""
        value = self.properties.get(name)
        if value is None or len(value) % 4 or len(value) > _MOST_VALUE_BYTES:
            return None
        return struct.unpack(f">{len(value) // 4}I", value)

    def cell(self, name: str) -> int | None:
        """A property that is one cell."""
        cells = self.cells(name)
        return cells[0] if cells is not None and len(cells) == 1 else None

    def strings(self, name: str) -> tuple[str, ...] | None:
        """A property as strings, each ended by a zero byte; None when it is not there or is no such list."""
        value = self.properties.get(name)
        if not value or value[-1] or len(value) > _MOST_VALUE_BYTES:
            return None
        return tuple(part.decode("utf-8", "replace") for part in value[:-1].split(b"\0"))

    def string(self, name: str) -> str | None:
        """A property that is one string."""
        strings = self.strings(name)
        return strings[0] if strings is not None and len(strings) == 1 else None

    @property
    def compatible(self) -> tuple[str, ...]:
        """What the node says that it is compatible with, the most exact first (§2.3.1)."""
        return self.strings("compatible") or ()

    @property
    def enabled(self) -> bool:
        """Whether the device is there for the system to use: no ``status``, or ``okay`` (§2.3.4)."""
        return self.string("status") in (None, "okay", "ok") and self.properties.get("status") != b""

    @property
    def phandle(self) -> int | None:
        """The number by which other nodes refer to this one (§2.3.3), also under its old name."""
        own = self.cell("phandle")
        return self.cell("linux,phandle") if own is None else own


@dataclass(frozen=True, slots=True)
class Reservation:
    """An entry of the memory reservation block (§5.3)."""

    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTree:
    """A device tree. ``nodes`` are in the order of the structure block, the root is the first.

    ``problems`` are faults of form that do not keep it from being read.
    """

    version: int
    boot_cpu: int
    reservations: tuple[Reservation, ...]
    nodes: tuple[Node, ...]
    problems: tuple[Problem, ...] = ()
    _phandles: Mapping[int, int] = field(default_factory=dict, repr=False)

    @property
    def root(self) -> Node:
        """The root node."""
        return self.nodes[0]

    def parent(self, node: Node) -> Node | None:
        """The node above; None for the root."""
        return None if node.parent is None else self.nodes[node.parent]

    def children(self, node: Node) -> tuple[Node, ...]:
        """The nodes below, in their order."""
        return tuple(self.nodes[index] for index in node.children)

    def path(self, node: Node) -> str:
        """The full path (§2.2.3), as it stands in the tree: not made printable."""
        names = []
        here: Node | None = node
        while here is not None and here.parent is not None:
            names.append(here.name)
            here = self.parent(here)
        return "/" + "/".join(reversed(names))

    def where(self, node: Node) -> str:
        """The full path, for messages."""
        path = printable(self.path(node))
        return path if len(path) <= _MOST_SHOWN else f"...{path[-_MOST_SHOWN:]}"

    def find(self, path: str) -> Node | None:
        """The node at ``path``; a unit address may be left out where the name alone is unique (§2.2.3).

        A path that does not begin with ``/`` begins with an alias (§3.3).
        """
        if not path.startswith("/"):
            alias, _, rest = path.partition("/")
            target = self.aliases.get(alias)
            if target is None or not target.startswith("/"):
                return None
            path = f"{target}/{rest}"
        node = self.root
        for name in path.split("/"):
            if name:
                inner = self.child(node, name)
                if inner is None:
                    return None
                node = inner
        return node

    def child(self, node: Node, name: str) -> Node | None:
        """The child with that name; a unit address may be left out where the name alone is unique."""
        children = self.children(node)
        exact = next((child for child in children if child.name == name), None)
        if exact is not None or "@" in name:
            return exact
        near = [child for child in children if child.base_name == name]
        return near[0] if len(near) == 1 else None

    @property
    def aliases(self) -> dict[str, str]:
        """Alias to the path that it stands for (§3.3)."""
        node = next((child for child in self.children(self.root) if child.name == "aliases"), None)
        if node is None:
            return {}
        found = ((name, node.string(name)) for name in node.properties)
        return {name: path for name, path in found if path is not None}

    def by_phandle(self, phandle: int) -> Node | None:
        """The node that ``phandle`` refers to."""
        index = self._phandles.get(phandle)
        return None if index is None else self.nodes[index]

    def compatible_with(self, *kinds: str) -> tuple[Node, ...]:
        """Every node that is compatible with one of ``kinds``."""
        return tuple(node for node in self.nodes if any(kind in kinds for kind in node.compatible))

    def address_cells(self, node: Node) -> int:
        """How many cells an address has in ``reg`` of the children of ``node`` (§2.3.5)."""
        cells = node.cell("#address-cells")
        return _DEFAULT_ADDRESS_CELLS if cells is None else cells

    def size_cells(self, node: Node) -> int:
        """How many cells a size has in ``reg`` of the children of ``node`` (§2.3.5)."""
        cells = node.cell("#size-cells")
        return _DEFAULT_SIZE_CELLS if cells is None else cells


def parse_fdt(content: bytes) -> DeviceTree:
    """Read a flattened device tree (versions 16 and 17). Padding behind its blocks may have been left out.

    Raises InputError when it is none, is cut off, lies about its sizes, or is larger than any machine's: 16 MiB,
    16384 nodes, 65536 properties, 64 levels.
    """
    header = _parse_header(content)
    reader = _Structure(content, header)
    nodes = reader.read()
    problems = list(reader.problems)
    phandles: dict[int, int] = {}
    for node in nodes:
        handle = node.phandle
        if handle is not None and phandles.setdefault(handle, node.index) != node.index:
            problems.append(_problem("phandle-twice", f"two nodes have the phandle {handle:#x}", printable(node.name)))
    reservations = _parse_reservations(content, header, problems)
    return DeviceTree(header.version, header.boot_cpu, reservations, nodes, tuple(problems[:_MOST_PROBLEMS]), phandles)


@dataclass(frozen=True, slots=True)
class _Header:
    """§5.2, with what is checked against the content."""

    end: int
    structure: int
    structure_end: int
    strings: int
    strings_end: int
    reservations: int
    version: int
    boot_cpu: int


def _parse_header(content: bytes) -> _Header:
    if len(content) < _HEADER.size:
        raise InputError("too short for a header", subject=_SUBJECT, found=f"{len(content)} bytes", expected="40")
    (magic, total, structure, strings, reservations, version, last_compatible, boot_cpu, strings_bytes, size) = (
        _HEADER.unpack_from(content)
    )
    if magic != MAGIC:
        raise InputError("no magic number", subject=_SUBJECT, found=f"{magic:#010x}", expected=f"{MAGIC:#010x}")
    if version < 16 or last_compatible > 17:
        found = f"version {version}, compatible with {last_compatible}"
        raise InputError("an unknown version", subject=_SUBJECT, found=found, expected="version 16 or 17")
    if total > MOST_BYTES:
        raise InputError(f"larger than {format_size(MOST_BYTES)}", subject=_SUBJECT, found=format_size(total))
    header_bytes = _HEADER.size if version >= 17 else _HEADER_16_BYTES
    structure_end = structure + size if version >= 17 else min(total, len(content))
    places = (
        ("structure block", structure, structure_end),
        ("strings block", strings, strings + strings_bytes),
        ("memory reservation block", reservations, reservations + 16),
    )
    for what, start, end in places:
        if not header_bytes <= start <= end <= total:
            found, expected = f"{start:#x}-{end:#x}", f"below {total:#x}"
            raise InputError(f"the {what} lies outside", subject=_SUBJECT, found=found, expected=expected)
        if end > len(content):
            found = f"{len(content)} bytes"
            raise InputError(f"cut off in the {what}", subject=_SUBJECT, found=found, expected=f"{end} at least")
    return _Header(total, structure, structure_end, strings, strings + strings_bytes, reservations, version, boot_cpu)


def _parse_reservations(content: bytes, header: _Header, problems: list[Problem]) -> tuple[Reservation, ...]:
    found: list[Reservation] = []
    for offset in range(header.reservations, header.end - 15, 16):
        address, size = struct.unpack_from(">QQ", content, offset)
        if not address and not size:
            return tuple(found)
        if len(found) >= _MOST_RESERVATIONS:
            break
        found.append(Reservation(address, size))
    problems.append(_problem("reservations-end", "the memory reservation block has no end", "memory reservation block"))
    return tuple(found)


class _Structure:
    """Reads the structure block (§5.4) token by token."""

    def __init__(self, content: bytes, header: _Header) -> None:
        self._content = content
        self._offset = header.structure
        self._end = header.structure_end
        self._strings = (header.strings, header.strings_end)
        self._names: dict[int, str] = {}
        self._count = 0
        self.problems: list[Problem] = []

    def read(self) -> tuple[Node, ...]:
        names: list[str] = []
        parents: list[int | None] = []
        children: list[list[int]] = []
        properties: list[dict[str, bytes]] = []
        open_nodes: list[int] = []
        for token in self._tokens():
            if token == _BEGIN_NODE:
                if (names and not open_nodes) or len(open_nodes) >= MOST_DEPTH or len(names) >= MOST_NODES:
                    raise self._error(self._begin_fault(len(names), bool(open_nodes)))
                index = len(names)
                parents.append(open_nodes[-1] if open_nodes else None)
                if open_nodes:
                    children[open_nodes[-1]].append(index)
                names.append(self._node_name())
                children.append([])
                properties.append({})
                open_nodes.append(index)
            elif not open_nodes:
                raise self._error("a token outside of the root node")
            elif token == _END_NODE:
                self._check_names(names, children[open_nodes.pop()])
            else:
                name, value = self._property()
                if name in properties[open_nodes[-1]]:
                    self._add("property-twice", f"the property {printable(name)} stands twice", names[open_nodes[-1]])
                if children[open_nodes[-1]]:
                    what = f"the property {printable(name)} stands behind a node (§5.4.2)"
                    self._add("property-late", what, names[open_nodes[-1]])
                properties[open_nodes[-1]].setdefault(name, value)
        if open_nodes or not names:
            raise self._error("it ends inside a node" if open_nodes else "there is no root node")
        return tuple(
            Node(index, names[index], parents[index], tuple(children[index]), properties[index])
            for index in range(len(names))
        )

    @staticmethod
    def _begin_fault(count: int, inside: bool) -> str:
        if not inside:
            return "a second root node"
        return f"more than {MOST_NODES} nodes" if count >= MOST_NODES else f"nested deeper than {MOST_DEPTH} levels"

    def _tokens(self) -> Iterator[int]:
        """Every token that begins a node, ends one or brings a property, up to the end token."""
        while True:
            (token,) = self._unpack(">I")
            if token == _END:
                return
            if token in (_BEGIN_NODE, _END_NODE, _PROPERTY):
                yield token
            elif token != _NOP:
                self._offset -= 4
                raise self._error(f"an unknown token {token:#x}")

    def _unpack(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        if self._offset + size > self._end:
            raise self._error("the structure block ends without its end token")
        values: tuple[int, ...] = struct.unpack_from(layout, self._content, self._offset)
        self._offset += size
        return values

    def _node_name(self) -> str:
        name = self._text(self._offset, self._end)
        self._offset += len(name) + 1
        self._align()
        return name.decode("utf-8", "replace")

    def _property(self) -> tuple[str, bytes]:
        size, name_offset = self._unpack(">II")
        self._count += 1
        if self._count > MOST_PROPERTIES:
            raise self._error(f"more than {MOST_PROPERTIES} properties")
        if size > self._end - self._offset:
            raise self._error(f"a property of {size} bytes reaches beyond the structure block")
        value = self._content[self._offset : self._offset + size]
        self._offset += size
        self._align()
        return self._string(name_offset), value

    def _string(self, offset: int) -> str:
        if offset not in self._names:
            start, end = self._strings
            if offset >= end - start:
                raise self._error(f"a property's name at {offset:#x} lies outside the strings block")
            self._names[offset] = self._text(start + offset, end).decode("utf-8", "replace")
        return self._names[offset]

    def _text(self, start: int, limit: int) -> bytes:
        end = self._content.find(b"\0", start, min(limit, start + _MOST_NAME_BYTES + 1))
        if end < 0:
            raise self._error(f"a name at {start:#x} has no end within {_MOST_NAME_BYTES} bytes")
        return self._content[start:end]

    def _align(self) -> None:
        self._offset += -self._offset % 4

    def _check_names(self, names: list[str], siblings: list[int]) -> None:
        seen: set[str] = set()
        for index in siblings:
            if names[index] in seen:
                self._add("node-twice", f"two nodes of one parent are called {printable(names[index])}", names[index])
            seen.add(names[index])

    def _add(self, code: str, message: str, where: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(_problem(code, message, printable(where)))

    def _error(self, message: str) -> InputError:
        return InputError(message, subject=_SUBJECT, offset_bytes=self._offset)


def _problem(code: str, message: str, where: str) -> Problem:
    return Problem(code, message, Evidence(where or "/", message), serious=False)
