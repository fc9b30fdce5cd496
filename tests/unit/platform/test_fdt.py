"""Device trees are read as the specification says, and what lies is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from armvm.errors import InputError
from armvm.platform import fdt
from armvm.platform.bindings import check_bindings, cpu_nodes, described_memory, stdout_node
from armvm.platform.fdt import DeviceTree, parse_fdt
from armvm.platform.fdt_values import Region, interrupt_map, interrupts, reg, regions, windows
from tools.device_trees import GIC, Node, blob, flatten, padded, virt

BEGIN, END_NODE, PROPERTY, NOP, END = (struct.pack(">I", token) for token in (1, 2, 3, 4, 9))
EMPTY_ROOT = BEGIN + bytes(4) + END_NODE + END


def tree_of(**children: Node) -> DeviceTree:
    return parse_fdt(flatten(Node({"#address-cells": 1, "#size-cells": 1}, children)))


def test_a_tree() -> None:
    tree = parse_fdt(flatten(virt(), boot_cpu=1, reservations=((0x1000, 0x2000), (0, 1))))
    assert tree.version == 17
    assert tree.boot_cpu == 1
    assert [(entry.address, entry.size_bytes) for entry in tree.reservations] == [(0x1000, 0x2000), (0, 1)]
    assert tree.root.string("model") == "virtual"
    assert tree.root.cell("#size-cells") == 2
    uart = tree.find("/pl011@9000000")
    assert uart is not None
    assert uart.compatible == ("arm,pl011", "arm,primecell")
    assert tree.path(uart) == "/pl011@9000000"
    assert tree.path(tree.root) == "/"
    assert tree.find("/pl011") is uart
    assert tree.find("serial0") is uart
    assert tree.find("/cpus/cpu") is None  # two of them
    assert [tree.path(node) for node in cpu_nodes(tree)] == ["/cpus/cpu@0", "/cpus/cpu@1"]
    assert described_memory(tree).regions == [Region(0x40000000, 1 << 30)]
    assert stdout_node(tree) == ("serial0:115200n8", uart)
    assert not tree.problems
    assert not check_bindings(tree)


def test_padding_may_be_left_out_or_there() -> None:
    data = flatten(virt())
    generous = struct.pack(">II", 0xD00DFEED, 1 << 20) + data[8:]
    assert len(parse_fdt(generous).nodes) == len(parse_fdt(generous + bytes(1000)).nodes)


def test_version_16_has_no_size_of_its_structure() -> None:
    tree = parse_fdt(flatten(virt(), version=16))
    assert tree.version == 16
    assert tree.find("/chosen") is not None


def test_nops_are_passed_over() -> None:
    structure = NOP + BEGIN + bytes(4) + NOP + PROPERTY + struct.pack(">II", 0, 0) + NOP + END_NODE + NOP + END
    assert parse_fdt(blob(structure, b"empty\0")).root.properties == {"empty": b""}


def test_values() -> None:
    node = parse_fdt(
        flatten(
            Node({"cells": (1, 2), "odd": b"abc", "text": "hello", "list": ("a", "", "b"), "open": b"x", "none": None})
        )
    ).root
    assert node.cells("cells") == (1, 2)
    assert node.cell("cells") is None
    assert node.cells("odd") is None
    assert node.cells("none") == ()
    assert node.string("text") == "hello"
    assert node.strings("list") == ("a", "", "b")
    assert node.string("list") is None
    assert node.strings("open") is None
    assert node.strings("none") is None
    assert node.strings("missing") is None


def test_duplicates_are_kept_and_said() -> None:
    child = BEGIN + padded(b"a@1\0") + END_NODE
    name_twice = PROPERTY + struct.pack(">II", 4, 0) + struct.pack(">I", 1)
    structure = BEGIN + bytes(4) + name_twice + name_twice + child + child + name_twice + END_NODE + END
    tree = parse_fdt(blob(structure, b"p\0"))
    assert len(tree.nodes) == 3
    assert tree.root.cells("p") == (1,)
    assert {problem.code for problem in tree.problems} == {"node-twice", "property-twice", "property-late"}
    twice = parse_fdt(flatten(Node({}, {"a": Node({"phandle": 5}), "b": Node({"linux,phandle": 5})})))
    found = twice.by_phandle(5)
    assert found is not None
    assert found.name == "a"
    assert [problem.code for problem in twice.problems] == ["phandle-twice"]


def test_addresses_through_buses() -> None:
    device = Node({"reg": (0x100, 0x10)})
    bus = Node({"#address-cells": 1, "#size-cells": 1, "ranges": (0, 0x8000, 0x1000)}, {"device": device})
    same = Node({"#address-cells": 1, "#size-cells": 1, "ranges": None}, {"bus": bus})
    closed = Node({"#address-cells": 1, "#size-cells": 1}, {"device": device})
    outside = Node({"#address-cells": 1, "#size-cells": 1, "ranges": (0, 0x8000, 0x80)}, {"device": device})
    tree = tree_of(same=same, closed=closed, outside=outside)

    def at(path: str) -> tuple[Region, ...]:
        node = tree.find(path)
        assert node is not None
        assert reg(tree, node) == (Region(0x100, 0x10),)
        return regions(tree, node)

    assert at("/same/bus/device") == (Region(0x8100, 0x10),)
    assert at("/closed/device") == ()
    assert at("/outside/device") == ()


def test_pci_windows_and_interrupts() -> None:
    tree = parse_fdt(flatten(virt()))
    host = tree.find("/pcie")
    assert host is not None
    through = windows(tree, host)
    assert through is not None
    assert [(w.flags, w.child_address, w.parent_address, w.size_bytes) for w in through] == [
        (0x1000000, 0, 0x3EFF0000, 0x10000),
        (0x2000000, 0x10000000, 0x10000000, 0x2EFF0000),
        (0x3000000, 0x8000000000, 0x8000000000, 0x8000000000),
    ]
    routes = interrupt_map(tree, host)
    assert [(route.unit, route.specifier, route.target.specifier) for route in routes] == [
        ((0, 0, 0), (1,), (0, 3, 4)),
        ((0x800, 0, 0), (1,), (0, 4, 4)),
    ]
    assert {route.target.controller.name for route in routes} == {"intc@8000000"}


def test_interrupts() -> None:
    gic = Node({"phandle": GIC, "#interrupt-cells": 3, "interrupt-controller": None})
    other = Node({"phandle": 7, "#interrupt-cells": 1, "interrupt-controller": None})
    plain = Node({"interrupts": (0, 1, 4, 0, 2, 4)})
    own = Node({"interrupts": (9,), "interrupt-parent": 7})
    extended = Node({"interrupts-extended": (GIC, 0, 1, 4, 7, 3)})
    tree = parse_fdt(
        flatten(Node({"interrupt-parent": GIC}, {"gic": gic, "other": other, "a": plain, "b": own, "c": extended}))
    )

    def of(path: str) -> list[tuple[str, tuple[int, ...]]]:
        node = tree.find(path)
        assert node is not None
        return [(interrupt.controller.name, interrupt.specifier) for interrupt in interrupts(tree, node)]

    assert of("/a") == [("gic", (0, 1, 4)), ("gic", (0, 2, 4))]
    assert of("/b") == [("other", (9,))]
    assert of("/c") == [("gic", (0, 1, 4)), ("other", (3,))]
    assert of("/gic") == []


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"reg": (1, 2, 3)}, "3 cells are not entries of 2"),
        ({"reg": b"abc"}, "does not consist of cells"),
        ({"interrupts": (1,), "interrupt-parent": 0x99}, "no node has the phandle 0x99"),
        ({"interrupts": (1,)}, "no interrupt-parent"),
        ({"interrupts-extended": (0x99,)}, "no node has the phandle 0x99"),
        ({"interrupts-extended": (5, 1)}, "it is None"),
        ({"interrupt-map": (0,) * 20, "#interrupt-cells": 1}, "leads nowhere"),
        ({"interrupt-map": (0,) * 20, "#interrupt-cells": 0xFFFFFFFF}, "#interrupt-cells"),
        ({"interrupt-map": (0,) * 20, "#interrupt-cells": 1, "#address-cells": 0xFFFFFFFF}, "#address-cells"),
    ],
)
def test_malformed_properties(properties: dict[str, Any], words: str) -> None:
    tree = tree_of(device=Node(properties), other=Node({"phandle": 5}))
    node = tree.find("/device")
    assert node is not None
    with pytest.raises(InputError) as caught:
        reg(tree, node)
        interrupts(tree, node)
        interrupt_map(tree, node)
    assert words in str(caught.value)
    assert str(caught.value).startswith(("/device, ", "/other, "))
    assert any(problem.code == "malformed" for problem in check_bindings(tree))


def _nested(depth: int) -> bytes:
    return (BEGIN + padded(b"n\0")) * depth + END_NODE * depth + END


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "too short"),
        (bytes(40), "no magic number"),
        (blob(EMPTY_ROOT, b"", version=2, last_comp_version=2), "version"),
        (blob(EMPTY_ROOT, b"", last_comp_version=99), "version"),
        (blob(EMPTY_ROOT, b"", totalsize=0x40000000), "larger than"),
        (blob(EMPTY_ROOT, b"", totalsize=41), "lies outside"),
        (blob(EMPTY_ROOT, b"", off_dt_struct=0xFFFFFFF0), "lies outside"),
        (blob(EMPTY_ROOT, b"", off_dt_struct=4), "lies outside"),
        (blob(EMPTY_ROOT, b"", size_dt_struct=0xFFFFFFFF), "lies outside"),
        (blob(EMPTY_ROOT, b"", off_dt_strings=0x1000, totalsize=0x900), "lies outside"),
        (blob(EMPTY_ROOT, b"", off_mem_rsvmap=0x1000, totalsize=0x2000), "cut off"),
        (blob(EMPTY_ROOT, b"")[:-1], "cut off"),
        (blob(b"", b""), "ends without its end token"),
        (blob(END, b""), "no root node"),
        (blob(END_NODE + END, b""), "outside of the root"),
        (blob(BEGIN + bytes(4) + END, b""), "inside a node"),
        (blob(EMPTY_ROOT[:-4] + EMPTY_ROOT, b""), "a second root"),
        (blob(BEGIN + b"no end", b""), "has no end"),
        (blob(BEGIN + b"n" * 300 + bytes(4), b""), "has no end"),
        (blob(struct.pack(">I", 7), b""), "unknown token 0x7"),
        (blob(BEGIN + bytes(4) + PROPERTY + struct.pack(">II", 0xFFFFFFFF, 0), b"p\0"), "reaches beyond"),
        (blob(BEGIN + bytes(4) + PROPERTY + struct.pack(">II", 0, 99), b"p\0"), "outside the strings"),
        (blob(BEGIN + bytes(4) + PROPERTY + struct.pack(">II", 0, 0), b"ppp"), "has no end"),
        (blob(_nested(65), b""), "nested deeper"),
        (blob(_nested(100_000), b""), "nested deeper"),
        (blob(BEGIN + bytes(4) + (BEGIN + bytes(4) + END_NODE) * 17_000, b""), "more than 16384 nodes"),
        (
            blob(BEGIN + bytes(4) + (PROPERTY + struct.pack(">II", 0, 0)) * 66_000, b"p\0"),
            "more than 65536 properties",
        ),
    ],
)
def test_lies_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_fdt(data)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_deepest_tree() -> None:
    assert len(parse_fdt(blob(_nested(fdt.MOST_DEPTH), b"")).nodes) == fdt.MOST_DEPTH


def test_reservations_without_an_end() -> None:
    data = blob(EMPTY_ROOT, b"", b"\1" * 32)
    tree = parse_fdt(data)
    assert [problem.code for problem in tree.problems] == ["reservations-end"]


def test_status() -> None:
    tree = tree_of(a=Node({}), b=Node({"status": "okay"}), c=Node({"status": "disabled"}), d=Node({"status": b""}))
    assert [tree.nodes[index].enabled for index in tree.root.children] == [True, True, False, False]
