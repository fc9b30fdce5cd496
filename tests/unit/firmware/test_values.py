from __future__ import annotations

import struct
from uuid import UUID

import pytest

from armvm.errors import InputError
from armvm.firmware.device_path import format_device_path
from armvm.firmware.values import describe, format_time, parse_load_option
from armvm.firmware.variable_names import IMAGE_SECURITY_DATABASE
from armvm.firmware.variables import Variable
from armvm.guid import EFI_GLOBAL_VARIABLE
from tools.varstores import OWN_VENDOR

END = bytes.fromhex("7fff0400")
NEXT_INSTANCE = bytes.fromhex("7f010400")
PCI_ROOT = bytes.fromhex("02010c00 d041030a 00000000")
X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")


def node(kind: int, subtype: int, data: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, len(data) + 4) + data


def file_node(path: str) -> bytes:
    return node(4, 4, path.encode("utf-16-le") + b"\0\0")


def option(description: str, path: bytes, data: bytes = b"", attributes: int = 1) -> bytes:
    return struct.pack("<IH", attributes, len(path)) + description.encode("utf-16-le") + b"\0\0" + path + data


def words(name: str, data: bytes, vendor: UUID = EFI_GLOBAL_VARIABLE) -> str:
    return describe(Variable(name, vendor, data))


def signature_list(kind: UUID, count: int, size: int = 48) -> bytes:
    return kind.bytes_le + struct.pack("<III", 28 + count * size, 0, size) + bytes(count * size)


class TestDevicePaths:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (PCI_ROOT + bytes.fromhex("01010600 0203"), "PciRoot(0x0)/Pci(0x3,0x2)"),
            (bytes.fromhex("02010c00 d041080a 01000000"), "PcieRoot(0x1)"),
            (bytes.fromhex("02010c00 d0410105 00000000"), "Acpi(PNP0501,0x0)"),
            (bytes.fromhex("02010c00 11223344 00000000"), "Acpi(0x44332211,0x0)"),
            (
                node(4, 1, struct.pack("<IQQ16sBB", 1, 2048, 4096, UUID(int=7).bytes_le, 2, 2))
                + file_node(r"\EFI\BOOT\BOOTAA64.EFI"),
                r"HD(1,GPT,00000000-0000-0000-0000-000000000007,0x800,0x1000)/\EFI\BOOT\BOOTAA64.EFI",
            ),
            (
                node(4, 1, struct.pack("<IQQ16sBB", 2, 1, 2, b"\x78\x56\x34\x12" + bytes(12), 1, 1)),
                "HD(2,MBR,0x12345678,0x1,0x2)",
            ),
            (
                node(1, 4, UUID("837dca9e-e874-4d82-b29a-23fe0e23d1e2").bytes_le + struct.pack("<Q", 0xA003E00)),
                "VirtioMmio(0xa003e00)",
            ),
            (node(1, 4, UUID(int=5).bytes_le), "VenHw(00000000-0000-0000-0000-000000000005)"),
            (node(3, 10, UUID(int=5).bytes_le + b"ab"), "VenMsg(00000000-0000-0000-0000-000000000005,6162)"),
            (node(3, 11, bytes.fromhex("525400123456") + bytes(26) + b"\x01"), "MAC(525400123456,0x1)"),
            (
                node(3, 12, bytes([10, 0, 2, 15, 10, 0, 2, 2]) + struct.pack("<HHHB", 0, 0, 17, 0) + bytes(8)),
                "IPv4(10.0.2.2,UDP,DHCP,10.0.2.15)",
            ),
            (
                node(3, 13, UUID(int=1).bytes + UUID(int=2).bytes + struct.pack("<HHHB", 0, 0, 6, 2) + bytes(17)),
                "IPv6(::2,TCP,StatefulAutoConfigure,::1)",
            ),
            (node(3, 14, struct.pack("<IQBBB", 0, 115200, 8, 1, 1)), "Uart(115200,8,N,1)"),
            (node(3, 5, b"\x01\x02"), "USB(0x1,0x2)"),
            (node(3, 23, struct.pack("<I", 1) + bytes(range(8))), "NVMe(0x1,07-06-05-04-03-02-01-00)"),
            (node(3, 2, struct.pack("<HH", 0, 1)), "Scsi(0x0,0x1)"),
            (node(3, 24, b"http://x/\x1b[2J"), r"Uri(http://x/\x1b[2J)"),
            (node(1, 3, struct.pack("<IQQ", 11, 0x1000, 0x1FFF)), "MemoryMapped(0xb,0x1000,0x1fff)"),
            (node(4, 7, UUID(int=1).bytes_le), "Fv(00000000-0000-0000-0000-000000000001)"),
            (node(9, 9, b"\x01\x02"), "Path(9,9,0102)"),
            (node(9, 9, bytes(100)), f"Path(9,9,{'00' * 24}...)"),
            (b"", ""),
        ],
    )
    def test_nodes(self, raw: bytes, expected: str) -> None:
        assert format_device_path(raw + END) == expected

    def test_several_instances(self) -> None:
        assert format_device_path(PCI_ROOT + NEXT_INSTANCE + file_node("b") + END) == "PciRoot(0x0), b"

    @pytest.mark.parametrize(
        "raw",
        [b"", PCI_ROOT, PCI_ROOT[:-1], PCI_ROOT + b"\x01", bytes.fromhex("02010300"), bytes.fromhex("0201ffff00")],
    )
    def test_what_has_no_end(self, raw: bytes) -> None:
        assert format_device_path(raw).endswith("...")

    @pytest.mark.parametrize("kind", range(6))
    @pytest.mark.parametrize("subtype", range(33))
    def test_nodes_that_are_too_short(self, kind: int, subtype: int) -> None:
        for size in range(4):
            text = format_device_path(node(kind, subtype, b"\xff" * size) + END)
            assert text.isprintable()

    def test_endless_paths_are_cut(self) -> None:
        assert len(format_device_path(node(1, 1, b"\0\0") * 10_000)) < 2000


