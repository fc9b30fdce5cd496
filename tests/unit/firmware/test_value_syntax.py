from __future__ import annotations

import os
import struct
from pathlib import Path
from uuid import UUID

import pytest

from armvm.errors import InputError, UsageError
from armvm.firmware.value_syntax import parse_typed, parse_value
from armvm.firmware.values import describe
from armvm.firmware.variable_names import IMAGE_SECURITY_DATABASE, SECURE_BOOT_ENABLE
from armvm.firmware.variables import Variable
from armvm.guid import EFI_GLOBAL_VARIABLE

OWN = UUID("11111111-2222-3333-4444-555555555555")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("hex:00ff", b"\x00\xff"),
        ("hex:00 ff:10", b"\x00\xff\x10"),
        ("u8:255", b"\xff"),
        ("u16:0x102", b"\x02\x01"),
        ("u32:1", b"\1\0\0\0"),
        ("u64:1", b"\1" + bytes(7)),
        ("string:é=", b"\xe9\0=\0\0\0"),
        ("ascii:en-US", b"en-US\0"),
    ],
)
def test_typed_values(text: str, data: bytes) -> None:
    assert parse_value("Own", OWN, text) == data


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"abc")
    assert parse_typed("file", str(tmp_path / "value")) == b"abc"
    os.mkfifo(tmp_path / "pipe")
    for name in ("gone", "pipe", "."):
        with pytest.raises(InputError):
            parse_typed("file", str(tmp_path / name))


@pytest.mark.parametrize(
    "text", ["u8:256", "u8:-1", "u8:", "u16:x", "hex:0", "hex:zz", "ascii:é", "u64:" + "9" * 30, "u8:\u0661"]
)
def test_typed_values_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_value("Own", OWN, text)


@pytest.mark.parametrize(
    ("name", "text", "data", "words"),
    [
        ("Timeout", "3", b"\3\0", "3 s"),
        ("Timeout", "never", b"\xff\xff", "waits for a key"),
        ("BootNext", "000A", b"\x0a\0", "000A"),
        ("BootNext", "Boot0001", b"\1\0", "0001"),
        ("BootOrder", "0001, 0000", b"\1\0\0\0", "0001, 0000"),
        ("PlatformLang", "en", b"en\0", "en"),
        ("OsIndications", "boot to firmware settings", b"\1" + bytes(7), "boot to firmware settings"),
        ("OsIndications", "none", bytes(8), "none"),
        ("OsIndications", "0x3", b"\3" + bytes(7), "boot to firmware settings, timestamp revocation"),
    ],
)
def test_well_known_variables_are_written_as_they_are_shown(name: str, text: str, data: bytes, words: str) -> None:
    assert parse_value(name, EFI_GLOBAL_VARIABLE, text) == data
    assert describe(Variable(name, EFI_GLOBAL_VARIABLE, data)) == words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Timeout", "soon"),
        ("Timeout", "65536"),
        ("BootNext", "1"),
        ("BootOrder", ""),
        ("BootOrder", "0001,,0002"),
        ("OsIndications", "fly"),
        ("Boot0001", "just words"),
        ("Boot0001", "x|no/backslash"),
        ("Boot0001", "|\\x"),
        ("Boot0001", "active"),
        ("Boot0001", "x|\\" + "y" * 20000),
        ("ConIn", "keyboard"),
    ],
)
def test_what_makes_no_sense(name: str, text: str) -> None:
    with pytest.raises(UsageError):
        parse_value(name, EFI_GLOBAL_VARIABLE, text)


def test_switches() -> None:
    assert parse_value("SecureBootEnable", SECURE_BOOT_ENABLE, "on") == b"\1"
    assert parse_value("SecureBootEnable", SECURE_BOOT_ENABLE, "off") == b"\0"
    with pytest.raises(UsageError, match="not a switch"):
        parse_value("SecureBootEnable", SECURE_BOOT_ENABLE, "2")


def test_a_database_is_pointed_to_enroll() -> None:
    with pytest.raises(UsageError) as caught:
        parse_value("db", IMAGE_SECURITY_DATABASE, "cert.pem")
    assert "enroll" in str(caught.value.hint)


def test_a_boot_entry() -> None:
    data = parse_value("Boot0005", EFI_GLOBAL_VARIABLE, "Debian|\\EFI\\debian\\grubaa64.efi")
    entry = Variable("Boot0005", EFI_GLOBAL_VARIABLE, data)
    assert describe(entry) == "Debian: \\EFI\\debian\\grubaa64.efi"
    off = parse_value("Boot0005", EFI_GLOBAL_VARIABLE, "inactive", old=entry)
    assert describe(Variable("Boot0005", EFI_GLOBAL_VARIABLE, off)).endswith("(inactive)")
    assert off[4:] == data[4:]
    assert struct.unpack_from("<I", off) == (0,)
    assert parse_value("Boot0005", EFI_GLOBAL_VARIABLE, "active", old=Variable("Boot0005", OWN, off)) == data
    with pytest.raises(InputError):
        parse_value("Boot0005", EFI_GLOBAL_VARIABLE, "active", old=Variable("Boot0005", OWN, b"xx"))
