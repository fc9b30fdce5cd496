"""GUIDs: ``uuid.UUID`` with the mixed-endian layout of UEFI (``bytes_le``), the well-known ones, derived ones."""

from __future__ import annotations

from uuid import UUID, uuid5

ESP_TYPE = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
"""Partition type of an EFI System Partition (UEFI 2.10 §5.3.3)."""
LINUX_DATA_TYPE = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
"""Partition type of a generic Linux file system."""
LINUX_ROOT_ARM64_TYPE = UUID("b921b045-1df0-41c3-af44-4c6f280d3fae")
"""Root file system for 64-bit ARM (Discoverable Partitions Specification)."""
LINUX_ROOT_ARM_TYPE = UUID("69dad710-2ce4-4e3c-b16c-21a1d49abed3")
"""Root file system for 32-bit ARM (Discoverable Partitions Specification)."""
XBOOTLDR_TYPE = UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172")
"""Extended boot loader partition (Boot Loader Specification)."""
EFI_GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
"""Vendor GUID of the variables that UEFI itself defines (UEFI 2.10 §3.3)."""

_NAMESPACE = UUID("5b4c8e0a-6f0e-5f65-9d0a-7d2f3a0c9b11")
"""Namespace of the GUIDs that armvm derives; fixed, so that the same input always gives the same GUID."""


def derived_guid(*parts: str) -> UUID:
    """A GUID that depends on nothing but ``parts``: what makes builds reproducible."""
    return uuid5(_NAMESPACE, "\0".join(parts))
