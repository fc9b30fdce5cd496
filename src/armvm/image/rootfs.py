"""A root file system from a folder or a tar archive: ext4 through mke2fs and debugfs, without root or loop devices.

Both sources become the same list of entries. Their content is laid out in a staging folder for ``mke2fs -d``; what an
ordinary user cannot lay out (owners, devices, special modes, times) is written into the file system by debugfs.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from armvm.errors import InputError, OutputError, UsageError
from armvm.image.archives import open_tar, reading_archive
from armvm.image.staging import BLOCK_SIZE, Entry, RootTree, StagedTree
from armvm.printable import printable
from armvm.process import run
from armvm.units import MIB, align_up

_INODE_SIZE = 256
_BYTES_PER_INODE = 16384
_TIMEOUT_SECONDS = 3600.0
_FEATURES = (
    # Spelled out, so that the host's mke2fs.conf has no say, and so that GRUB 2.06 and old kernels can read it.
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_CONFIG = "[fs_types]\n  ext4 = {\n  }\n  small = {\n  }\n  floppy = {\n  }\n  big = {\n  }\n  huge = {\n  }\n"


@contextmanager
def root_tree(source: Path, *, scratch: Path, clamp_time: int | None = None) -> Iterator[RootTree]:
    """The tree at ``source``: a folder as it stands, or a tar archive (plain, gz, xz, bz2, zst).

    An archive is unpacked into a folder below ``scratch`` for as long as the block runs.

    Times later than ``clamp_time`` (seconds since 1970) become it. Files of the invoking ordinary user become root's,
    as nobody else's account exists in the image. Raises InputError for what is neither folder nor archive, or hostile.
    """
    if source.is_dir():
        yield clamped(RootTree(tuple(_folder_entries(source)), source), clamp_time)
        return
    with staged(source, scratch=scratch) as tree:
        yield clamped(tree.finish(), clamp_time)


@contextmanager
def staged(source: Path, *, scratch: Path) -> Iterator[StagedTree]:
    """The tree at ``source`` (as ``root_tree`` takes it), open for changes; ``source`` itself stays as it is."""
    staging = scratch / "root"
    staging.mkdir(mode=0o700)
    tree = StagedTree(staging, str(source))
    try:
        if source.is_dir():
            tree.copy_folder(source, _folder_entries(source))
        else:
            with reading_archive(source), source.open("rb") as raw, open_tar(raw) as archive:
                tree.unpack(archive)
        yield tree
    finally:
        shutil.rmtree(staging)


def minimum_size(tree: RootTree) -> int:
    """A file system size, in bytes, that holds ``tree`` with its metadata and a little room."""
    inodes = len(tree.entries) * (_INODE_SIZE + 64)
    return align_up(int((tree.content_bytes + inodes) * 1.15) + 24 * MIB, MIB)


def make_ext4(tree: RootTree, path: Path, *, size_bytes: int, label: str, uuid: UUID, timestamp: int) -> None:
    """Write an ext4 file system of ``size_bytes`` holding ``tree`` to the new sparse file ``path``.

    Deterministic for the same tree, ``uuid`` and ``timestamp`` (seconds since 1970).
    Raises UsageError when the tree does not fit, MissingError without e2fsprogs.
    """
    if len(label.encode()) > 16:
        raise UsageError(f"the label {label!r} is longer than ext4's 16 bytes")
    inodes = max(size_bytes // _BYTES_PER_INODE, len(tree.entries) + 1024)
    if size_bytes < minimum_size(tree) * 9 // 10:
        raise UsageError(
            f"a root file system of {size_bytes} bytes is too small",
            hint=f"its content needs about {minimum_size(tree) // MIB} MiB",
        )
    scratch = path.parent
    config, script = scratch / "mke2fs.conf", scratch / "debugfs.cmd"
    config.write_text(_CONFIG, encoding="ascii")
    # One moment for both programs: the time they believe it is ends up in the superblock and in new inodes.
    env = {"MKE2FS_CONFIG": str(config), "E2FSPROGS_FAKE_TIME": str(max(timestamp, 1)), "LC_ALL": "C"}
    with path.open("xb") as file:
        file.truncate(size_bytes)
    # fmt: off
    run(
        "mke2fs",
        [
            "-q", "-F", "-t", "ext4", "-b", str(BLOCK_SIZE), "-I", str(_INODE_SIZE), "-N", str(inodes), "-m", "0",
            "-O", _FEATURES, "-E", f"hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-U", str(uuid), "-L", label, "-d", str(tree.staging), str(path),
        ],
        timeout_seconds=_TIMEOUT_SECONDS,
        env=env,
    )
    # fmt: on
    with script.open("w", encoding="utf-8", errors="surrogateescape") as commands:
        for number, entry in enumerate(tree.entries):
            commands.writelines(f"{command}\n" for command in _inode_commands(entry, scratch, number))
    completed = run("debugfs", ["-w", "-f", str(script), str(path)], timeout_seconds=_TIMEOUT_SECONDS, env=env)
    # debugfs exits 0 whatever its commands came to: anything it says beyond its banner is a failure.
    complaints = [line for line in completed.stderr.splitlines() if line.strip() and not line.startswith("debugfs 1.")]
    if complaints:
        raise OutputError(f"the root file system could not be completed: {printable(complaints[0])}")


def _inode_commands(entry: Entry, scratch: Path, number: int) -> Iterator[str]:
    name = _quoted("/" + entry.path)
    if entry.hardlink_to is not None:
        return
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode) or stat.S_ISFIFO(entry.mode):
        parent, leaf = os.path.split("/" + entry.path)
        yield f"cd {_quoted(parent)}"
        kind = "c" if stat.S_ISCHR(entry.mode) else "b"
        major, minor = entry.device or (0, 0)
        yield (
            f"mknod {_quoted(leaf)} p" if stat.S_ISFIFO(entry.mode) else f"mknod {_quoted(leaf)} {kind} {major} {minor}"
        )
        yield "cd /"
    for attribute, content in sorted(entry.xattrs.items()):
        value_file = scratch / f"xattr-{number}"
        value_file.write_bytes(content)
        yield f"ea_set -f {_quoted(str(value_file))} {name} {_quoted(attribute)}"
    # Owners beyond 65535 go through the same field: debugfs splits them itself.
    fields = {"mode": f"0{entry.mode:o}", "uid": entry.uid, "gid": entry.gid}
    for field_name, value in fields.items():
        yield f"sif {name} {field_name} {value}"
    for time_name in ("atime", "ctime", "mtime", "crtime"):
        yield f"sif {name} {time_name} @{max(entry.mtime, 0)}"
        yield f"sif {name} {time_name}_extra 0"


def _quoted(text: str) -> str:
    if "\n" in text:
        raise UsageError(f"the file name {printable(text)!r} has a line break, which debugfs cannot be told")
    return '"' + text.replace('"', '""') + '"'


def clamped(tree: RootTree, clamp_time: int | None) -> RootTree:
    """The tree with every time that is later than ``clamp_time`` set to it."""
    if clamp_time is None:
        return tree
    entries = (replace(e, mtime=clamp_time) if e.mtime > clamp_time else e for e in tree.entries)
    return RootTree(tuple(entries), tree.staging)


def _folder_entries(folder: Path) -> Iterator[Entry]:
    """The folder's entries in a fixed order, the root first."""
    first_names: dict[tuple[int, int], str] = {}
    me = os.getuid()

    def entry_of(path: str, status: os.stat_result, full: str) -> Entry:
        kind = status.st_mode
        linked = None
        if status.st_nlink > 1 and not stat.S_ISDIR(kind):
            first = first_names.setdefault((status.st_dev, status.st_ino), path)
            linked = first if first != path else None
        device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind & 0o170000 in _DEVICES else None
        return Entry(
            path=path,
            mode=kind,
            uid=0 if status.st_uid == me else status.st_uid,
            gid=0 if status.st_uid == me else status.st_gid,
            mtime=int(status.st_mtime),
            size_bytes=status.st_size if stat.S_ISREG(kind) and linked is None else 0,
            link_target=os.readlink(full)  # noqa: PTH115 - Path.readlink() would rewrite the link's text
            if stat.S_ISLNK(kind)
            else None,
            hardlink_to=linked,
            device=device,
        )

    yield entry_of("", folder.stat(), str(folder))
    pending = [""]
    while pending:
        relative = pending.pop()
        try:
            with os.scandir(folder / relative) as listing:
                children = sorted(listing, key=lambda child: os.fsencode(child.name))
        except OSError as error:
            raise InputError(f"cannot read the folder: {error.strerror}", subject=str(folder / relative)) from error
        for child in children:
            path = f"{relative}/{child.name}" if relative else child.name
            status = child.stat(follow_symlinks=False)
            if stat.S_ISSOCK(status.st_mode):
                continue  # a socket is a running process's, not a file's
            yield entry_of(path, status, child.path)
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)


_DEVICES = frozenset({stat.S_IFCHR, stat.S_IFBLK})
