"""What EDK2's ARM builds write at the first boot of a machine, whatever the machine is: a new store has it already.

A variable costs the firmware a rewrite of a flash block, hundreds of accesses to an emulated device: what is there
already makes the first boot shorter. EDK2 compares before it writes, so a build that wants other values only adds its
own. Seen to be the same in Debian's AAVMF 2022.11 and 2025.02, and AAVMF32 2022.11.
"""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

from armvm.firmware.device_path import END_OF_INSTANCE, END_OF_PATH, SERIAL_PORT, VT100, pack_node
from armvm.firmware.variables import (
    CERTIFICATE_DATABASE,
    CUSTOM_MODE,
    DEFAULT_ATTRIBUTES,
    VENDOR_KEYS,
    Attributes,
    Variable,
    encode_name,
)
from armvm.guid import EFI_GLOBAL_VARIABLE

_VARIABLE_ERRORS = UUID("04b37fe8-f6ae-480b-bdd5-37d98c5e89aa")
"""Vendor of EDK2's VarErrorFlag: whether the store was ever too full (MdeModulePkg, VarErrorFlag.h)."""

_FIRMWARE_VOLUME = UUID("64074afe-340a-4be6-94ba-91b5b4d0f71e")
"""The volume that the drivers of ArmVirtQemu come in (ArmVirtPkg, ArmVirtQemu.fdf: FvNameGuid)."""
_SETUP_PROGRAM = UUID("462caa21-7614-4503-836e-8ab6f4662331")
"""UiApp, the firmware's setup (MdeModulePkg, UiApp.inf)."""
_SCAN_CODES = {"F2": 0x0C, "Escape": 0x17}
"""The keys that lead into the setup (UEFI 2.10 §12.1.2, table 12-2), in the order that EDK2 registers them."""


def first_boot_variables() -> tuple[Variable, ...]:
    """What EDK2 writes into a store without keys at its first boot, whatever the machine is, as it writes it.

    The boot order is none of it: which disks there are, the firmware finds out.
    """
    return (*_bookkeeping(), *_consoles(), *_setup())


def _bookkeeping() -> tuple[Variable, ...]:
    """EDK2: SecurityPkg, AuthVariableLib.c; MdeModulePkg, BdsEntry.c (languages) and Variable/RuntimeDxe/VarCheck.c."""
    hidden = Attributes.NON_VOLATILE | Attributes.BOOT_SERVICE
    authenticated = Attributes.TIME_BASED_AUTHENTICATED_WRITE
    return (
        Variable("CustomMode", CUSTOM_MODE, b"\0", hidden),
        Variable("certdb", CERTIFICATE_DATABASE, struct.pack("<I", 4), DEFAULT_ATTRIBUTES | authenticated),
        Variable("VendorKeysNv", VENDOR_KEYS, b"\x01", hidden | authenticated),
        Variable("PlatformLang", EFI_GLOBAL_VARIABLE, b"en\0"),
        Variable("Lang", EFI_GLOBAL_VARIABLE, b"eng\0"),
        Variable("VarErrorFlag", _VARIABLE_ERRORS, b"\xff"),
    )


def _consoles() -> tuple[Variable, ...]:
    """The serial port, and for input any USB keyboard (EDK2: ArmVirtPkg, PlatformBootManagerLib/PlatformBm.c)."""
    serial = (
        pack_node(1, 4, SERIAL_PORT.bytes_le)
        + pack_node(3, 14, struct.pack("<IQBBB", 0, 38400, 8, 1, 1))  # no parity, one stop bit
        + pack_node(3, 10, VT100.bytes_le)
        + END_OF_PATH
    )
    keyboard = pack_node(3, 15, struct.pack("<HHBBB", 0xFFFF, 0xFFFF, 3, 1, 1)) + END_OF_INSTANCE
    values = {"ConIn": keyboard + serial, "ConOut": serial, "ErrOut": serial}
    return tuple(Variable(name, EFI_GLOBAL_VARIABLE, value) for name, value in values.items())


def _setup() -> tuple[Variable, ...]:
    """The firmware's setup, hidden in menus, and the keys that open it (UEFI 2.10 §3.1.3 and §3.1.7)."""
    active, hidden, application = 0x001, 0x008, 0x100
    path = pack_node(4, 7, _FIRMWARE_VOLUME.bytes_le) + pack_node(4, 6, _SETUP_PROGRAM.bytes_le) + END_OF_PATH
    option = struct.pack("<IH", active | hidden | application, len(path)) + encode_name("UiApp") + path
    one_key = 1 << 30
    keys = [struct.pack("<IIHHH", one_key, zlib.crc32(option), 0, scan_code, 0) for scan_code in _SCAN_CODES.values()]
    return (
        Variable("Boot0000", EFI_GLOBAL_VARIABLE, option),
        *(Variable(f"Key{number:04X}", EFI_GLOBAL_VARIABLE, key) for number, key in enumerate(keys)),
    )
