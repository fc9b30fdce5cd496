"""Flattened device trees, written from the Devicetree Specification v0.4 §5 with nothing of ``armvm``, and lying ones.

``virt`` is the tree of a virtual machine much like QEMU's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

MAGIC = 0xD00DFEED
Value = bytes | str | int | tuple[int | str, ...] | None

CLOCK, GIC = 0x8000, 0x8001
MEMORY = 0x40000000


@dataclass
class Node:
    """A node to be written: its properties (None: empty; numbers are cells) and its children by name."""

    properties: dict[str, Value] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    def at(self, path: str) -> Node:
        node = self
        for name in path.strip("/").split("/"):
            node = node.children[name]
        return node

    def remove(self, path: str) -> None:
        parent, _, name = path.strip("/").rpartition("/")
        del (self.at(parent) if parent else self).children[name]


def raw(value: Value) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    entries = value if isinstance(value, tuple) else (value,)
    return b"".join(e.encode() + b"\0" if isinstance(e, str) else struct.pack(">I", e) for e in entries)


def flatten(
    root: Node,
    *,
    version: int = 17,
    boot_cpu: int = 0,
    reservations: tuple[tuple[int, int], ...] = (),
    padding: int = 0,
) -> bytes:
    """The tree as a blob, its blocks in the usual order."""
    strings = bytearray()
    places: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in places:
            places[name] = len(strings)
            strings.extend(name.encode() + b"\0")
        return places[name]

    def write(name: str, node: Node) -> bytes:
        out = struct.pack(">I", 1) + padded(name.encode() + b"\0")
        for key, value in node.properties.items():
            data = raw(value)
            out += struct.pack(">III", 3, len(data), place(key)) + padded(data)
        return out + b"".join(write(*child) for child in node.children.items()) + struct.pack(">I", 2)

    structure = write("", root) + struct.pack(">I", 9)
    reserved = b"".join(struct.pack(">QQ", *entry) for entry in (*reservations, (0, 0)))
    return blob(structure, bytes(strings), reserved, version=version, boot_cpu=boot_cpu) + bytes(padding)


def blob(
    structure: bytes,
    strings: bytes,
    reserved: bytes = bytes(16),
    *,
    version: int = 17,
    boot_cpu: int = 0,
    **lies: int,
) -> bytes:
    """A blob of these blocks; ``lies`` overrule fields of the header by their names in the specification."""
    at_reserved = 40
    at_structure = at_reserved + len(reserved)
    at_strings = at_structure + len(structure)
    fields = {
        "magic": MAGIC,
        "totalsize": at_strings + len(strings),
        "off_dt_struct": at_structure,
        "off_dt_strings": at_strings,
        "off_mem_rsvmap": at_reserved,
        "version": version,
        "last_comp_version": 16,
        "boot_cpuid_phys": boot_cpu,
        "size_dt_strings": len(strings),
        "size_dt_struct": len(structure),
    }
    return struct.pack(">10I", *(fields | lies).values()) + reserved + structure + strings


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def virt(*, cpus: int = 2, memory: int = 1 << 30, gic: int = 3) -> Node:
    """A machine with pl011, PCIe, and GICv2 or v3, as its firmware hands it on: the RTC is the firmware's own."""
    interrupts = {
        f"cpu@{number}": Node(
            {"device_type": "cpu", "compatible": "arm,cortex-a72", "reg": number, "enable-method": "psci"}
        )
        for number in range(cpus)
    }
    controller: dict[str, Value] = {
        "phandle": GIC,
        "compatible": "arm,gic-v3" if gic == 3 else "arm,cortex-a15-gic",
        "interrupt-controller": None,
        "#interrupt-cells": 3,
        "#address-cells": 2,
        "#size-cells": 2,
        "ranges": None,
        "reg": (0, 0x8000000, 0, 0x10000, 0, 0x80A0000, 0, 0xF60000)
        if gic == 3
        else (0, 0x8000000, 0, 0x10000, 0, 0x8010000, 0, 0x10000),
    }
    return Node(
        {
            "interrupt-parent": GIC,
            "model": "virtual",
            "compatible": "linux,dummy-virt",
            "#address-cells": 2,
            "#size-cells": 2,
        },
        {
            "psci": Node({"compatible": ("arm,psci-1.0", "arm,psci-0.2", "arm,psci"), "method": "hvc"}),
            "memory@40000000": Node({"device_type": "memory", "reg": (0, MEMORY, memory >> 32, memory & 0xFFFFFFFF)}),
            "pcie@10000000": _pcie(),
            "virtio_mmio@a000000": Node(
                {"compatible": "virtio,mmio", "reg": (0, 0xA000000, 0, 0x200), "interrupts": (0, 16, 1)}
            ),
            "pl031@9010000": Node(
                {
                    "compatible": ("arm,pl031", "arm,primecell"),
                    "reg": (0, 0x9010000, 0, 0x1000),
                    "interrupts": (0, 2, 4),
                    "clocks": CLOCK,
                    "status": "disabled",
                }
            ),
            "pl011@9000000": Node(
                {
                    "compatible": ("arm,pl011", "arm,primecell"),
                    "reg": (0, 0x9000000, 0, 0x1000),
                    "interrupts": (0, 1, 4),
                    "clocks": (CLOCK, CLOCK),
                    "clock-names": ("uartclk", "apb_pclk"),
                }
            ),
            "intc@8000000": Node(controller),
            "cpus": Node({"#address-cells": 1, "#size-cells": 0}, interrupts),
            "timer": Node(
                {
                    "compatible": ("arm,armv8-timer", "arm,armv7-timer"),
                    "interrupts": (1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4),
                }
            ),
            "apb-pclk": Node(
                {"phandle": CLOCK, "compatible": "fixed-clock", "#clock-cells": 0, "clock-frequency": 24000000}
            ),
            "aliases": Node({"serial0": "/pl011@9000000"}),
            "chosen": Node({"stdout-path": "serial0:115200n8"}),
        },
    )


def _pcie() -> Node:
    return Node(
        {
            "compatible": "pci-host-ecam-generic",
            "device_type": "pci",
            "#address-cells": 3,
            "#size-cells": 2,
            "#interrupt-cells": 1,
            "linux,pci-domain": 0,
            "bus-range": (0, 255),
            "reg": (0x40, 0x10000000, 0, 0x10000000),
            "ranges": (
                *(0x1000000, 0, 0, 0, 0x3EFF0000, 0, 0x10000),
                *(0x2000000, 0, 0x10000000, 0, 0x10000000, 0, 0x2EFF0000),
                *(0x3000000, 0x80, 0, 0x80, 0, 0x80, 0),
            ),
            "interrupt-map-mask": (0x1800, 0, 0, 7),
            "interrupt-map": (
                *(0, 0, 0, 1, GIC, 0, 0, 0, 3, 4),
                *(0x800, 0, 0, 1, GIC, 0, 0, 0, 4, 4),
            ),
        }
    )
