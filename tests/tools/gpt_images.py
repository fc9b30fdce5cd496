"""Makes disks with a GUID Partition Table, good ones and ones with exactly one fault, without the code they judge."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
DISK_GUID = UUID("d15c0000-1111-4222-8333-444455556666")
MIB = 1 << 20

# Offsets of the header's fields (UEFI 2.10 Table 5.5) and of an entry's (Table 5.6).
REVISION, HEADER_SIZE, HEADER_CRC, RESERVED, MY_LBA, ALTERNATE_LBA = 8, 12, 16, 20, 24, 32
FIRST_USABLE, LAST_USABLE, GUID, ENTRIES_LBA, COUNT, ENTRY_SIZE, ENTRIES_CRC = 40, 48, 56, 72, 80, 84, 88
UNIQUE, FIRST, LAST, ATTRIBUTES, NAME = 16, 32, 40, 48, 56
RECORD = 446  # the first MBR partition record


@dataclass(frozen=True)
class Entry:
    """A partition entry; ``number`` 1 is the first of the array."""

    number: int
    first_lba: int
    last_lba: int
    type_guid: UUID = LINUX
    unique_guid: UUID | None = None
    attributes: int = 0
    name: str = ""

    def packed(self) -> bytes:
        unique = self.unique_guid or UUID(int=0x0A11_0000_0000_4000_8000_0000_0000_0000 + self.number)
        name = self.name.encode("utf-16-le")
        places = struct.pack("<3Q", self.first_lba, self.last_lba, self.attributes)
        return self.type_guid.bytes_le + unique.bytes_le + places + name.ljust(72, b"\0")


def usual_entries(size: int, sector_size: int = 512) -> tuple[Entry, ...]:
    """An ESP in the second MiB, and a Linux partition from the third up to the last whole MiB but one."""
    mib = MIB // sector_size
    end = size // MIB * mib - mib
    return (
        Entry(1, mib, 2 * mib - 1, ESP, name="EFI System"),
        Entry(2, 2 * mib, end - 1, name="root ☃"),
    )


def good_gpt(
    size: int = 4 * MIB,
    sector_size: int = 512,
    partitions: Sequence[Entry] | None = None,
    *,
    entry_count: int = 128,
    entry_size: int = 128,
    disk_guid: UUID = DISK_GUID,
) -> bytearray:
    """A disk of ``size`` bytes, all zeros but for a faultless GPT."""
    partitions = usual_entries(size, sector_size) if partitions is None else partitions
    image = bytearray(size)
    last = size // sector_size - 1
    sectors = -(-max(entry_count * entry_size, 16384) // sector_size)
    struct.pack_into("<B3sB3s2I", image, RECORD, 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    image[510:512] = b"\x55\xaa"
    for my_lba, other, array in ((1, last, 2), (last, 1, last - sectors)):
        for entry in partitions:
            start = array * sector_size + (entry.number - 1) * entry_size
            image[start : start + 128] = entry.packed()
        header = struct.pack(
            "<8s4I4Q16sQ3I",
            *(b"EFI PART", 0x10000, 92, 0, 0, my_lba, other, 2 + sectors, last - sectors - 1),
            *(disk_guid.bytes_le, array, entry_count, entry_size, 0),
        )
        image[my_lba * sector_size : my_lba * sector_size + 92] = header
    return fix_crcs(image, sector_size)


def fix_crcs(image: bytearray, sector_size: int = 512) -> bytearray:
    """Make both headers' CRCs right for what they now say, so that a lie is consistent; gives ``image`` back."""
    for header in header_offsets(image, sector_size):
        size = field(image, header + HEADER_SIZE, "<I")
        start = field(image, header + ENTRIES_LBA, "<Q") * sector_size
        length = field(image, header + COUNT, "<I") * field(image, header + ENTRY_SIZE, "<I")
        if start + length <= len(image):
            put(image, header + ENTRIES_CRC, "<I", zlib.crc32(image[start : start + length]))
        put(image, header + HEADER_CRC, "<I", 0)
        if size <= sector_size:
            put(image, header + HEADER_CRC, "<I", zlib.crc32(image[header : header + size]))
    return image


def header_offsets(image: bytearray, sector_size: int = 512) -> list[int]:
    """Where the image has GPT headers, in bytes: at LBA 1, where that one says, and at the last LBA."""
    last = len(image) // sector_size - 1
    alternate = field(image, sector_size + ALTERNATE_LBA, "<Q")
    places = dict.fromkeys([1, min(alternate, last), last])
    return [lba * sector_size for lba in places if image.startswith(b"EFI PART", lba * sector_size)]


