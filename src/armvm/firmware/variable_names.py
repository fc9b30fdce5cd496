"""Names of UEFI variables: whose they are, what attributes they have, and how people write them.

A variable is named by itself and its vendor's GUID. People write ``Timeout``, ``db``, ``shim:MokList``,
``GUID:NAME``, or ``NAME-GUID`` as Linux's efivarfs has it.
"""

from __future__ import annotations

import re
from uuid import UUID

from armvm.errors import UsageError
from armvm.firmware.variables import (
    CERTIFICATE_DATABASE,
    CUSTOM_MODE,
    DEFAULT_ATTRIBUTES,
    VENDOR_KEYS,
    Attributes,
    VariableStore,
)
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.printable import printable

IMAGE_SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
"""Vendor of db, dbx, dbt and dbr (UEFI 2.10 §32.4.1, §32.6.1)."""
SECURE_BOOT_ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
"""Vendor of EDK2's SecureBootEnable (SecurityPkg, AuthenticatedVariableFormat.h)."""
SHIM = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
"""Vendor of shim's variables (rhboot/shim, include/guid.h)."""
LOADER = UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
"""Vendor of the Boot Loader Interface (systemd.io/BOOT_LOADER_INTERFACE)."""

VENDORS = {
    "global": EFI_GLOBAL_VARIABLE,
    "security-database": IMAGE_SECURITY_DATABASE,
    "secure-boot-enable": SECURE_BOOT_ENABLE,
    "custom-mode": CUSTOM_MODE,
    "vendor-keys": VENDOR_KEYS,
    "certificate-database": CERTIFICATE_DATABASE,
    "memory-type": UUID("4c19049f-4137-4dd3-9c10-8b97a83ffdfa"),
    "monotonic-counter": UUID("eb704011-1402-11d3-8e77-00a0c969723b"),
    "tls-certificates": UUID("fd2340d0-3dab-4349-a6c7-3b4f12b48eae"),
    "shim": SHIM,
    "loader": LOADER,
}
"""Vendors that may be written by name."""

AUTHENTICATED_ATTRIBUTES = DEFAULT_ATTRIBUTES | Attributes.TIME_BASED_AUTHENTICATED_WRITE
"""What the signature databases have (UEFI 2.10 §3.3, §32.6.1)."""
BOOT_ATTRIBUTES = Attributes.NON_VOLATILE | Attributes.BOOT_SERVICE
"""What the firmware keeps from the operating system."""

_KNOWN: dict[str, tuple[UUID, Attributes]] = {
    **dict.fromkeys(("PK", "KEK"), (EFI_GLOBAL_VARIABLE, AUTHENTICATED_ATTRIBUTES)),
    **dict.fromkeys(("db", "dbx", "dbt", "dbr"), (IMAGE_SECURITY_DATABASE, AUTHENTICATED_ATTRIBUTES)),
    **dict.fromkeys(
        ("BootOrder", "BootNext", "DriverOrder", "SysPrepOrder", "Timeout", "OsIndications", "Lang", "PlatformLang"),
        (EFI_GLOBAL_VARIABLE, DEFAULT_ATTRIBUTES),
    ),
    **dict.fromkeys(("ConIn", "ConOut", "ErrOut"), (EFI_GLOBAL_VARIABLE, DEFAULT_ATTRIBUTES)),
    "SecureBootEnable": (SECURE_BOOT_ENABLE, BOOT_ATTRIBUTES),
    "CustomMode": (CUSTOM_MODE, BOOT_ATTRIBUTES),
    "VendorKeysNv": (VENDOR_KEYS, BOOT_ATTRIBUTES | Attributes.TIME_BASED_AUTHENTICATED_WRITE),
    "certdb": (CERTIFICATE_DATABASE, AUTHENTICATED_ATTRIBUTES),
    "TlsCaCertificate": (VENDORS["tls-certificates"], BOOT_ATTRIBUTES),
    **dict.fromkeys(
        ("MokList", "MokListX", "MokListTrusted", "SbatLevel", "SHIM_DEBUG", "SHIM_VERBOSE", "FALLBACK_VERBOSE"),
        (SHIM, BOOT_ATTRIBUTES),
    ),
    "FB_NO_REBOOT": (SHIM, DEFAULT_ATTRIBUTES),
    **dict.fromkeys(
        ("LoaderEntryOneShot", "LoaderEntryDefault", "LoaderConfigTimeout", "LoaderConfigTimeoutOneShot"),
        (LOADER, DEFAULT_ATTRIBUTES),
    ),
}
_NUMBERED = re.compile(r"(?:Boot|Driver|SysPrep|PlatformRecovery|OsRecovery|Key)[0-9A-Fa-f]{4}")

_GUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_FILE_NAME = re.compile(rf"(.+)-({_GUID})", re.DOTALL)

_SHORT_ATTRIBUTES = {
    "nv": Attributes.NON_VOLATILE,
    "bs": Attributes.BOOT_SERVICE,
    "rt": Attributes.RUNTIME,
    "hr": Attributes.HARDWARE_ERROR_RECORD,
    "at": Attributes.TIME_BASED_AUTHENTICATED_WRITE,
}


def is_load_option(name: str) -> bool:
    """Whether a global variable of that name is an EFI_LOAD_OPTION (UEFI 2.10 §3.1.3)."""
    return bool(_NUMBERED.fullmatch(name)) and not name.startswith("Key")


def known_variable(name: str) -> tuple[UUID, Attributes] | None:
    """Whose variable ``name`` usually is and its attributes; None when that is not known."""
    if _NUMBERED.fullmatch(name):
        return EFI_GLOBAL_VARIABLE, DEFAULT_ATTRIBUTES
    return _KNOWN.get(name)


def vendor_name(vendor: UUID) -> str | None:
    """The name by which people may write a vendor, or None."""
    return next((name for name, known in VENDORS.items() if known == vendor), None)


def parse_vendor(text: str) -> UUID:
    """A vendor by its GUID or its name. Raises UsageError for anything else."""
    vendor = _vendor(text)
    if vendor is None:
        raise UsageError(f"not a vendor: {text!r}", hint=f"a GUID, or one of {', '.join(VENDORS)}")
    return vendor


def split_file_name(text: str) -> tuple[str, UUID] | None:
    """The two halves of ``NAME-GUID``, as efivarfs names its files; None when it is not of that form."""
    match = _FILE_NAME.fullmatch(text)
    return (match.group(1), UUID(match.group(2))) if match else None


def find_key(store: VariableStore, text: str, vendor: UUID | None = None) -> tuple[str, UUID]:
    """The name and the vendor of the variable that ``text`` means, which need not be in ``store``.

    A bare name is that of a well-known variable, or of the only variable of that name in the store.
    Raises UsageError when it is neither.
    """
    key = _explicit(text, vendor)
    if key is not None:
        return key
    present = [one.vendor for one in store.variables if one.name == text]
    known = known_variable(text)
    if known is not None and (known[0] in present or not present):
        return text, known[0]
    if len(present) == 1:
        return text, present[0]
    if present:
        owners = ", ".join(map(str, present))
        raise UsageError(f"several vendors have a variable {printable(text)}: {owners}", hint="choose with --vendor")
    raise UsageError(
        f"there is no variable {printable(text)}, and whose it would be is not known",
        hint="give its vendor, as GUID:NAME or with --vendor; `armvm vars list` shows the variables",
    )


def _explicit(text: str, vendor: UUID | None) -> tuple[str, UUID] | None:
    if vendor is not None:
        return text, vendor
    before, colon, after = text.partition(":")
    named = _vendor(before) if colon else None
    if named is not None:
        return after, named
    return split_file_name(text)


def parse_attributes(text: str) -> Attributes:
    """Attributes as a number (``0x7``) or as ``nv,bs,rt,at`` (at: time-based authenticated write).

    Raises UsageError for anything else.
    """
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if 0 <= number <= 0xFFFFFFFF:
        return Attributes(number)
    result = Attributes(0)
    for word in text.lower().split(","):
        if word.strip() not in _SHORT_ATTRIBUTES:
            raise UsageError(f"not attributes: {text!r}", hint=f"a number, or of {','.join(_SHORT_ATTRIBUTES)}")
        result |= _SHORT_ATTRIBUTES[word.strip()]
    return result


def format_attributes(attributes: Attributes) -> str:
    """The attributes in words; bits without a name as a number."""
    names = [flag.name.lower().replace("_", " ") for flag in Attributes if flag in attributes and flag.name]
    unknown = int(attributes) & ~sum(Attributes)
    return ", ".join([*names, hex(unknown)] if unknown else names) or "no attributes"


def _vendor(text: str) -> UUID | None:
    if re.fullmatch(_GUID, text):
        return UUID(text)
    return VENDORS.get(text.lower())
