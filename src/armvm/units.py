"""Sizes in bytes and sectors: parsing, showing, aligning."""

from __future__ import annotations

import re

from armvm.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

SECTOR_SIZES = (512, 4096)
"""The logical sector sizes, in bytes, that a virtual disk may have."""

_FACTORS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([BKMGT]?)(?:iB|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read a size such as ``512``, ``64M``, ``1.5GiB`` into bytes (factors of 1024, as qemu-img has them).

    Raises UsageError when the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a size: {text!r}", hint="write for example 512M, 4G or a number of bytes")
    number, unit = match.groups()
    factor = _FACTORS[unit.upper()]
    return int(number) * factor if number.isdigit() else int(float(number) * factor)


def format_size(size_bytes: int) -> str:
    """Show a size for people: ``1.5 GiB``, ``64 MiB``, ``512 B``."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:.0f} {unit}" if size_bytes % factor == 0 else f"{value:.1f} {unit}"
    return f"{size_bytes} B"


def align_up(value: int, alignment: int) -> int:
    """The least multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    """The greatest multiple of ``alignment`` that is not above ``value``."""
    return value // alignment * alignment
