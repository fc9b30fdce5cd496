"""The EFI probe's source: complete in the build, and its parsers proof against whatever firmware hands them."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from armvm.efi import EfiProgram, read_program
from armvm.execution import ExecutionState
from armvm.version import __version__
from tools.efi_probe import Run, decode

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0x3000_0000
"""Where the end of a file stands in memory."""

TREE = """
/dts-v1/;
/memreserve/ 0x1000 0x1000;
/ {
    #address-cells = <2>;
    #size-cells = <2>;
    bus@8000000 {
        compatible = "simple-bus";
        #address-cells = <1>;
        #size-cells = <1>;
        ranges = <0x0 0x1 0x10000000 0x100000>, <0x200000 0x2 0x0 0x100000>;
        inner {
            #address-cells = <1>;
            #size-cells = <1>;
            ranges;
            interrupt-controller@210000 {
                compatible = "acme,gic", "arm,gic-v3";
                reg = <0x210000 0x10000>, <0x20000 0x20000>;
                its@1 { compatible = "arm,gic-v3-its"; reg = <1 2>; };
            };
        };
    };
    pcie@10000000 {
        compatible = "pci-host-ecam-generic";
        reg = <0x40 0x10000000 0x0 0x1000000>;
        bus-range = <2 9>;
    };
};
"""

Say = Callable[..., list[Run]]

# Each file stands so that its last byte is the last of a page with nothing behind it.
CHILD = """
import ctypes, pathlib, sys
probe, system = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(None)
system.mmap.restype = probe.parse.restype = ctypes.c_size_t
u64, limit, room = ctypes.c_uint64, int(sys.argv[3]), 1 << 20
said = ctypes.create_string_buffer(1 << 20)
for path in map(pathlib.Path, sys.argv[4:]):
    print(path.name, file=sys.stderr, flush=True)
    blob = path.read_bytes()
    size = -(-len(blob) // 4096) * 4096
    system.munmap(u64(limit - room), u64(room))
    assert system.mmap(u64(limit - size), u64(size), 3, 0x32, -1, u64(0)) == limit - size
    ctypes.memmove(limit - len(blob), blob, len(blob))
    count = probe.parse(ord(sys.argv[2][0]), u64(limit - len(blob)), u64(limit), said, u64(len(said)))
    sys.stdout.buffer.write(said.raw[:count])
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Say:
    """Runs the parsers over files, each a run of records; dies with them. (Zig traps undefined behaviour.)"""
    folder = tmp_path_factory.mktemp("host")
    library = folder / "probe.so"
    sources = [ROOT / "tests/tools/efi_probe_host.c"]
    sources += [ROOT / f"efi/probe/{name}.c" for name in ("base", "wire", "fdt", "acpi", "smbios")]
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"), "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}
    argv = [sys.executable, "-m", "ziglang", "cc", "-shared", "-nostdlib", "-fPIC", "-O1", "-std=gnu11"]
    argv += ["-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector"]
    argv += ["-fsanitize=undefined", "-fsanitize-trap=all", f"-I{ROOT}/efi/include", f"-I{ROOT}/efi/probe"]
    argv += [*map(str, sources), "-o", str(library)]
    subprocess.run(argv, check=True, env={**os.environ, **caches}, timeout=300)

    def say(kind: str, *blobs: bytes) -> list[Run]:
        paths = [folder / f"{kind}-{number}" for number in range(len(blobs))]
        for path, blob in zip(paths, blobs, strict=True):
            path.write_bytes(blob)
        argv = [sys.executable, "-c", CHILD, str(library), kind, str(LIMIT), *map(str, paths)]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, f"died of {done.stderr.decode()[-300:]}"
        return decode(done.stdout)

    return say


@pytest.fixture(scope="module")
def tree() -> bytes:
    argv = ["dtc", "-q", "-I", "dts", "-O", "dtb"]
    return subprocess.run(argv, input=TREE.encode(), capture_output=True, check=True, timeout=60).stdout


