"""Secure Boot keys put into a variable store, as if they had been enrolled in setup mode (UEFI 2.10 §32.3)."""

from __future__ import annotations

import enum
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from armvm.errors import InputError, UsageError
from armvm.firmware.certificates import looks_like_certificate, read_certificates
from armvm.firmware.signatures import (
    X509,
    SignatureList,
    authenticated_payload,
    certificate_list,
    is_authenticated_update,
    merge_signatures,
    parse_signatures,
    serialise_signatures,
)
from armvm.firmware.variable_files import read_bounded
from armvm.firmware.variable_names import (
    AUTHENTICATED_ATTRIBUTES,
    BOOT_ATTRIBUTES,
    IMAGE_SECURITY_DATABASE,
    SECURE_BOOT_ENABLE,
)
from armvm.firmware.variables import CUSTOM_MODE, Variable, VariableStore, with_variables, without_variable
from armvm.guid import EFI_GLOBAL_VARIABLE, derived_guid
from armvm.units import MIB

OWNER = derived_guid("signature owner")
"""Who is said to have enrolled what was enrolled without naming an owner."""

DATABASES = ("PK", "KEK", "db", "dbx")
"""Platform key, key exchange keys, what is allowed and what is forbidden."""

_VENDORS = {
    "PK": EFI_GLOBAL_VARIABLE,
    "KEK": EFI_GLOBAL_VARIABLE,
    **dict.fromkeys(("db", "dbx", "dbt"), IMAGE_SECURITY_DATABASE),
}
_ENFORCING = (
    Variable("SecureBootEnable", SECURE_BOOT_ENABLE, b"\x01", BOOT_ATTRIBUTES),
    Variable("CustomMode", CUSTOM_MODE, b"\0", BOOT_ATTRIBUTES),
)
"""EDK2's own switches: Secure Boot wanted, and keys only to be changed by those who may."""
_MOST_BYTES = MIB


class SecureBoot(enum.Enum):
    """What a store makes of Secure Boot in firmware that knows it."""

    SETUP = "in setup mode: without a platform key, everything boots"
    OFF = "off: keys are enrolled, and not used"
    ON = "on: only what db allows boots"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A store with keys, and how many signatures each database got that were new, by its name."""

    store: VariableStore
    added: Mapping[str, int]


def secure_boot(store: VariableStore) -> SecureBoot:
    """Whether EDK2 will enforce Secure Boot with this store (SecurityPkg, AuthVariableLib, AuthServiceInternal)."""
    if find_database(store, "PK") is None:
        return SecureBoot.SETUP
    switch = store.find("SecureBootEnable", SECURE_BOOT_ENABLE)
    return SecureBoot.OFF if switch is not None and switch.data == b"\0" else SecureBoot.ON


def find_database(store: VariableStore, name: str) -> Variable | None:
    """The variable of one of DATABASES, or None."""
    return store.find(name, _VENDORS[name])


def read_keys(path: Path, owner: UUID = OWNER) -> tuple[SignatureList, ...]:
    """The signatures of a file: certificates in PEM or DER, a signature list (.esl), or a signed update (.auth).

    ``owner`` is named as who enrolled the certificates; the others say themselves. Raises InputError when it is none.
    """
    content = read_bounded(path, _MOST_BYTES)
    subject = str(path)
    if looks_like_certificate(content):
        return tuple(certificate_list(one, owner) for one in read_certificates(content, subject=subject))
    if is_authenticated_update(content):
        content = authenticated_payload(content, subject=subject)
    elif len(content) < 28:
        raise InputError("neither a certificate nor a signature list", subject=subject, found=f"{len(content)} bytes")
    lists = parse_signatures(content, subject=subject)
    for one in lists:
        if one.kind == X509:
            for entry in one.entries:
                read_certificates(entry.data, subject=f"{subject}, a list of certificates")
    return lists


def enrol(
    store: VariableStore,
    keys: Mapping[str, tuple[SignatureList, ...]],
    *,
    template: VariableStore | None = None,
    replace: bool = False,
    seconds: int,
) -> Enrolment:
    """Put ``keys``, by the names of DATABASES, into ``store``, and turn Secure Boot on where there is a platform key.

    A platform key takes the place of the old one, everything else is added; with ``replace``, to nothing. The databases
    of ``template`` come first, as they are. ``seconds`` since 1970 is the time of the write: the firmware refuses later
    updates that are signed as older. Raises UsageError when there is not one platform key, or no room.
    """
    if replace:
        for name in DATABASES:
            if find_database(store, name) is not None:
                store = without_variable(store, name, _VENDORS[name])
    if template is not None:
        found = [one for one in (find_database(template, name) for name in _VENDORS) if one is not None]
        store = with_variables(store, found)
    added: dict[str, int] = {}
    for name in DATABASES:
        if name not in keys:
            continue
        old = find_database(store, name)
        present = () if old is None or name == "PK" else parse_signatures(old.data, subject=f"the store's {name}")
        lists, added[name] = merge_signatures(present, keys[name])
        if name == "PK" and [(one.kind, len(one.entries)) for one in lists] != [(X509, 1)]:
            raise UsageError("a machine has one platform key, an X.509 certificate", hint="give one file with --pk")
        data = serialise_signatures(lists)
        if added[name] and (old is None or data != old.data):
            store = with_variables(store, [_database(name, data, old, seconds)])
    if find_database(store, "PK") is not None:
        store = with_variables(store, _ENFORCING)
    return Enrolment(store, added)


def efi_time(seconds: int) -> bytes:
    """Seconds since 1970 as an EFI_TIME in UTC (UEFI 2.10 §8.3)."""
    year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
    return struct.pack("<HBBBBBxIhBx", year, month, day, hour, minute, second, 0, 0, 0)


def _database(name: str, data: bytes, old: Variable | None, seconds: int) -> Variable:
    now = efi_time(seconds)
    if old is not None and _order(old.timestamp) > _order(now):
        now = old.timestamp
    return Variable(name, _VENDORS[name], data, AUTHENTICATED_ATTRIBUTES, timestamp=now)


def _order(timestamp: bytes) -> tuple[int, ...]:
    return struct.unpack_from("<HBBBBB", timestamp)
