"""UEFI variables and the store that holds them, as values: what ``armvm vars`` lists and edits."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from armvm.errors import UsageError
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.spec.verdict import Problem
from armvm.units import KIB, MIB, align_up

CUSTOM_MODE = UUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
"""Vendor of EDK2's CustomMode (SecurityPkg, AuthenticatedVariableFormat.h)."""
VENDOR_KEYS = UUID("9073e4e0-60ec-4b6e-9903-4c223c260f3c")
"""Vendor of EDK2's VendorKeysNv (the same header)."""
CERTIFICATE_DATABASE = UUID("d9bee56e-75dc-49d9-b4d7-b534210f637a")
"""Vendor of EDK2's certdb: who may write the private authenticated variables."""

FLASH_SIZE_BYTES = 64 * MIB
"""The size that QEMU's ``virt`` machine gives each of its two flash chips; the second holds the variable store."""

AREA_BYTES = 256 * KIB
"""The size of each of the three areas of a store (variables, working block, spare) in EDK2's ArmVirtQemu build."""

AREAS_HEADER_BYTES = 0x48 + 28
"""What the firmware volume header and the variable store header take from the area of the variables."""

VARIABLE_HEADER_BYTES = 60
"""The size of edk2's AUTHENTICATED_VARIABLE_HEADER."""


class Attributes(enum.IntFlag):
    """Attributes of a variable (UEFI 2.10 §8.2.1). Bits without a name are kept."""

    NON_VOLATILE = 0x01
    BOOT_SERVICE = 0x02
    RUNTIME = 0x04
    HARDWARE_ERROR_RECORD = 0x08
    AUTHENTICATED_WRITE = 0x10
    TIME_BASED_AUTHENTICATED_WRITE = 0x20
    APPEND_WRITE = 0x40
    ENHANCED_AUTHENTICATED = 0x80


DEFAULT_ATTRIBUTES = Attributes.NON_VOLATILE | Attributes.BOOT_SERVICE | Attributes.RUNTIME
"""What UEFI gives most of its own variables that persist (UEFI 2.10 §3.3, table 3-1)."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One UEFI variable (UEFI 2.10 §8.2) as edk2 stores it.

    ``timestamp`` is the EFI_TIME of its last authenticated write, 16 bytes; ``monotonic_count`` and
    ``public_key_index`` are what older ways of authenticating left. All three are zero for ordinary variables.
    """

    name: str
    vendor: UUID
    data: bytes
    attributes: Attributes = DEFAULT_ATTRIBUTES
    timestamp: bytes = bytes(16)
    monotonic_count: int = 0
    public_key_index: int = 0

    @property
    def key(self) -> tuple[str, UUID]:
        """What tells it from every other variable."""
        return self.name, self.vendor

    @property
    def stored_bytes(self) -> int:
        """The room it takes in a store, in bytes."""
        return align_up(VARIABLE_HEADER_BYTES + len(encode_name(self.name)) + len(self.data), 4)


@dataclass(frozen=True, slots=True)
class VariableStore:
    """The variables of one machine, in the order of the store.

    ``formatted`` is False for a store that is still blank: the firmware formats it at the first boot.
    ``area_bytes`` is the size of each of its three areas, None when its layout is no ARM virtual machine's.
    ``problems`` is what was wrong with it; after a serious one, EDK2 throws the store away or loses variables of it.
    """

    variables: tuple[Variable, ...] = ()
    area_bytes: int | None = AREA_BYTES
    formatted: bool = True
    problems: tuple[Problem, ...] = ()

    @property
    def capacity_bytes(self) -> int:
        """The room for variables, their headers included, in bytes."""
        return self.area_bytes - AREAS_HEADER_BYTES if self.area_bytes else 0

    @property
    def used_bytes(self) -> int:
        """The room that its variables take, in bytes."""
        return sum(variable.stored_bytes for variable in self.variables)

    @property
    def free_bytes(self) -> int:
        """The room that is left once the firmware has swept out what is obsolete, in bytes."""
        return max(self.capacity_bytes - self.used_bytes, 0)

    def find(self, name: str, vendor: UUID = EFI_GLOBAL_VARIABLE) -> Variable | None:
        """The variable of that name and vendor, or None."""
        return next((variable for variable in self.variables if variable.key == (name, vendor)), None)


def encode_name(name: str) -> bytes:
    """A variable's name as it is stored: UTF-16 with its terminator. Lone surrogates pass, as they do in EDK2."""
    return name.encode("utf-16-le", "surrogatepass") + b"\0\0"


def with_variable(store: VariableStore, variable: Variable) -> VariableStore:
    """The store with ``variable`` in the place of its namesake, or at the end.

    Raises UsageError when UEFI allows no such variable in a store, or the store has no room for it.
    """
    return with_variables(store, (variable,))


def with_variables(store: VariableStore, added: Iterable[Variable]) -> VariableStore:
    """The store with each of ``added`` in the place of its namesake, or at the end; the errors of ``with_variable``."""
    merged = {variable.key: variable for variable in store.variables}
    for variable in added:
        check_variable(variable)
        merged[variable.key] = variable
    variables = tuple(merged.values())
    check_room(variables, store.area_bytes)
    return replace(store, variables=variables)


def without_variable(store: VariableStore, name: str, vendor: UUID = EFI_GLOBAL_VARIABLE) -> VariableStore:
    """The store without that variable.

    Raises UsageError when it has none of that name and vendor, or cannot be written.
    """
    if store.find(name, vendor) is None:
        raise UsageError(f"the store has no variable {name} of vendor {vendor}")
    variables = tuple(old for old in store.variables if old.key != (name, vendor))
    check_room(variables, store.area_bytes)
    return replace(store, variables=variables)


def check_room(variables: Iterable[Variable], area_bytes: int | None) -> None:
    """Raise UsageError when ``variables`` do not fit into a store with areas of ``area_bytes``."""
    if area_bytes is None:
        raise UsageError(
            "this variable store cannot be written: its layout is not that of an ARM virtual machine's firmware"
        )
    needed, capacity = sum(variable.stored_bytes for variable in variables), area_bytes - AREAS_HEADER_BYTES
    if needed > capacity:
        raise UsageError(
            f"the variables take {needed} bytes, the variable store holds {capacity}",
            hint="delete variables that are not needed any more",
        )


def new_instance_variables() -> tuple[Variable, ...]:
    """What the store of a new machine holds: a boot menu that is not waited for (UEFI 2.10 §3.1.1, Timeout)."""
    return (Variable("Timeout", EFI_GLOBAL_VARIABLE, struct.pack("<H", 0)),)


def check_variable(variable: Variable) -> None:
    """Raise UsageError for what SetVariable() refuses (UEFI 2.10 §8.2.3), and for what does not outlive a boot."""
    if not variable.name or "\0" in variable.name:
        raise UsageError(f"not a variable's name: {variable.name!r}")
    if not variable.data:
        raise UsageError(f"{variable.name}: a variable without data does not exist", hint="delete it instead")
    if Attributes.NON_VOLATILE not in variable.attributes:
        raise UsageError(f"{variable.name}: only non-volatile variables live in a store")
    if Attributes.RUNTIME in variable.attributes and Attributes.BOOT_SERVICE not in variable.attributes:
        raise UsageError(f"{variable.name}: runtime access needs boot-service access, too")
    if Attributes.APPEND_WRITE in variable.attributes:
        raise UsageError(f"{variable.name}: appending is an action, no attribute that is stored")
