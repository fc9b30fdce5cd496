"""The structures of ext2, ext3 and ext4: superblock, inode, directory block (Linux, Documentation/filesystems/ext4).

Bytes to frozen values; every number is judged before anybody uses it. Checksums are not: a flipped bit that matters
makes a file that is judged anyway, and CRC32C in Python would cost more than the reading.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from armvm.errors import InputError

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_BYTES = 1024
MAGIC = 0xEF53
ROOT_INODE = 2

META_BG = 0x10
_IS_64BIT = 0x80
_FILETYPE = 0x02
_RECOVER = 0x04
_LARGEDIR = 0x4000
_SPARSE_SUPER = 0x01
_SPARSE_SUPER2 = 0x200
_READABLE = 0x02 | 0x04 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
"""The incompatible features that do not stand in a reader's way: filetype, recover, meta_bg, extents, 64bit, mmp,
flex_bg, ea_inode, csum_seed, largedir, inline_data, and encrypt and casefold, which single inodes then have."""

EXTENTS_FLAG = 0x80000
INLINE_DATA_FLAG = 0x10000000
ENCRYPTED_FLAG = 0x800

_INODE = struct.Struct("<H2xI24xI4x60s8xI")
_XATTR_MAGIC = 0xEA020000
_XATTR_ENTRY = struct.Struct("<BBHIII")
_SYSTEM_INDEX = 7


@dataclass(frozen=True, slots=True)
class ExtSuperblock:
    """What the superblock says of the whole file system, all of it found possible."""

    block_size: int
    block_count: int
    first_data_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_count: int
    inode_size: int
    descriptor_size: int
    first_meta_group: int
    compatible: int
    incompatible: int
    read_only_compatible: int

    @property
    def has_types(self) -> bool:
        """Whether directory entries say the type of what they name, in the upper half of the name's length."""
        return bool(self.incompatible & _FILETYPE)

    @property
    def needs_recovery(self) -> bool:
        """Whether its journal holds changes that are not in place: it was not unmounted."""
        return bool(self.incompatible & _RECOVER)

    @property
    def has_large_folders(self) -> bool:
        """Whether the upper half of a size counts in directories too."""
        return bool(self.incompatible & _LARGEDIR)

    def has_superblock_copy(self, group: int) -> bool:
        """Whether a block group starts with a copy of the superblock (``sparse_super``: 0, 1, powers of 3, 5 and 7)."""
        if self.compatible & _SPARSE_SUPER2:
            return group == 0  # the other two are in superblock fields, and never with meta_bg
        if group <= 1 or not self.read_only_compatible & _SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))


@dataclass(frozen=True, slots=True)
class ExtInode:
    """An inode: ``block`` are the 60 bytes that lead to its content, or hold it; ``extra`` is what follows them."""

    number: int
    mode: int
    size_bytes: int
    flags: int
    block: bytes
    extra: bytes

    @property
    def is_inline(self) -> bool:
        """Whether its content is in the inode itself."""
        return bool(self.flags & INLINE_DATA_FLAG)

    def inline_content(self) -> bytes:
        """The inode's own bytes: the 60, then the value of the attribute ``system.data``; may be too few."""
        return self.block + _system_data(self.extra)