class TestLoadOptions:
    def test_parts(self) -> None:
        parsed = parse_load_option(option("Debian", PCI_ROOT + END, b"\x01\x02", attributes=9))
        assert (parsed.description, parsed.device_path, parsed.optional_data) == ("Debian", PCI_ROOT + END, b"\x01\x02")
        assert (parsed.active, parsed.hidden) == (True, True)

    def test_in_words(self) -> None:
        path = PCI_ROOT + file_node(r"\a.efi") + END
        assert words("Boot0001", option("Debian", path)) == r"Debian: PciRoot(0x0)/\a.efi"
        assert words("Boot00AF", option("x", END, b"\xab", attributes=8)) == "x:  (inactive, hidden, data ab)"
        assert words("Boot0001", option("a\x1b[2Jb\u202e", END)) == r"a\x1b[2Jb\u202e: "

    @pytest.mark.parametrize("cut", [0, 5, 6, 7, 12, 19, 30])
    def test_truncated(self, cut: int) -> None:
        data = option("Debian", PCI_ROOT + END)[:cut]
        with pytest.raises(InputError):
            parse_load_option(data)
        assert words("Boot0001", data).startswith(data[:24].hex())

    def test_not_a_load_option(self) -> None:
        for name in ("Boot001", "Boot0001x", "BootOrder1", "boot0001"):
            assert words(name, option("x", END)).endswith("bytes)")
        assert describe(Variable("Boot0001", OWN_VENDOR, option("x", END))).endswith("bytes)")


class TestWords:
    @pytest.mark.parametrize(
        ("name", "data", "expected"),
        [
            ("Timeout", b"\x05\0", "5 s"),
            ("Timeout", b"\xff\xff", "waits for a key"),
            ("Timeout", b"\x05", "05 (1 byte)"),
            ("BootOrder", b"\x01\0\xff\0", "0001, 00FF"),
            ("BootOrder", b"\x01\0\xff", "0100ff (3 bytes)"),
            ("BootNext", b"\x0a\0", "000A"),
            ("BootCurrent", b"\x0a\0", "000A"),
            ("PlatformLang", b"en\0", "en"),
            ("PlatformLang", b"e\x1bn\0", r"e\x1bn"),
            ("PlatformLang", b"\xff\xfe", "fffe (2 bytes)"),
            ("SecureBoot", b"\1", "on"),
            ("SetupMode", b"\0", "off"),
            ("SetupMode", b"\7", "7"),
            ("OsIndications", struct.pack("<Q", 1), "boot to firmware settings"),
            ("OsIndications", struct.pack("<Q", 0), "none"),
            ("OsIndications", struct.pack("<Q", 1 << 63 | 4), "file capsule delivery, 0x8000000000000000"),
            ("ConOut", PCI_ROOT + END, "PciRoot(0x0)"),
            ("PK", signature_list(X509, 1), "X.509 certificates: 1"),
            ("KEK", signature_list(X509, 2), "X.509 certificates: 2"),
            ("PK", b"", "empty"),
            ("Unheard", b"\1\2", "0102 (2 bytes)"),
        ],
    )
    def test_of_uefi(self, name: str, data: bytes, expected: str) -> None:
        assert words(name, data) == expected

    def test_signature_databases(self) -> None:
        data = signature_list(SHA256, 2) + signature_list(X509, 1, 1000) + signature_list(SHA256, 1)
        assert words("dbx", data, IMAGE_SECURITY_DATABASE) == "SHA-256 hashes: 3, X.509 certificates: 1"
        assert "of type" in words("db", signature_list(UUID(int=3), 1), IMAGE_SECURITY_DATABASE)

    @pytest.mark.parametrize(
        "data",
        [
            signature_list(X509, 1)[:-1],
            X509.bytes_le,
            X509.bytes_le + struct.pack("<III", 0, 0, 48),
            X509.bytes_le + struct.pack("<III", 28, 0, 0),
            X509.bytes_le + struct.pack("<III", 28, 0xFFFFFFFF, 48),
            X509.bytes_le + struct.pack("<III", 0xFFFFFFFF, 0, 48),
        ],
    )
    def test_broken_signature_databases(self, data: bytes) -> None:
        assert words("db", data, IMAGE_SECURITY_DATABASE).endswith("bytes)")

    def test_bounded(self) -> None:
        for name in ("BootOrder", "Boot0001", "ConIn", "PlatformLang", "PK", "Unheard"):
            for data in (b"a" * 100_000, bytes(100_000), option("x" * 30_000, END)):
                text = words(name, data)
                assert len(text) < 500
                assert text.isprintable()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (struct.pack("<HBBBBBBIhBB", 2024, 5, 1, 12, 30, 59, 0, 0, 0, 0, 0), "2024-05-01 12:30:59"),
        (bytes(16), None),
        (b"\xff" * 16, None),
    ],
)
def test_times(raw: bytes, expected: str | None) -> None:
    assert format_time(raw) == expected