def put(image: bytearray, offset: int, format: str, value: object) -> None:
    struct.pack_into(format, image, offset, value)


def field(image: bytearray, offset: int, format: str) -> int:
    return int(struct.unpack_from(format, image, offset)[0])


def array_offset(image: bytearray, header: int, sector_size: int = 512) -> int:
    """Where the entries of the header at offset ``header`` start, in bytes."""
    return field(image, header + ENTRIES_LBA, "<Q") * sector_size


# One fault each. Unless the fault is a wrong CRC, all CRCs are right: the lie is consistent.

_ONE = {"primary": 0, "backup": 1}


def _mbr(offset: int, format: str, value: object) -> bytes:
    image = good_gpt()
    put(image, offset, format, value)
    return bytes(image)


def _header(which: str, offset: int, format: str, value: object, *, crcs: bool = True) -> bytes:
    """A good disk but for one field of the primary's or the backup's header."""
    image = good_gpt()
    put(image, header_offsets(image)[_ONE[which]] + offset, format, value)
    return bytes(fix_crcs(image) if crcs else image)


def _no_disk_guid() -> bytes:
    return bytes(good_gpt(disk_guid=UUID(int=0)))


def _entry(number: int, offset: int, format: str, value: object) -> bytes:
    """A good disk but for one field of one partition, the same in both tables."""
    image = good_gpt()
    for header in header_offsets(image):
        put(image, array_offset(image, header) + (number - 1) * 128 + offset, format, value)
    return bytes(fix_crcs(image))


def _array_crc(which: str) -> bytes:
    image = good_gpt()
    header = header_offsets(image)[_ONE[which]]
    put(image, array_offset(image, header) + ATTRIBUTES, "<Q", 1)
    return bytes(image)


def _misplaced(which: str) -> bytes:
    """A table whose entries stand in the middle of a partition."""
    image = good_gpt()
    header = header_offsets(image)[_ONE[which]]
    start = array_offset(image, header)
    image[3000 * 512 : 3032 * 512] = image[start : start + 32 * 512]
    put(image, header + ENTRIES_LBA, "<Q", 3000)
    return bytes(fix_crcs(image))


def _crowded(which: str) -> bytes:
    """Tables of 100 entries, one of which keeps room for no more: less than UEFI's 16 KiB."""
    image = good_gpt()
    last = len(image) // 512 - 1
    if which == "primary":
        usable, value = FIRST_USABLE, 2 + 25
    else:
        usable, value = LAST_USABLE, last - 26
        start = array_offset(image, last * 512)
        image[(last - 25) * 512 : last * 512] = image[start : start + 25 * 512]
        put(image, last * 512 + ENTRIES_LBA, "<Q", last - 25)
    for header in header_offsets(image):
        put(image, header + COUNT, "<I", 100)
        put(image, header + usable, "<Q", value)
    return bytes(fix_crcs(image))


def _second_entries() -> bytes:
    image = good_gpt()
    put(image, array_offset(image, header_offsets(image)[1]) + 128 + NAME, "<H", ord("R"))
    return bytes(fix_crcs(image))


