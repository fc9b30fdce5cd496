"""The values of well-known UEFI variables in words (UEFI 2.10 §3.3), printable and bounded; others in hex."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from armvm.errors import InputError
from armvm.firmware.device_path import format_device_path, shown_hex
from armvm.firmware.signatures import SignatureList, parse_signatures
from armvm.firmware.variable_names import (
    IMAGE_SECURITY_DATABASE,
    SECURE_BOOT_ENABLE,
    SHIM,
    is_load_option,
)
from armvm.firmware.variables import CUSTOM_MODE, VENDOR_KEYS, Variable
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.printable import printable

_MOST_TEXT = 400
_MOST_LISTED = 64

SWITCHES = {
    ("SecureBootEnable", SECURE_BOOT_ENABLE),
    ("CustomMode", CUSTOM_MODE),
    ("VendorKeysNv", VENDOR_KEYS),
}
"""EDK2's own variables that are on or off."""


@dataclass(frozen=True, slots=True)
class LoadOption:
    """What a Boot#### variable says (UEFI 2.10 §3.1.3). ``description`` is as it stands: foreign text."""

    attributes: int
    description: str
    device_path: bytes
    optional_data: bytes

    @property
    def active(self) -> bool:
        """Whether the boot manager tries it (LOAD_OPTION_ACTIVE)."""
        return bool(self.attributes & 1)

    @property
    def hidden(self) -> bool:
        """Whether menus leave it out (LOAD_OPTION_HIDDEN)."""
        return bool(self.attributes & 8)


def parse_load_option(data: bytes) -> LoadOption:
    """Read an EFI_LOAD_OPTION (UEFI 2.10 §3.1.3). Raises InputError when it is truncated."""
    if len(data) < 6:
        raise InputError(f"a load option of {len(data)} bytes", expected="at least 6")
    attributes, path_bytes = struct.unpack_from("<IH", data)
    end = next((at for at in range(6, len(data) - 1, 2) if data[at : at + 2] == b"\0\0"), None)
    if end is None:
        raise InputError("the load option's description has no end", offset_bytes=6)
    path_at = end + 2
    if path_at + path_bytes > len(data):
        raise InputError("the load option's device path is truncated", offset_bytes=path_at)
    return LoadOption(
        attributes,
        data[6:end].decode("utf-16-le", "surrogatepass"),
        data[path_at : path_at + path_bytes],
        data[path_at + path_bytes :],
    )


def describe(variable: Variable) -> str:
    """The value in words, on one line, safe to print and bounded; in hex when its meaning is not known."""
    describer = _describer(variable)
    if describer is not None:
        try:
            text = describer(variable.data)
        except (InputError, struct.error, UnicodeDecodeError):
            pass  # not what its name promises: show what stands there
        else:
            return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "..."
    return f"{shown_hex(variable.data)} ({len(variable.data)} byte{'' if len(variable.data) == 1 else 's'})"


def format_time(timestamp: bytes) -> str | None:
    """An EFI_TIME (UEFI 2.10 §8.3) as ``2024-05-01 12:00:00``; None when it is zero or no time."""
    year, month, day, hour, minute, second = struct.unpack_from("<HBBBBB", timestamp)
    if not (1900 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"


def signature_lists(variable: Variable) -> tuple[SignatureList, ...]:
    """What a signature database holds; nothing when the variable is none, or a broken one."""
    if not is_signature_database(variable):
        return ()
    try:
        return parse_signatures(variable.data)
    except InputError:
        return ()


def is_signature_database(variable: Variable) -> bool:
    """Whether its name and vendor are those of a signature database (UEFI 2.10 §3.3, §32.4.1; shim's MokList)."""
    return variable.name in _SIGNATURES.get(variable.vendor, ())


def _describer(variable: Variable) -> Callable[[bytes], str] | None:
    name, vendor = variable.key
    if is_signature_database(variable):
        return _signatures
    if vendor == EFI_GLOBAL_VARIABLE:
        if is_load_option(name):
            return _load_option
        return _GLOBAL.get(name)
    return _switch if (name, vendor) in SWITCHES else None


def _load_option(data: bytes) -> str:
    option = parse_load_option(data)
    notes = [note for note, holds in (("inactive", not option.active), ("hidden", option.hidden)) if holds]
    text = f"{printable(option.description)}: {format_device_path(option.device_path)}"
    if option.optional_data:
        notes.append(f"data {shown_hex(option.optional_data)}")
    return f"{text} ({', '.join(notes)})" if notes else text


def _order(data: bytes) -> str:
    if len(data) % 2:
        raise InputError("a boot order of an odd number of bytes")
    count = len(data) // 2
    numbers = struct.unpack_from(f"<{min(count, _MOST_LISTED)}H", data)
    return ", ".join(f"{number:04X}" for number in numbers) + (", ..." if count > _MOST_LISTED else "")


def _option_number(data: bytes) -> str:
    (number,) = struct.unpack("<H", data)
    return f"{number:04X}"


def _timeout(data: bytes) -> str:
    (seconds,) = struct.unpack("<H", data)
    return "waits for a key" if seconds == 0xFFFF else f"{seconds} s"


def _switch(data: bytes) -> str:
    (value,) = struct.unpack("<B", data)
    return {0: "off", 1: "on"}.get(value, str(value))


def _text(data: bytes) -> str:
    return printable(data.rstrip(b"\0").decode("ascii"))


def _indications(data: bytes) -> str:
    (bits,) = struct.unpack("<Q", data)
    names = [name for bit, name in enumerate(INDICATIONS) if bits >> bit & 1]
    unknown = bits >> len(INDICATIONS) << len(INDICATIONS)
    return ", ".join([*names, hex(unknown)] if unknown else names) or "none"


INDICATIONS = (
    "boot to firmware settings",
    "timestamp revocation",
    "file capsule delivery",
    "firmware management capsule",
    "capsule result variable",
    "start OS recovery",
    "start platform recovery",
    "collect configuration as JSON",
)
"""Bits of OsIndications (UEFI 2.10 §8.5.4)."""


def _signatures(data: bytes) -> str:
    """How many signatures of which kinds a signature database holds."""
    counts: dict[str, int] = {}
    for one in parse_signatures(data):
        counts[one.kind_name] = counts.get(one.kind_name, 0) + len(one.entries)
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "empty"


_GLOBAL: dict[str, Callable[[bytes], str]] = {
    "Timeout": _timeout,
    "OsIndications": _indications,
    "OsIndicationsSupported": _indications,
    **dict.fromkeys(("BootOrder", "DriverOrder", "SysPrepOrder"), _order),
    **dict.fromkeys(("BootNext", "BootCurrent"), _option_number),
    **dict.fromkeys(("Lang", "LangCodes", "PlatformLang", "PlatformLangCodes"), _text),
    **dict.fromkeys(("ConIn", "ConOut", "ErrOut", "ConInDev", "ConOutDev", "ErrOutDev"), format_device_path),
    **dict.fromkeys(("SecureBoot", "SetupMode", "AuditMode", "DeployedMode"), _switch),
}
_SIGNATURES = {
    EFI_GLOBAL_VARIABLE: (
        "PK",
        "KEK",
        "PKDefault",
        "KEKDefault",
        "dbDefault",
        "dbxDefault",
        "dbtDefault",
        "dbrDefault",
    ),
    IMAGE_SECURITY_DATABASE: ("db", "dbx", "dbt", "dbr"),
    SHIM: ("MokList", "MokListX"),
}