def damaged(blob: bytes, count: int, *, words: Iterable[int] = ()) -> list[bytes]:
    """Copies with bytes changed, words replaced by extreme values (at ``words`` first of all), or cut off."""
    chance = random.Random(1)
    extremes = [0, 1, 3, 0x7F, 0x80, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF, len(blob)]
    copies = []
    for offset in words:
        for value in extremes:
            for order in ("<I", ">I"):
                copies.append(bytearray(blob))
                struct.pack_into(order, copies[-1], offset, value)
    for _ in range(count):
        copy = bytearray(blob)
        for _ in range(chance.randrange(1, 6)):
            copy[chance.randrange(len(copy))] = chance.choice((0, 1, 2, 3, 4, 9, 0x7F, 0x80, 0xFF))
        copies.append(copy)
    copies += [bytearray(blob[: chance.randrange(1, len(blob))]) for _ in range(count // 4)]
    return [bytes(copy) for copy in copies]


@pytest.mark.parametrize("state", ExecutionState)
def test_the_version_is_built_in(state: ExecutionState) -> None:
    assert f"{__version__}\0".encode() in read_program(EfiProgram.PROBE, state)


def test_every_source_is_in_the_build() -> None:
    recipe = (ROOT / "hatch_build.py").read_text()
    for path in (ROOT / "efi/probe").glob("*.c"):
        assert f'"{path.stem}"' in recipe, path.name


def test_a_sound_tree_is_packed_and_addresses_are_translated(host: Say, tree: bytes) -> None:
    roomy = bytearray(tree + bytes(5000))
    struct.pack_into(">I", roomy, 4, len(roomy))
    for blob in (tree, bytes(roomy)):
        (run,) = host("fdt", blob)
        assert run.one("fdt")["header_ok"]
        assert run.one("fdt")["size"] == len(blob)
        assert run.fdt == tree
        gic, pci = run.all("node")
        assert gic["compatible"] == "arm,gic-v3"
        assert gic["regions"] == ["0x200010000", "0x10000", "0x110020000", "0x20000"]
        assert pci["regions"] == ["0x4010000000", "0x1000000"]
        assert (pci["first_bus"], pci["last_bus"]) == (2, 9)


def test_hostile_trees(host: Say, tree: bytes) -> None:
    structure = struct.unpack_from(">I", tree, 8)[0]
    blobs = damaged(tree, 400, words=[*range(0, 40, 4), *range(structure, structure + 120, 4)])
    runs = host("fdt", *blobs)
    assert len(runs) == len(blobs)
    assert any(not run.one("fdt")["header_ok"] for run in runs)
    assert all(not run.all("fdt-data") for run in runs if not run.one("fdt")["header_ok"])


def test_a_tree_too_deep_is_given_up(host: Say) -> None:
    source = "/dts-v1/; / {" + "n {" * 40 + 'compatible = "arm,gic-v3"; reg = <1 2>;' + "};" * 41
    argv = ["dtc", "-q", "-I", "dts", "-O", "dtb"]
    deep = subprocess.run(argv, input=source.encode(), capture_output=True, check=True, timeout=60).stdout
    (run,) = host("fdt", deep)
    assert run.one("fdt")["header_ok"]
    assert not run.all("node")


def acpi_tables(*, cyclic: bool = False) -> bytes:
    """RSDP, XSDT, FADT, DSDT and MADT in one piece; ``cyclic``: the FADT names itself as DSDT."""
    sizes = {"RSDP": 36, "XSDT": 52, "FACP": 148, "DSDT": 40, "APIC": 60}
    at = dict(zip(sizes, [LIMIT - sum(list(sizes.values())[i:]) for i in range(len(sizes))], strict=True))

    def table(name: str, body: bytes) -> bytes:
        head = struct.pack("<4sIBB6s8sIII", name.encode(), sizes[name], 2, 0, b"ARMVM ", b"TEST", 1, 0, 1)
        content = bytearray(head + body)
        assert len(content) == sizes[name]
        content[9] = -sum(content) & 0xFF
        return bytes(content)

    fadt = bytearray(sizes["FACP"] - 36)
    struct.pack_into("<Q", fadt, 140 - 36, at["FACP" if cyclic else "DSDT"])
    rsdp = struct.pack("<8sB6sBIIQ4x", b"RSD PTR ", 0, b"ARMVM ", 2, 0, 36, at["XSDT"])
    madt = struct.pack("<II", 0, 0) + struct.pack("<BBHIQIB3x", 12, 24, 0, 0, 0x8000000, 0, 3)[:16]
    return b"".join(
        [
            rsdp,
            table("XSDT", struct.pack("<QQ", at["FACP"], at["APIC"])),
            table("FACP", bytes(fadt)),
            table("DSDT", bytes(4)),
            table("APIC", madt),
        ]
    )


def test_acpi_tables(host: Say) -> None:
    (run,) = host("acpi", acpi_tables())
    acpi = run.one("acpi")
    assert [table["signature"] for table in acpi["tables"]] == ["FACP", "DSDT", "APIC"]
    assert all(table["checksum_ok"] for table in acpi["tables"])
    assert [table["length"] for table in acpi["tables"]] == [148, 40, 60]
    broken = bytearray(acpi_tables())
    broken[-1] ^= 1
    (run,) = host("acpi", bytes(broken))
    assert [table["checksum_ok"] for table in run.one("acpi")["tables"]] == [True, True, False]


def test_hostile_acpi_tables(host: Say) -> None:
    good = acpi_tables()
    blobs = damaged(good, 300, words=[16, 24, 28, 40, 36 + 36, 36 + 40, 36 + 52 + 4, 36 + 52 + 140])
    blobs.append(acpi_tables(cyclic=True))
    runs = host("acpi", *blobs)
    assert len(runs) == len(blobs)
    assert [table["signature"] for table in runs[-1].one("acpi")["tables"]].count("FACP") == 2, "not followed for ever"


def smbios_tables() -> bytes:
    bios = struct.pack("<BBHBB", 0, 18, 0, 1, 2) + bytes(12) + b"Maker\0v1.2\0\0"
    other = struct.pack("<BBH", 3, 4, 1) + b"\0\0"
    system = struct.pack("<BBHBBB", 1, 8, 2, 1, 2, 0) + b"\0" + b"Company\0A \x22thing\x22\0\0"
    end = struct.pack("<BBH", 127, 4, 3) + b"\0\0"
    structures = bios + other + system + end
    entry = struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, 24, 3, 6, 0, 1, 0, len(structures), LIMIT - len(structures))
    return entry + structures


def test_smbios(host: Say) -> None:
    (run,) = host("smbios", smbios_tables())
    assert run.one("smbios")["version"] == "3.6"
    assert run.one("smbios")["strings"] == {
        "bios_vendor": "Maker",
        "bios_version": "v1.2",
        "manufacturer": "Company",
        "product": 'A "thing"',
    }


def test_hostile_smbios(host: Say) -> None:
    blobs = damaged(smbios_tables(), 400, words=[4, 8, 12, 16, 24, 28, 32])
    assert len(host("smbios", *blobs)) == len(blobs)
