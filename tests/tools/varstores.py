"""Variable stores as edk2 leaves them in a flash, record by record: in every state, interrupted, and lying.

Written from edk2's headers with nothing of ``armvm``, so that our reader is not judged by our writer.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any
from uuid import UUID

AREA = 0x40000
ADDED = 0x3F
IN_TRANSITION = 0x3E
DELETED = 0x3D
DELETED_AFTER_TRANSITION = 0x3C
HEADER_ONLY = 0x7F
ERASED = 0xFF

NV_DATA_VOLUME = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
PLAIN = UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d")
JOURNAL = UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95")
OWN_VENDOR = UUID("6fb9bc2e-47ab-4e8b-9d7a-1f5d4ae0c6a1")


@dataclass(frozen=True)
class Raw:
    """One record. ``name_bytes`` and ``data_bytes`` overrule the sizes in its header."""

    name: str
    data: bytes = b"data"
    state: int = ADDED
    vendor: UUID = OWN_VENDOR
    attributes: int = 7
    raw_name: bytes | None = None
    name_bytes: int | None = None
    data_bytes: int | None = None

    def stored(self, *, plain: bool = False) -> bytes:
        name = self.name.encode("utf-16-le") + b"\0\0" if self.raw_name is None else self.raw_name
        name_bytes = len(name) if self.name_bytes is None else self.name_bytes
        data_bytes = len(self.data) if self.data_bytes is None else self.data_bytes
        header = struct.pack("<HBBI", 0x55AA, self.state, 0, self.attributes)
        header += b"" if plain else bytes(8 + 16 + 4)
        header += struct.pack("<II", name_bytes, data_bytes) + self.vendor.bytes_le
        whole = header + name + self.data
        return whole + b"\xff" * (-len(whole) % 4)


def variable_area(
    *records: Raw | bytes,
    volume: UUID = NV_DATA_VOLUME,
    store: UUID = AUTHENTICATED,
    signature: bytes = b"_FVH",
    revision: int = 2,
    checksum_error: int = 0,
    volume_bytes: int = 3 * AREA,
    header_bytes: int = 0x48,
    store_bytes: int = AREA - 0x48,
    form: int = 0x5A,
    health: int = 0xFE,
) -> bytes:
    """The first area: volume header, store header, records, erased flash."""

    def volume_header(checksum: int) -> bytes:
        return (
            bytes(16)
            + volume.bytes_le
            + struct.pack("<Q4sIHHHBB", volume_bytes, signature, 0xE36, header_bytes, checksum, 0, 0, revision)
            + struct.pack("<IIII", 256, 0x40000, 0, 0)
        )

    words = struct.unpack("<36H", volume_header(0))
    header = volume_header((-sum(words) + checksum_error) & 0xFFFF)
    header += store.bytes_le + struct.pack("<IBBHI", store_bytes, form, health, 0, 0)
    plain = store == PLAIN
    body = b"".join(one if isinstance(one, bytes) else one.stored(plain=plain) for one in records)
    return (header + body).ljust(AREA, b"\xff")


def journal(*writes: tuple[int, int], relative_offset: int = -2 * AREA) -> bytes:
    """The working block with one record for each write: (flags of the write, flags of its record), cleared when set.

    Flags of a write: 1 allocated, 2 records allocated, 4 complete; of a record: 1 boot block, 2 spare complete,
    4 destination complete.
    """
    header = JOURNAL.bytes_le + struct.pack("<IIQ", 0xFFFFFFFF, 0xFFFFFFFF, AREA - 32)
    header = JOURNAL.bytes_le + struct.pack("<IIQ", zlib.crc32(header), 0xFFFFFFFE, AREA - 32)
    body = b""
    for write_flags, record_flags in writes:
        caller = UUID("3d8f0f1a-1111-4222-8333-444455556666").bytes_le
        body += struct.pack("<B3x16s4xQQ", 0xF8 | write_flags, caller, 1, 0)
        body += struct.pack("<B7xQQQq", 0xF8 | record_flags, 0, 0x48, AREA - 0x48, relative_offset)
    return (header + body).ljust(AREA, b"\xff")


def flash(*records: Raw | bytes, working: bytes | None = None, spare: bytes | None = None, **lies: Any) -> bytes:
    """A store's three areas; ``lies`` go to ``variable_area``."""
    first = variable_area(*records, **lies)
    return first + (working or journal()) + (spare or b"\xff" * AREA)
