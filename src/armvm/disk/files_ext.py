"""Files on ext2, ext3 and ext4 by path, read only.

Our own reader, because the one library without a copyleft (``ext4`` 1.4 on PyPI) was tried and does not serve: it reads
no block maps (every path on ext2 and ext3 comes back as "not found") and no inline directories, gives other bytes than
the file's for inline data beyond 60 bytes, without an error, has no bounds on what a damaged tree makes it read, reads
every block group's descriptor when it opens, and pins its own dependencies to single versions.

Lazy: opening reads the superblock; a path reads the inodes and directories on its way. What a journal holds that was
not written back is not replayed (``needs_recovery`` says that there may be some).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache

from armvm.disk.ext_format import (
    ENCRYPTED_FLAG,
    EXTENTS_FLAG,
    META_BG,
    ROOT_INODE,
    SUPERBLOCK_BYTES,
    SUPERBLOCK_OFFSET,
    ExtInode,
    parse_folder,
    parse_inode,
    parse_superblock,
)
from armvm.disk.ext_map import BlockMap, ExtentMap, IndirectMap
from armvm.disk.files import MOST_ENTRIES, MOST_FOLDER_BYTES, BaseFileSystem, FileEntry, FileKind
from armvm.disk.storage import BaseDisk, Disk, Extent, MemoryDisk
from armvm.errors import InputError

_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.FOLDER, stat.S_IFLNK: FileKind.LINK}
_INODE_BLOCK_BYTES = 60
_LONGEST_LINK = 4096
_KEPT_BLOCKS = 256
_KEPT_FOLDERS = 8


class ExtFileSystem(BaseFileSystem):
    """The ext2, ext3 or ext4 file system on ``disk``. ``kind`` is what ``blkid`` calls it.

    Raises InputError when there is none, or one with features that change its structures in ways unknown here.
    """

    def __init__(self, disk: Disk, *, name: str, kind: str = "ext4") -> None:
        super().__init__(name, kind)
        self.disk = disk
        if disk.size_bytes < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES:
            raise InputError("is too small for an ext file system", subject=name)
        self._superblock = parse_superblock(disk.read(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES), subject=name)
        self._read_block = lru_cache(maxsize=_KEPT_BLOCKS)(self._read_one_block)
        self._folder = lru_cache(maxsize=_KEPT_FOLDERS)(self._read_folder)

    @property
    def needs_recovery(self) -> bool:
        """Whether it was not unmounted: its journal may hold changes that a kernel would apply first."""
        return self._superblock.needs_recovery

    def block_runs(self, path: str) -> tuple[tuple[int, int], ...]:
        """Where a file's content is: offset and length in bytes, in its order, holes left out."""
        entry = self._found(path)
        content = self._open(entry)
        if not isinstance(content, _ExtFile):
            return ()
        return tuple(content.placed())

    def _root(self) -> FileEntry:
        entry = self._entry("/", self._inode(ROOT_INODE, "/"))
        if entry.kind is not FileKind.FOLDER:
            raise InputError("the root inode is no directory", subject=self.name)
        return entry

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return [self._named(folder, name, number) for name, number in self._names(folder).items()]

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        raw = name.encode("utf-8", "surrogateescape")
        number = self._names(folder).get(raw)
        return None if number is None else self._named(folder, raw, number)

    def _identity(self, folder: FileEntry) -> object:
        return self._node(folder).number

    def _open(self, entry: FileEntry) -> Disk:
        inode = self._node(entry)
        subject = self._subject(entry.path)
        if inode.is_inline:
            return MemoryDisk(self._inline(inode, entry.path), name=subject)
        block_map = self._map(inode, entry.path)
        if inode.size_bytes > block_map.most_blocks * self._superblock.block_size:
            raise InputError("its size is impossible", subject=subject, found=f"{inode.size_bytes} bytes")
        return _ExtFile(self.disk, block_map, self._superblock.block_size, inode.size_bytes, name=subject)

    def _named(self, folder: FileEntry, raw: bytes, number: int) -> FileEntry:
        path = f"{folder.path.rstrip('/')}/{raw.decode('utf-8', 'surrogateescape')}"
        return self._entry(path, self._inode(number, path))

    def _entry(self, path: str, inode: ExtInode) -> FileEntry:
        kind = _KINDS.get(stat.S_IFMT(inode.mode), FileKind.OTHER)
        target = self._target(inode, path) if kind is FileKind.LINK else None
        size_bytes = inode.size_bytes if kind in (FileKind.FILE, FileKind.LINK) else 0
        return FileEntry(path, kind, size_bytes, target, stat.S_IMODE(inode.mode), inode)

    def _target(self, inode: ExtInode, path: str) -> str:
        size_bytes = inode.size_bytes
        if not 0 < size_bytes <= _LONGEST_LINK:
            raise InputError(
                "a symbolic link's length is impossible", subject=self._subject(path), found=f"{size_bytes}"
            )
        self._refuse_encrypted(inode, path)
        if inode.is_inline:
            raw = self._inline(inode, path)
        elif size_bytes < _INODE_BLOCK_BYTES:
            raw = inode.block[:size_bytes]
        else:
            content = _ExtFile(self.disk, self._map(inode, path), self._superblock.block_size, size_bytes, name=path)
            raw = content.read(0, size_bytes)
        return raw.decode("utf-8", "surrogateescape")

    def _map(self, inode: ExtInode, path: str) -> BlockMap:
        self._refuse_encrypted(inode, path)
        subject, superblock = self._subject(path), self._superblock
        if inode.flags & EXTENTS_FLAG:
            return ExtentMap(inode.block, self._read_block, block_count=superblock.block_count, subject=subject)
        return IndirectMap(
            inode.block,
            self._read_block,
            block_size=superblock.block_size,
            block_count=superblock.block_count,
            subject=subject,
        )

    def _refuse_encrypted(self, inode: ExtInode, path: str) -> None:
        if inode.flags & ENCRYPTED_FLAG:
            raise InputError("is encrypted (fscrypt), and cannot be read without its key", subject=self._subject(path))

    def _inline(self, inode: ExtInode, path: str) -> bytes:
        self._refuse_encrypted(inode, path)
        content = inode.inline_content()
        if inode.size_bytes > len(content):
            raise InputError(
                "the content in the inode is shorter than the file",
                subject=self._subject(path),
                found=f"{len(content)} bytes",
                expected=f"{inode.size_bytes}",
            )
        return content[: inode.size_bytes]

    def _names(self, folder: FileEntry) -> dict[bytes, int]:
        return self._folder(self._node(folder), folder.path)

    def _read_folder(self, inode: ExtInode, path: str) -> dict[bytes, int]:
        subject = self._subject(path)
        if inode.size_bytes > MOST_FOLDER_BYTES:
            raise InputError("the directory is too large", subject=subject, found=f"{inode.size_bytes} bytes")
        found: dict[bytes, int] = {}
        for block in self._folder_blocks(inode, path):
            for name, number in parse_folder(block, has_types=self._superblock.has_types, subject=subject):
                found.setdefault(name, number)
            if len(found) > MOST_ENTRIES:
                raise InputError(f"has more than {MOST_ENTRIES} entries", subject=subject)
        return found

    def _folder_blocks(self, inode: ExtInode, path: str) -> Iterator[bytes]:
        if inode.is_inline:
            content = self._inline(inode, path)
            yield content[4:_INODE_BLOCK_BYTES]  # the first four bytes are the parent's number
            yield content[_INODE_BLOCK_BYTES:]
            return
        block_size = self._superblock.block_size
        for _, count, physical in self._map(inode, path).runs(0, -(-inode.size_bytes // block_size)):
            if physical is not None:
                for block in range(physical, physical + count):
                    yield self._read_block(block)

    def _node(self, entry: FileEntry) -> ExtInode:
        if not isinstance(entry.node, ExtInode):
            raise InputError("is an entry of another file system", subject=self._subject(entry.path))
        return entry.node

    def _inode(self, number: int, path: str) -> ExtInode:
        superblock = self._superblock
        if not 0 < number <= superblock.inode_count:
            raise InputError("its inode is outside the file system", subject=self._subject(path), found=f"{number}")
        group, index = divmod(number - 1, superblock.inodes_per_group)
        block, offset = divmod(index * superblock.inode_size, superblock.block_size)
        raw = self._read_block(self._inode_table(group) + block)[offset : offset + superblock.inode_size]
        inode = parse_inode(raw, number, superblock)
        if not inode.mode:
            raise InputError("its inode is not in use", subject=self._subject(path), found=f"inode {number}")
        return inode

    def _inode_table(self, group: int) -> int:
        """The first block of a group's inode table (Documentation/filesystems/ext4/group_descr.rst, "Meta")."""
        superblock = self._superblock
        per_block = superblock.block_size // superblock.descriptor_size
        meta_group, index = divmod(group, per_block)
        if superblock.incompatible & META_BG and meta_group >= superblock.first_meta_group:
            first_group = meta_group * per_block
            block = superblock.first_data_block + first_group * superblock.blocks_per_group
            block += superblock.has_superblock_copy(first_group)
            if not first_group and superblock.block_size == SUPERBLOCK_OFFSET and not superblock.first_data_block:
                block += 1  # bigalloc with 1 KiB blocks: block 0 comes before the superblock, and counts
        else:
            block = SUPERBLOCK_OFFSET // superblock.block_size + 1 + meta_group
        start = index * superblock.descriptor_size
        raw = self._read_block(block)[start : start + superblock.descriptor_size]
        high = int.from_bytes(raw[40:44], "little") if len(raw) >= 64 else 0
        return high << 32 | int.from_bytes(raw[8:12], "little")

    def _read_one_block(self, block: int) -> bytes:
        superblock = self._superblock
        if not 0 <= block < superblock.block_count:
            raise InputError(
                f"block {block} is outside the file system",
                subject=self.name,
                expected=f"less than {superblock.block_count}",
            )
        return self.disk.read(block * superblock.block_size, superblock.block_size)


class _ExtFile(BaseDisk):
    """A file's content, along its block map."""

    def __init__(self, disk: Disk, block_map: BlockMap, block_size: int, size_bytes: int, *, name: str) -> None:
        super().__init__(name, "raw", size_bytes)
        self._disk = disk
        self._map = block_map
        self._block_size = block_size

    def _read(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        size, end = self._block_size, offset + length
        first = offset // size
        parts = []
        for logical, count, physical in self._map.runs(first, -(-end // size) - first):
            start, stop = max(logical * size, offset), min((logical + count) * size, end)
            if physical is None:
                parts.append(bytes(stop - start))
            else:
                parts.append(self._disk.read(physical * size + start - logical * size, stop - start))
        return b"".join(parts)

    def extents(self) -> Iterator[Extent]:
        """The file as runs of data and holes."""
        for logical, count, physical in self._map.runs(0, -(-self.size_bytes // self._block_size)):
            start = logical * self._block_size
            yield Extent(start, min(count * self._block_size, self.size_bytes - start), data=physical is not None)

    def placed(self) -> Iterator[tuple[int, int]]:
        """Offset and length on the disk of every run that holds data."""
        for logical, count, physical in self._map.runs(0, -(-self.size_bytes // self._block_size)):
            if physical is not None:
                size_bytes = min(count * self._block_size, self.size_bytes - logical * self._block_size)
                yield physical * self._block_size, size_bytes