def parse_superblock(block: bytes, *, subject: str) -> ExtSuperblock:
    """Read the superblock. Raises InputError when there is none, when it contradicts itself, or is of another time."""

    def fault(message: str, found: object, expected: str | None = None) -> InputError:
        return InputError(message, subject=subject, offset_bytes=SUPERBLOCK_OFFSET, found=str(found), expected=expected)

    def number(offset: int, form: str = "I") -> int:
        return int(struct.unpack_from(f"<{form}", block, offset)[0])

    if len(block) < SUPERBLOCK_BYTES or number(0x38, "H") != MAGIC:
        raise fault("is no ext2, ext3 or ext4 file system", "no magic number")
    incompatible = number(0x60)
    if incompatible & ~_READABLE:
        raise fault("has features that this reader does not know", f"{incompatible & ~_READABLE:#x}")
    shift = number(0x18)
    if shift > 6:
        raise fault("the block size is impossible", f"2 ** {10 + shift}", "at most 65536")
    block_size = 1024 << shift
    wide = bool(incompatible & _IS_64BIT)
    inode_size = number(0x58, "H") if number(0x4C) else 128
    if inode_size < 128 or inode_size > block_size or inode_size & inode_size - 1:
        raise fault("the inode size is impossible", inode_size)
    descriptor_size = number(0xFE, "H") if wide else 32
    if descriptor_size < (64 if wide else 32) or descriptor_size > block_size or descriptor_size & descriptor_size - 1:
        raise fault("the size of group descriptors is impossible", descriptor_size)
    parsed = ExtSuperblock(
        block_size=block_size,
        block_count=number(0x04) | (number(0x150) << 32 if wide else 0),
        first_data_block=number(0x14),
        blocks_per_group=number(0x20),
        inodes_per_group=number(0x28),
        inode_count=number(0x00),
        inode_size=inode_size,
        descriptor_size=descriptor_size,
        first_meta_group=number(0x104),
        compatible=number(0x5C),
        incompatible=incompatible,
        read_only_compatible=number(0x64),
    )
    if parsed.first_data_block > 1 or parsed.block_count <= parsed.first_data_block:
        raise fault("the number of blocks is impossible", parsed.block_count)
    if not 0 < parsed.blocks_per_group <= 1 << 26:
        raise fault("the number of blocks in a group is impossible", parsed.blocks_per_group)
    if not 0 < parsed.inodes_per_group <= 8 * block_size or parsed.inode_count < ROOT_INODE:
        raise fault("the number of inodes is impossible", f"{parsed.inode_count} by {parsed.inodes_per_group}")
    return parsed


def parse_inode(raw: bytes, number: int, superblock: ExtSuperblock) -> ExtInode:
    """Read one inode of ``inode_size`` bytes."""
    mode, size_low, flags, block, size_high = _INODE.unpack_from(raw)
    folder = mode & 0xF000 == 0x4000
    has_high = not folder or superblock.has_large_folders
    return ExtInode(number, mode, size_low | (size_high << 32 if has_high else 0), flags, block, raw[128:])


def parse_folder(block: bytes, *, has_types: bool, subject: str) -> Iterator[tuple[bytes, int]]:
    """The names and inode numbers in one directory block, without ``.`` and ``..``.

    The nodes of a hashed directory's tree look like one unused entry, so reading block by block finds all names.
    Raises InputError where an entry does not fit.
    """
    offset, size = 0, len(block)
    while offset <= size - 8:
        inode, length, name_length, name_high = struct.unpack_from("<IHBB", block, offset)
        if size >= 65536:  # lengths that 16 bits cannot hold (ext4_rec_len_from_disk)
            length = 65536 if length in (0, 65535) else length & 0xFFFC | (length & 3) << 16
        if not has_types:
            name_length |= name_high << 8
        if length < 8 + name_length or length & 3 or offset + length > size:
            raise InputError("a directory entry does not fit its block", subject=subject, found=f"{length} bytes")
        name = block[offset + 8 : offset + 8 + name_length]
        if inode and name_length and name not in (b".", b".."):
            if b"/" in name or b"\0" in name:
                raise InputError("a name in the directory holds a separator", subject=subject)
            yield name, inode
        offset += length


def _system_data(extra: bytes) -> bytes:
    """The value of ``system.data`` among the attributes in an inode's body; empty when there is none."""
    if len(extra) < 4:
        return b""
    start = int.from_bytes(extra[:2], "little")
    if start + 4 > len(extra) or int.from_bytes(extra[start : start + 4], "little") != _XATTR_MAGIC:
        return b""
    first = at = start + 4
    while at + _XATTR_ENTRY.size <= len(extra) and extra[at : at + 4] != b"\0\0\0\0":
        name_length, index, value_offset, value_inode, value_size, _ = _XATTR_ENTRY.unpack_from(extra, at)
        name = extra[at + _XATTR_ENTRY.size : at + _XATTR_ENTRY.size + name_length]
        if index == _SYSTEM_INDEX and name == b"data" and not value_inode:
            return extra[first + value_offset : first + value_offset + value_size]
        at += _XATTR_ENTRY.size + (name_length + 3 & ~3)
    return b""


def _is_power(number: int, base: int) -> bool:
    power = base
    while power < number:
        power *= base
    return power == number
