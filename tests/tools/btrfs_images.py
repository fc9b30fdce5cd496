"""A btrfs with subvolumes and compressed files, as bytes: mkfs.btrfs makes neither, and mounting one needs root.

One chunk, one leaf a tree; no extent tree, so it is for readers (``btrfs restore`` among them).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import zstandard

from armvm.units import KIB, MIB

SIZE_BYTES = 16 * MIB
NODE_BYTES = 16 * KIB
CHUNK_START, CHUNK_BYTES = 1 * MIB, 14 * MIB
FSID, DEVICE_UUID, CHUNK_UUID = (bytes([number]) * 16 for number in (0xF5, 0xDE, 0xC4))
DEFAULT_SUBVOLUME = 257
"""The subvolume that a mount without options shows."""

_INODE_ITEM, _INODE_REF, _DIR_ITEM, _DIR_INDEX, _EXTENT_DATA = 1, 12, 84, 96, 108
_ROOT_ITEM, _ROOT_BACKREF, _ROOT_REF, _DEV_EXTENT, _DEV_ITEM, _CHUNK_ITEM = 132, 144, 156, 204, 216, 228
_FILE, _FOLDER, _LINK = 1, 2, 7
_MODES = {_FILE: 0o100644, _FOLDER: 0o040755, _LINK: 0o120777}
_COMPRESSIONS = {"none": 0, "zlib": 1, "lzo": 2, "zstd": 3}

Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class BtrfsFile:
    """A file: its content in an extent of at most 128 KiB, packed as ``compression`` says, behind a ``hole``."""

    content: bytes
    compression: str = "none"
    inline: bool = False
    hole: int = 0


@dataclass(frozen=True, slots=True)
class BtrfsLink:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class BtrfsSubvolume:
    """Another subvolume that hangs here, by its number."""

    number: int


Entry = BtrfsFile | BtrfsLink | BtrfsSubvolume


@dataclass(slots=True)
class _Image:
    content: bytearray = field(default_factory=lambda: bytearray(SIZE_BYTES))
    free: int = CHUNK_START

    def place(self, data: bytes) -> int:
        """Store data at the next free place; logical and physical addresses are the same."""
        at = self.free
        self.content[at : at + len(data)] = data
        self.free += -(-max(len(data), 1) // NODE_BYTES) * NODE_BYTES
        return at


def btrfs_image(subvolumes: Mapping[int, Mapping[str, Entry]], names: Mapping[int, tuple[int, str]]) -> bytes:
    """An image of ``subvolumes`` by number (5 is the top level), each a flat folder of entries.

    ``names`` says where each hangs: in which subvolume's root, and under which name.
    """
    image = _Image()
    roots: dict[Key, bytes] = {}
    for number, entries in subvolumes.items():
        tree = _leaf(image, _folder_items(image, entries, number), number)
        roots[number, _ROOT_ITEM, 0] = _root_item(tree)
    for number, (parent, name) in names.items():
        reference = struct.pack("<QQH", 256, 2, len(name)) + name.encode()
        roots[number, _ROOT_BACKREF, parent] = reference
        roots[parent, _ROOT_REF, number] = reference
    extent = struct.pack("<4Q16s", 3, 256, CHUNK_START, CHUNK_BYTES, CHUNK_UUID)
    roots[4, _ROOT_ITEM, 0] = _root_item(_leaf(image, {(1, _DEV_EXTENT, CHUNK_START): extent}, 4))
    location = struct.pack("<QBQ", DEFAULT_SUBVOLUME, _ROOT_ITEM, (1 << 64) - 1)
    roots[6, _INODE_ITEM, 0] = _inode(_FOLDER, 0)
    roots[6, _INODE_REF, 6] = struct.pack("<QH", 0, 2) + b".."
    roots[6, _DIR_ITEM, name_hash(b"default")] = location + struct.pack("<QHHB", 1, 0, 7, _FOLDER) + b"default"
    root_tree = _leaf(image, roots, 1)
    chunk = struct.pack("<QQQQIIIHH", CHUNK_BYTES, 2, 64 * KIB, 7, 4096, 4096, 4096, 1, 1)
    chunk += struct.pack("<QQ16s", 1, CHUNK_START, DEVICE_UUID)
    device = struct.pack("<QQQIIIQQQIBB16s16s", 1, SIZE_BYTES, CHUNK_BYTES, 4096, 4096, 4096, 0, 1, 0, 0, 0, 0,
                         DEVICE_UUID, FSID)  # fmt: skip
    chunk_key = (256, _CHUNK_ITEM, CHUNK_START)
    chunk_tree = _leaf(image, {(1, _DEV_ITEM, 1): device, chunk_key: chunk}, 3)
    superblock = _superblock(root_tree, chunk_tree, device, struct.pack("<QBQ", *chunk_key) + chunk)
    image.content[64 * KIB : 68 * KIB] = superblock
    return bytes(image.content)


def _folder_items(image: _Image, entries: Mapping[str, Entry], owner: int) -> dict[Key, bytes]:
    items: dict[Key, bytes] = {
        (256, _INODE_ITEM, 0): _inode(_FOLDER, 2 * sum(len(name.encode()) for name in entries)),
        (256, _INODE_REF, 256): struct.pack("<QH", 0, 2) + b"..",
    }
    for index, (name, entry) in enumerate(entries.items(), start=2):
        raw, number = name.encode(), 255 + index
        kind = _FOLDER if isinstance(entry, BtrfsSubvolume) else _LINK if isinstance(entry, BtrfsLink) else _FILE
        location = struct.pack("<QBQ", number, _INODE_ITEM, 0)
        if isinstance(entry, BtrfsSubvolume):
            location = struct.pack("<QBQ", entry.number, _ROOT_ITEM, (1 << 64) - 1)
        entry_item = location + struct.pack("<QHHB", 1, 0, len(raw), kind) + raw
        items[256, _DIR_ITEM, name_hash(raw)] = items[256, _DIR_INDEX, index] = entry_item
        if isinstance(entry, BtrfsSubvolume):
            continue
        items[number, _INODE_REF, 256] = struct.pack("<QH", index, len(raw)) + raw
        file = BtrfsFile(entry.target.encode(), inline=True) if isinstance(entry, BtrfsLink) else entry
        items[number, _INODE_ITEM, 0] = _inode(kind, file.hole + len(file.content))
        items[number, _EXTENT_DATA, file.hole] = _extent(image, file)
    return items


def _extent(image: _Image, file: BtrfsFile) -> bytes:
    content, kind = file.content, _COMPRESSIONS[file.compression]
    length = len(content) if file.inline else -(-len(content) // 4096) * 4096
    packed = pack(content if file.inline else content.ljust(length, b"\0"), file.compression)
    head = struct.pack("<QQBBHB", 1, length, kind, 0, 0, 0 if file.inline else 1)
    if file.inline:
        return head + packed
    stored = -(-len(packed) // 4096) * 4096
    return head + struct.pack("<4Q", image.place(packed.ljust(stored, b"\0")), stored, 0, length)


def pack(content: bytes, compression: str) -> bytes:
    """Compress as btrfs does: whole with zlib and zstd, in segments of a sector with LZO."""
    if compression == "zlib":
        return zlib.compress(content)
    if compression == "zstd":
        return zstandard.ZstdCompressor(write_content_size=False).compress(content)
    if compression == "none":
        return content
    packed = bytearray(4)
    for start in range(0, len(content), 4096):
        segment = _lzo_literals(content[start : start + 4096])
        packed += struct.pack("<I", len(segment)) + segment
        left = 4096 - len(packed) % 4096
        packed += bytes(left if left < 4 else 0)
    packed[:4] = struct.pack("<I", len(packed))
    return bytes(packed)


def _lzo_literals(content: bytes) -> bytes:
    """An LZO1X stream that only copies literals, and ends."""
    if len(content) <= 238:
        head = bytes([17 + len(content)])
    else:
        rest = len(content) - 18
        head = b"\0" + b"\0" * ((rest - 1) // 255) + bytes([(rest - 1) % 255 + 1])
    return head + content + b"\x11\0\0"


def _inode(kind: int, size_bytes: int) -> bytes:
    fields = struct.pack("<5Q4I3Q4Q", 1, 1, size_bytes, size_bytes, 0, 1, 0, 0, _MODES[kind], 0, 0, 0, 0, 0, 0, 0)
    return fields + bytes(48)


def _root_item(tree: int) -> bytes:
    item = _inode(_FOLDER, 3) + struct.pack("<7QI17sBB", 1, 256, tree, 0, NODE_BYTES, 0, 0, 1, bytes(17), 0, 0)
    return (item + struct.pack("<Q", 1)).ljust(439, b"\0")


def _leaf(image: _Image, items: Mapping[Key, bytes], owner: int) -> int:
    at = image.free
    heads, data = b"", b""
    for key in sorted(items):
        data = items[key] + data
        heads += struct.pack("<QBQII", *key, NODE_BYTES - 101 - len(data), len(items[key]))
    header = FSID + struct.pack("<QQ16sQQIB", at, 1 | 1 << 56, CHUNK_UUID, 1, owner, len(items), 0)
    body = (header + heads).ljust(NODE_BYTES - 32 - len(data), b"\0") + data
    assert len(body) == NODE_BYTES - 32, "too much for one leaf"
    image.place(_checksum(body) + body)
    return at


def _superblock(root: int, chunk_root: int, device: bytes, system_chunk: bytes) -> bytes:
    body = FSID + struct.pack("<QQ8sQQQQQ", 64 * KIB, 1, b"_BHRfS_M", 1, root, chunk_root, 0, 0)
    body += struct.pack("<4Q5I", SIZE_BYTES, 8 * MIB, 6, 1, 4096, NODE_BYTES, NODE_BYTES, 4096, len(system_chunk))
    # mixed backrefs, default subvolume, mixed groups, LZO, zstd, extended inode references, no holes
    body += struct.pack("<4QHBBB", 1, 0, 0, 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x200, 0, 0, 0, 0)
    body += device + b"fedora".ljust(256, b"\0") + struct.pack("<QQ", 0, 0) + bytes(240)
    body = body.ljust(0x32B - 32, b"\0") + system_chunk
    body = body.ljust(4096 - 32, b"\0")
    return _checksum(body) + body


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", crc32c(content) ^ 0xFFFFFFFF).ljust(32, b"\0")


def name_hash(name: bytes) -> int:
    """The key under which a directory has a name."""
    return crc32c(name, 0xFFFFFFFE)


def crc32c(content: bytes, start: int = 0xFFFFFFFF) -> int:
    """CRC-32C without the last inversion."""
    value = start
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = tuple(_table_entry(value) for value in range(256))
