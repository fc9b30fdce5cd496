"""Values as people write them: typed (``u16:3``, ``hex:00ff``), or in the words of a well-known variable."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from armvm.errors import UsageError
from armvm.firmware.device_path import END_OF_PATH, pack_node
from armvm.firmware.values import INDICATIONS, SWITCHES, is_signature_database, parse_load_option
from armvm.firmware.variable_files import read_bounded
from armvm.firmware.variable_names import is_load_option
from armvm.firmware.variables import Variable
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.printable import printable
from armvm.units import MIB

_ACTIVE = 1
_MEDIA_FILE = 4, 4


def parse_typed(kind: str, text: str) -> bytes:
    """The bytes of ``text`` read as ``kind``, one of KINDS.

    Raises UsageError when it is not of that kind, InputError when the file that it names cannot be read.
    """
    return KINDS[kind](text)


def parse_value(name: str, vendor: UUID, text: str, *, old: Variable | None = None) -> bytes:
    """The bytes of ``text``: with a type in front (``u8:1``), or as the variable's meaning has it.

    ``old`` is the variable as it is, for words that change a part of it. Raises UsageError when it makes no sense.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in KINDS:
        return KINDS[kind](rest)
    if vendor == EFI_GLOBAL_VARIABLE and is_load_option(name):
        return _load_option(name, text, old)
    if (name, vendor) in SWITCHES:
        return _switch(text)
    if vendor == EFI_GLOBAL_VARIABLE and name in _GLOBAL:
        return _GLOBAL[name](text)
    hint = f"put one of {', '.join(f'{one}:' for one in KINDS)} in front of it, or use --hex and the like"
    if is_signature_database(Variable(name, vendor, b"")):
        hint = "armvm vars enroll adds certificates; file:NAME.esl replaces the whole database"
    raise UsageError(f"how to read a value of {printable(name)} is not known: {text!r}", hint=hint)


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", " "))
    except ValueError:
        raise UsageError(f"not hexadecimal: {text!r}", hint="pairs of digits, as in 00ff or '00 ff'") from None


def _file(text: str) -> bytes:
    return read_bounded(Path(text), MIB)


def _string(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass") + b"\0\0"


def _ascii(text: str) -> bytes:
    try:
        return text.encode("ascii") + b"\0"
    except UnicodeEncodeError:
        raise UsageError(f"not ASCII: {text!r}") from None


def _unsigned(bits: int) -> Callable[[str], bytes]:
    def parse(text: str) -> bytes:
        number = _number(text)
        if number is None or number >= 1 << bits:
            raise UsageError(f"not a number of {bits} bits: {text!r}", hint="as in 7 or 0x7")
        return number.to_bytes(bits // 8, "little")

    return parse


def _number(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}", text):
        return None
    return int(text, 16) if text[1:2] in {"x", "X"} else int(text)


KINDS: dict[str, Callable[[str], bytes]] = {
    "hex": _hex,
    "file": _file,
    "string": _string,
    "ascii": _ascii,
    "u8": _unsigned(8),
    "u16": _unsigned(16),
    "u32": _unsigned(32),
    "u64": _unsigned(64),
}
"""What a value may be written as. ``string`` is UCS-2, it and ``ascii`` end in a zero; numbers are little-endian."""


def _switch(text: str) -> bytes:
    value = {"on": 1, "off": 0, "1": 1, "0": 0, "true": 1, "false": 0, "yes": 1, "no": 0}.get(text.lower())
    if value is None:
        raise UsageError(f"not a switch: {text!r}", hint="on or off")
    return bytes([value])


def _timeout(text: str) -> bytes:
    """Seconds, or ``never`` for a menu that waits for a key (UEFI 2.10 §3.1.1: 0xFFFF)."""
    number = 0xFFFF if text == "never" else _number(text)
    if number is None or number > 0xFFFF:
        raise UsageError(f"not a timeout: {text!r}", hint="seconds, or never for a menu that waits for a key")
    return struct.pack("<H", number)


def _option_number(text: str) -> bytes:
    match = re.fullmatch(r"(?:Boot)?([0-9A-Fa-f]{4})", text.strip())
    if match is None:
        raise UsageError(f"not the number of a boot entry: {text!r}", hint="four hexadecimal digits, as in 0001")
    return struct.pack("<H", int(match.group(1), 16))


def _order(text: str) -> bytes:
    return b"".join(map(_option_number, text.split(",")))


def _indications(text: str) -> bytes:
    number = _number(text)
    if number is None:
        number = 0
        for word in filter(None, (part.strip() for part in text.split(","))):
            if word == "none":
                continue
            if word not in INDICATIONS:
                hint = f"a number, none, or of {', '.join(INDICATIONS)}"
                raise UsageError(f"not an indication: {word!r}", hint=hint)
            number |= 1 << INDICATIONS.index(word)
    if number >= 1 << 64:
        raise UsageError(f"not a number of 64 bits: {text!r}")
    return struct.pack("<Q", number)


def _load_option(name: str, text: str, old: Variable | None) -> bytes:
    r"""``active``, ``inactive``, or ``DESCRIPTION|\PATH\\OF.EFI``: a file on whichever partition has it.

    That is the short form of a device path which boot managers look for (UEFI 2.10 §3.1.2).
    """
    if text in {"active", "inactive"}:
        if old is None:
            raise UsageError(f"there is no {name} to make {text}")
        parse_load_option(old.data)
        (attributes,) = struct.unpack_from("<I", old.data)
        attributes = attributes | _ACTIVE if text == "active" else attributes & ~_ACTIVE
        return struct.pack("<I", attributes) + old.data[4:]
    description, bar, path = text.partition("|")
    if not bar or not description or not path.startswith("\\") or "\0" in text:
        raise UsageError(
            f"not a boot entry: {text!r}",
            hint=r"active, inactive, or a description and a program: 'Debian|\EFI\debian\grubaa64.efi'",
        )
    file = _string(path)
    if len(file) > 0x7FFF:
        raise UsageError(f"the path of {name} is too long")
    node = pack_node(*_MEDIA_FILE, file) + END_OF_PATH
    return struct.pack("<IH", _ACTIVE, len(node)) + _string(description) + node


_GLOBAL: dict[str, Callable[[str], bytes]] = {
    "Timeout": _timeout,
    "BootNext": _option_number,
    "OsIndications": _indications,
    **dict.fromkeys(("BootOrder", "DriverOrder", "SysPrepOrder"), _order),
    **dict.fromkeys(("Lang", "PlatformLang"), _ascii),
}
