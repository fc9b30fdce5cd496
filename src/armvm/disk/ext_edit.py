"""The content of files on ext2, ext3 and ext4 replaced through debugfs, judged by e2fsck before anybody believes it.

The file keeps its inode, and with it owner, mode, extended attributes and hard links: blocks are added or taken away
(``bmap -a``, ``punch``), the size and times set, and the bytes put into its blocks. All of that happens on a sparse
temporary copy; what differs afterwards is what is written.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from armvm.disk.patched import WritableDisk
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk
from armvm.disk.write import write_raw
from armvm.errors import InputError
from armvm.printable import printable
from armvm.process import run
from armvm.units import MIB

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_NEEDS_RECOVERY = 0x4
_VALID, _ERRORS = 1, 2
_TIMEOUT_SECONDS = 600.0
_STATUS = re.compile(r"Inode:\s*(\d+)\s+Type:\s*(\S+).*?Flags:\s*(0x[0-9a-f]+)", re.DOTALL)
_SIZE = re.compile(r"^User:.*Size:\s*(\d+)\s*$", re.MULTILINE)
_FLAGS = {0x800: "encrypted", 0x4: "compressed", 0x100000: "protected by fs-verity", 0x10000000: "kept in its inode"}
_UNWRITTEN = re.compile(r"\[u\]|Uninit", re.IGNORECASE)
_MOST_BYTES = 16 * MIB
_COPIED_AT_ONCE = MIB
_PLAIN_PATH = re.compile(r"/[^\x00-\x1f\x7f\"\\]*")


def replace_files(disk: WritableDisk, contents: Mapping[str, bytes], *, timestamp: int) -> None:
    """Give the files at these absolute paths (without links) new contents. ``timestamp`` becomes their mtime.

    All of them or none. Raises InputError when the file system has faults or its journal waits to be replayed, when a
    file is none or of a kind that cannot be edited, or does not fit; MissingError without e2fsprogs.
    """
    block_bytes = _require_clean_state(disk)
    with tempfile.TemporaryDirectory(prefix="armvm-ext-") as folder:
        copy = Path(folder) / "copy.img"
        with copy.open("w+b") as file:
            write_raw(file, disk)
        _require_sound(copy, disk.name, "is damaged, nothing is written to it")
        for path, content in contents.items():
            _replace(copy, disk.name, path, content, block_bytes=block_bytes, timestamp=timestamp)
        _require_sound(copy, disk.name, "would not be sound after the edit")
        for path, content in contents.items():
            _require_content(copy, Path(folder) / "dumped", path, content, disk.name)
        with RawDisk(copy) as edited:
            _take_over(disk, edited)


def _require_clean_state(disk: Disk) -> int:
    """The block size in bytes; InputError unless it is an ext file system whose superblock says that it is clean."""
    if disk.size_bytes < 2 * _SUPERBLOCK:
        raise InputError("is no ext file system", subject=disk.name)
    block = disk.read(_SUPERBLOCK, 1024)
    (magic, state) = struct.unpack_from("<HH", block, 56)
    if magic != _MAGIC:
        raise InputError("is no ext file system", subject=disk.name)
    if struct.unpack_from("<I", block, 96)[0] & _NEEDS_RECOVERY:
        raise InputError(
            "its journal waits to be replayed: it was not cleanly unmounted",
            subject=disk.name,
            hint="boot the image once and shut it down, or run `e2fsck -p` on the partition",
        )
    if not state & _VALID or state & _ERRORS:
        raise InputError(
            "is marked as not clean", subject=disk.name, hint="run `e2fsck -p` on the partition, then repair again"
        )
    log = int(struct.unpack_from("<I", block, 24)[0])
    if log > 6:
        raise InputError("has an impossible block size", subject=disk.name)
    return 1024 << log


def _require_sound(copy: Path, name: str, what: str) -> None:
    completed = run(
        "e2fsck", ["-f", "-n", str(copy)], timeout_seconds=_TIMEOUT_SECONDS, check=False, env=_environment()
    )
    if completed.returncode:
        lines = completed.stdout.decode(errors="replace").strip().splitlines()
        said = next(
            (line for line in lines if not line.startswith("Pass ") and "e2fsck" not in line), "it is not clean"
        )
        raise InputError(
            f"the file system {what}: {printable(said.strip())}",
            subject=name,
            hint="run `e2fsck -p` on the partition, then repair again",
        )


def _replace(copy: Path, name: str, path: str, content: bytes, *, block_bytes: int, timestamp: int) -> None:
    if len(content) > _MOST_BYTES or not _PLAIN_PATH.fullmatch(path):
        raise InputError(f"{printable(path)} cannot be edited", subject=name)
    inode = _inode(copy, name, path)
    had = _status_size(copy, inode, name)
    old, new = -(-had // block_bytes), -(-len(content) // block_bytes)
    commands = []
    if new < old:
        commands.append(f"punch {inode} {new} {old - 1}")
    commands += [f"bmap -a {inode} {number}" for number in range(new)]
    stamp = f"@{timestamp & 0xFFFFFFFF:#x}"
    commands += [f"sif {inode} size {len(content)}", f"sif {inode} mtime {stamp}", f"sif {inode} ctime {stamp}"]
    _debugfs(copy, commands, write=True)
    blocks = [
        int(line)
        for line in _debugfs(copy, [f"bmap {inode} {number}" for number in range(new)]).splitlines()
        if line.strip().isdigit()
    ]
    if len(blocks) != new or not all(blocks):
        raise InputError(f"there is no room for {printable(path)}", subject=name)
    descriptor = os.open(copy, os.O_RDWR | os.O_CLOEXEC)
    try:
        for number, block in enumerate(blocks):
            piece = content[number * block_bytes : (number + 1) * block_bytes]
            os.pwrite(descriptor, piece.ljust(block_bytes, b"\0"), block * block_bytes)
    finally:
        os.close(descriptor)


def _inode(copy: Path, name: str, path: str) -> str:
    """The file as debugfs takes it, ``<12>``. Raises InputError when it is of a kind whose blocks are not its bytes."""
    said = _debugfs(copy, [f'stat "{path}"'])
    match = _STATUS.search(said)
    if match is None or match[2] != "regular":
        raise InputError(f"{printable(path)} is no file", subject=name)
    flags = int(match[3], 16)
    for flag, what in _FLAGS.items():
        if flags & flag:
            raise InputError(f"{printable(path)} is {what}, which cannot be edited from outside", subject=name)
    inode = f"<{match[1]}>"
    if _UNWRITTEN.search(said.partition("EXTENTS:")[2]):
        raise InputError(f"{printable(path)} has blocks that were never written", subject=name)
    return inode


def _status_size(copy: Path, inode: str, name: str) -> int:
    match = _SIZE.search(_debugfs(copy, [f"stat {inode}"]))
    if match is None or int(match[1]) > _MOST_BYTES:
        raise InputError(f"the file {inode} is too large to be edited", subject=name)
    return int(match[1])


def _require_content(copy: Path, dump: Path, path: str, content: bytes, name: str) -> None:
    _debugfs(copy, [f'dump "{path}" {dump}'])
    if not dump.exists() or dump.read_bytes() != content:
        raise InputError(f"{printable(path)} could not be edited", subject=name)
    dump.unlink()


def _debugfs(copy: Path, commands: list[str], *, write: bool = False) -> str:
    """What debugfs says to these commands, its echo of them left out."""
    if not commands:
        return ""
    script = copy.with_name("commands")
    script.write_text("\n".join(commands) + "\n", encoding="utf-8", errors="surrogateescape")
    arguments = [*(["-w"] if write else []), "-f", str(script), str(copy)]
    completed = run("debugfs", arguments, timeout_seconds=_TIMEOUT_SECONDS, env=_environment())
    said = completed.stdout.decode(errors="replace")
    return "\n".join(line for line in said.splitlines() if not line.startswith("debugfs: "))


def _environment() -> dict[str, str]:
    return {"DEBUGFS_PAGER": "cat", "PAGER": "cat", "LC_ALL": "C"}


def _take_over(disk: WritableDisk, edited: Disk) -> None:
    """Write what differs, run of data by run of data; holes of the copy are zeros that the disk has too, or gets."""
    for extent in edited.extents():
        position, end = extent.offset, extent.offset + extent.length
        while position < end:
            length = min(_COPIED_AT_ONCE, end - position)
            ours, theirs = disk.read(position, length), edited.read(position, length)
            if ours != theirs:
                _write_differences(disk, position, ours, theirs)
            position += length


def _write_differences(disk: WritableDisk, offset: int, ours: bytes, theirs: bytes) -> None:
    step = 1024
    for start in range(0, len(ours), step):
        if ours[start : start + step] != theirs[start : start + step]:
            disk.write(offset + start, theirs[start : start + step])