def _grown() -> bytes:
    image = good_gpt() + bytes(MIB)
    put(image, RECORD + 12, "<I", len(image) // 512 - 1)
    return bytes(image)


def _cut() -> bytes:
    image = good_gpt(8 * MIB, partitions=usual_entries(4 * MIB))[: 4 * MIB]
    put(image, RECORD + 12, "<I", len(image) // 512 - 1)
    return bytes(image)


def _without_header(which: str) -> bytes:
    image = good_gpt()
    start = header_offsets(image)[_ONE[which]]
    image[start : start + 512] = bytes(512)
    return bytes(image)


def _hybrid() -> bytes:
    image = good_gpt()
    struct.pack_into("<B3sB3s2I", image, RECORD + 16, 0x80, b"\0\2\0", 0x0C, b"\xff\xff\xff", 2048, 2048)
    return bytes(image)


def _mbr_only() -> bytes:
    image = bytearray(4 * MIB)
    struct.pack_into("<B3sB3s2I", image, RECORD, 0x80, b"\0\2\0", 0x0C, b"\xff\xff\xff", 2048, 4096)
    image[510:512] = b"\x55\xaa"
    return bytes(image)


def _entries(*entries: Entry) -> bytes:
    return bytes(good_gpt(partitions=entries))


def _twins() -> bytes:
    return _entries(*(replace(entry, unique_guid=DISK_GUID) for entry in _USUAL))


def _too_many() -> bytes:
    count = 8192
    entries = [Entry(number, 4096 + number, 4096 + number) for number in range(1, count + 1)]
    return bytes(good_gpt(16 * MIB, partitions=entries, entry_count=count))


_USUAL = usual_entries(4 * MIB)


def _of_either(which: str) -> dict[str, Callable[[], bytes]]:
    last = 4 * MIB // 512 - 1
    own = 1 if which == "primary" else last
    return {
        f"{which}-header-missing": partial(_without_header, which),
        f"{which}-header-size": partial(_header, which, HEADER_SIZE, "<I", 91),
        f"{which}-header-size-unusual": partial(_header, which, HEADER_SIZE, "<I", 96),
        f"{which}-header-crc": partial(_header, which, HEADER_CRC, "<I", 0xBAD, crcs=False),
        f"{which}-header-revision": partial(_header, which, REVISION, "<I", 0x10002),
        f"{which}-header-reserved": partial(_header, which, RESERVED, "<I", 1),
        f"{which}-header-tail": partial(_header, which, 100, "<B", 1),
        f"{which}-my-lba": partial(_header, which, MY_LBA, "<Q", own ^ 2),
        f"{which}-alternate-lba": partial(_header, which, ALTERNATE_LBA, "<Q", 5),
        f"{which}-disk-guid-zero": _no_disk_guid,
        f"{which}-usable-range": partial(_header, which, LAST_USABLE, "<Q", last),
        f"{which}-entry-size": partial(_header, which, ENTRY_SIZE, "<I", 192),
        f"{which}-entry-size-unusual": lambda: bytes(good_gpt(entry_size=256)),
        f"{which}-entry-count": partial(_header, which, COUNT, "<I", 0xFFFFFFFF),
        f"{which}-entry-count-unusual": lambda: bytes(good_gpt(entry_count=160)),
        f"{which}-array-outside-disk": partial(_header, which, ENTRIES_LBA, "<Q", 1 << 63),
        f"{which}-array-place": partial(_misplaced, which),
        f"{which}-array-room": partial(_crowded, which),
        f"{which}-array-crc": partial(_array_crc, which),
    }


BROKEN: dict[str, Callable[[], bytes]] = {
    "disk-size": lambda: bytes(good_gpt() + b"\0"),
    "other-sector-size": lambda: bytes(good_gpt(sector_size=4096)),
    "no-gpt": lambda: bytes(4 * MIB),
    "mbr-only": _mbr_only,
    "mbr-signature": partial(_mbr, 510, "<H", 0),
    "pmbr-missing": partial(_mbr, RECORD, "16s", bytes(16)),
    "pmbr-start": partial(_mbr, RECORD + 8, "<I", 2),
    "pmbr-size": partial(_mbr, RECORD + 12, "<I", 100),
    "pmbr-size-maximal": partial(_mbr, RECORD + 12, "<I", 0xFFFFFFFF),
    "pmbr-boot-indicator": partial(_mbr, RECORD, "<B", 0x80),
    "pmbr-chs": partial(_mbr, RECORD + 1, "3s", b"\1\1\0"),
    "pmbr-other-records": partial(_mbr, RECORD + 32 + 8, "<I", 77),
    "pmbr-disk-signature": partial(_mbr, 440, "<I", 0xC0FFEE),
    "hybrid-mbr": _hybrid,
    "backup-not-at-end": _grown,
    "disk-truncated": _cut,
    **_of_either("primary"),
    **_of_either("backup"),
    "disk-guid-differs": partial(_header, "backup", GUID, "16s", b"another GUID...."),
    "usable-range-differs": partial(_header, "backup", FIRST_USABLE, "<Q", 35),
    "entry-geometry-differs": partial(_header, "backup", COUNT, "<I", 120),
    "entries-differ": _second_entries,
    "partition-range": partial(_entry, 2, LAST, "<Q", 2048),
    "partition-outside-disk": partial(_entry, 2, LAST, "<Q", 1 << 40),
    "partition-outside-usable": partial(_entry, 2, LAST, "<Q", 4 * MIB // 512 - 10),
    "partition-overlap": partial(_entry, 1, LAST, "<Q", 4096),
    "partition-guid-duplicate": _twins,
    "partition-guid-zero": partial(_entry, 2, UNIQUE, "16s", bytes(16)),
    "partition-attributes": partial(_entry, 2, ATTRIBUTES, "<Q", 1 << 20),
    "partition-name": partial(_entry, 1, NAME, "<H", 0xD800),
    "partition-name-unterminated": lambda: _entries(_USUAL[0], replace(_USUAL[1], name="x" * 36)),
    "partition-unaligned": partial(_entry, 1, FIRST, "<Q", 2049),
    "too-many-partitions": _too_many,
}
"""Problem code to a maker of a disk (512-byte sectors) that has this fault, and no other where that is possible."""
