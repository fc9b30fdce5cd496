"""Our reading of device trees, judged by dtc: trees of QEMU's machines, and handmade ones that dtc compiled."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from armvm.platform.bindings import check_bindings, cpu_nodes, described_memory
from armvm.platform.fdt import DeviceTree, Node, parse_fdt
from tools import device_trees

MACHINES = {
    "gicv2": ("qemu-system-aarch64", "virt,gic-version=2,acpi=off", "cortex-a72", 1),
    "gicv3": ("qemu-system-aarch64", "virt,gic-version=3,acpi=off", "cortex-a72", 8),
    "secure": ("qemu-system-aarch64", "virt,secure=on,virtualization=on", "cortex-a57", 2),
    "a15": ("qemu-system-arm", "virt", "cortex-a15", 2),
}
HANDMADE = """
/dts-v1/;
/memreserve/ 0x10000000 0x4000;
/ {
    #address-cells = <2>; #size-cells = <1>; compatible = "a,b", "c"; model = "hand \\"made\\"";
    text = ""; binary = [00 ff 80 0a]; big = /bits/ 64 <0x123456789abcdef0>;
    aliases { serial = &uart; };
    empty { };
    soc { #address-cells = <1>; #size-cells = <1>; ranges = <0x0 0x1 0x0 0x1000000>;
        uart: uart@1000 { reg = <0x1000 0x100 0x2000 0x200>; interrupts-extended = <&pic 1 2>; };
        pic: pic@2000 { reg = <0x2000 0x10>; interrupt-controller; #interrupt-cells = <2>; };
    };
};
"""


def dumped(name: str, folder: Path) -> bytes:
    program, machine, cpu, cpus = MACHINES[name]
    path = folder / f"{name}.dtb"
    argv = [program, "-nodefaults", "-display", "none", "-M", f"{machine},dumpdtb={path}", "-cpu", cpu]
    subprocess.run([*argv, "-smp", str(cpus), "-m", "1536"], check=True, capture_output=True, timeout=60)
    return path.read_bytes()


def dtc(data: bytes, *, source: str, result: str) -> bytes:
    argv = ["dtc", "-q", "-I", source, "-O", result, "-o", "-", "-"]
    return subprocess.run(argv, input=data, check=True, capture_output=True, timeout=60).stdout


def as_source(tree: DeviceTree) -> bytes:
    """The tree as dts with every value in bytes: what dtc compiles again must be what it was."""

    def node(here: Node) -> str:
        inner = "".join(
            f"{name} = [{value.hex()}];\n" if value else f"{name};\n" for name, value in here.properties.items()
        )
        inner += "".join(node(child) for child in tree.children(here))
        return f"{here.name or '/'} {{\n{inner}}};\n"

    reserved = "".join(f"/memreserve/ {entry.address:#x} {entry.size_bytes:#x};\n" for entry in tree.reservations)
    return f"/dts-v1/;\n{reserved}{node(tree.root)}".encode()


def same_for_dtc(data: bytes) -> DeviceTree:
    tree = parse_fdt(data)
    again = dtc(as_source(tree), source="dts", result="dtb")
    ours, theirs = (plain(dtc(blob, source="dtb", result="dts")) for blob in (again, data))
    assert ours == theirs
    assert len(ours) > 100
    return tree


def plain(source: bytes) -> str:
    return re.sub(r"\s+", " ", source.decode())


@pytest.mark.parametrize("name", MACHINES)
def test_qemu_trees_are_read_as_dtc_reads_them(name: str, tmp_path: Path) -> None:
    tree = same_for_dtc(dumped(name, tmp_path))
    assert len(cpu_nodes(tree)) == MACHINES[name][3]
    assert described_memory(tree).size_bytes >= 1536 << 20
    # QEMU leaves PSCI on a machine with a secure world to the firmware there, which would describe it.
    expected = ["no-psci"] if name == "secure" else []
    assert [problem.code for problem in check_bindings(tree) if problem.serious] == expected


def test_a_handmade_tree(tmp_path: Path) -> None:
    data = dtc(HANDMADE.encode(), source="dts", result="dtb")
    tree = same_for_dtc(data)
    assert [(entry.address, entry.size_bytes) for entry in tree.reservations] == [(0x10000000, 0x4000)]
    uart = tree.find("serial")
    assert uart is not None
    path = tmp_path / "handmade.dtb"
    path.write_bytes(data)
    for name, value in (("reg", uart.cells("reg")), ("interrupts-extended", uart.cells("interrupts-extended"))):
        argv = ["fdtget", "-t", "x", str(path), tree.path(uart), name]
        said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
        assert value == tuple(int(cell, 16) for cell in said.split())


def test_our_own_fixtures_are_trees_for_dtc() -> None:
    for gic in (2, 3):
        same_for_dtc(device_trees.flatten(device_trees.virt(gic=gic), reservations=((0x1000, 0x1000),)))
