"""A root file system from a folder or a tar archive: ext4 through mke2fs and debugfs, without root or loop devices.

Both sources become the same list of entries. Their content is laid out in a staging folder for ``mke2fs -d``; what an
ordinary user cannot lay out (owners, devices, special modes, times) is written into the file system by debugfs.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path, PurePosixPath
from uuid import UUID

from armvm.errors import InputError, OutputError, UsageError
from armvm.printable import printable
from armvm.process import run
from armvm.units import MIB, align_up

_BLOCK_SIZE = 4096
_INODE_SIZE = 256
_BYTES_PER_INODE = 16384
_MAX_SYMLINKS = 40
_TIMEOUT_SECONDS = 3600.0
_FEATURES = (
    # Spelled out, so that the host's mke2fs.conf has no say, and so that GRUB 2.06 and old kernels can read it.
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_CONFIG = "[fs_types]\n  ext4 = {\n  }\n  small = {\n  }\n  floppy = {\n  }\n  big = {\n  }\n  huge = {\n  }\n"
_XATTR_PREFIX = "SCHILY.xattr."


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the tree: its path below the root (``usr/bin/env``; the root itself is empty) and its inode.

    ``mode`` includes the file type. ``link_target`` is a symbolic link's text, ``hardlink_to`` another entry's path,
    ``device`` a device file's (major, minor). ``mtime`` is in seconds since 1970.
    """

    path: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size_bytes: int = 0
    link_target: str | None = None
    hardlink_to: str | None = None
    device: tuple[int, int] | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RootTree:
    """A tree ready to be made into a file system: its entries, and the folder that holds their content."""

    entries: tuple[Entry, ...]
    staging: Path

    @property
    def content_bytes(self) -> int:
        """The blocks that its files and folders take, in bytes."""
        return sum(align_up(max(entry.size_bytes, 1), _BLOCK_SIZE) for entry in self.entries)

    def manifest(self) -> Iterator[str]:
        """What identifies the tree, line by line, but for the bytes of its files."""
        for entry in self.entries:
            yield (
                f"{entry.path}\0{entry.mode:o}\0{entry.uid}\0{entry.gid}\0{entry.size_bytes}\0{entry.link_target}"
                f"\0{entry.hardlink_to}\0{entry.device}"
            )


@contextmanager
def root_tree(source: Path, *, scratch: Path, clamp_time: int | None = None) -> Iterator[RootTree]:
    """The tree at ``source``: a folder as it stands, or a tar archive (plain, gz, xz, bz2, zst).

    An archive is unpacked into a folder below ``scratch`` for as long as the block runs.

    Times later than ``clamp_time`` (seconds since 1970) become it. Files of the invoking ordinary user become root's,
    as nobody else's account exists in the image. Raises InputError for what is neither folder nor archive, or hostile.
    """
    if source.is_dir():
        yield _clamped(RootTree(tuple(_folder_entries(source)), source), clamp_time)
        return
    staging = scratch / "root"
    staging.mkdir(mode=0o700)
    try:
        yield _clamped(RootTree(_Unpacking(source, staging).unpack(), staging), clamp_time)
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
            "-q", "-F", "-t", "ext4", "-b", str(_BLOCK_SIZE), "-I", str(_INODE_SIZE), "-N", str(inodes), "-m", "0",
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


def _clamped(tree: RootTree, clamp_time: int | None) -> RootTree:
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
_TAR_DEVICES = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}


class _Unpacking:
    """A tar archive being laid out in a staging folder, in which nothing but real folders is ever walked through."""

    def __init__(self, source: Path, staging: Path) -> None:
        self._source = source
        self._staging = staging
        self._entries: dict[str, Entry] = {"": Entry("", stat.S_IFDIR | 0o755, 0, 0, 0)}

    def unpack(self) -> tuple[Entry, ...]:
        """Lay out the whole archive and return its entries, sorted. Raises InputError for what is no archive."""
        try:
            with self._source.open("rb") as raw, _open_tar(raw) as archive:
                for member in archive:
                    self._add(archive, member)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise InputError(f"cannot be read as a tar archive: {error}", subject=str(self._source)) from error
        except OSError as error:
            if error.filename is None:  # what the decompressors say of corrupt data
                raise InputError(f"cannot be read as a tar archive: {error}", subject=str(self._source)) from error
            raise OutputError(f"cannot unpack {self._source}: {error.strerror}: {error.filename}") from error
        for entry in self._entries.values():  # last, so that unpacking never went through one
            if entry.link_target is not None:
                (self._staging / entry.path).symlink_to(entry.link_target)
        return tuple(self._entries[path] for path in sorted(self._entries, key=os.fsencode))

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._place(member.name)
        if not path and not member.isdir():
            raise InputError("a member has no name", subject=str(self._source))
        mode = member.mode & 0o7777
        xattrs = {
            key.removeprefix(_XATTR_PREFIX): value.encode("utf-8", "surrogateescape")
            for key, value in member.pax_headers.items()
            if key.startswith(_XATTR_PREFIX)
        }
        entry = Entry(path, mode, member.uid, member.gid, int(member.mtime), xattrs=xattrs)
        target = self._staging / path
        if member.isdir():
            existing = self._entries.get(path)
            if existing is None or not stat.S_ISDIR(existing.mode):
                self._remove(path)
                target.mkdir()
            self._entries[path] = replace(entry, mode=mode | stat.S_IFDIR)
            return
        self._remove(path)
        if member.issym():
            entry = replace(entry, mode=0o777 | stat.S_IFLNK, link_target=member.linkname)
        elif member.islnk():
            first = self._place(member.linkname)
            known = self._entries.get(first)
            if known is None or not stat.S_ISREG(known.mode):
                raise InputError(f"{printable(path)} is a hard link to what is not there", subject=str(self._source))
            first = known.hardlink_to or first
            os.link(self._staging / first, target)
            entry = replace(entry, mode=mode | stat.S_IFREG, hardlink_to=first)
        elif member.isreg():
            content = archive.extractfile(member)
            if content is None:
                raise InputError(f"{printable(path)} has no content", subject=str(self._source))
            with content, target.open("xb") as out:
                shutil.copyfileobj(content, out, MIB)
            entry = replace(entry, mode=mode | stat.S_IFREG, size_bytes=member.size)
        elif member.type in _TAR_DEVICES:
            entry = replace(entry, mode=mode | _TAR_DEVICES[member.type], device=(member.devmajor, member.devminor))
        else:
            raise InputError(f"{printable(path)} is of an unknown kind {member.type!r}", subject=str(self._source))
        self._entries[path] = entry

    def _place(self, name: str) -> str:
        """Where ``name`` lands: below the root, links among its folders followed inside the tree, parents made."""
        parts = [part for part in PurePosixPath(name).parts if part != "/"]
        if ".." in parts:
            raise InputError(f"a member's name leaves the archive: {printable(name)}", subject=str(self._source))
        if not parts:
            return ""
        folder = self._folder(parts[:-1])
        return f"{folder}/{parts[-1]}" if folder else parts[-1]

    def _folder(self, parts: list[str]) -> str:
        here: list[str] = []
        pending = list(reversed(parts))
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                here = here[:-1]
                continue
            path = "/".join([*here, part])
            entry = self._entries.get(path)
            if entry is not None and entry.link_target is not None:
                links += 1
                if links > _MAX_SYMLINKS:
                    raise InputError(f"symbolic links loop at {printable(path)}", subject=str(self._source))
                if entry.link_target.startswith("/"):
                    here = []
                pending.extend(reversed([p for p in PurePosixPath(entry.link_target).parts if p != "/"]))
                continue
            if entry is None:
                (self._staging / path).mkdir()
                self._entries[path] = Entry(path, stat.S_IFDIR | 0o755, 0, 0, 0)
            elif not stat.S_ISDIR(entry.mode):
                raise InputError(f"{printable(path)} is a file and a folder at once", subject=str(self._source))
            here.append(part)
        return "/".join(here)

    def _remove(self, path: str) -> None:
        """Make room for a member that the archive has twice: the later one counts."""
        old = self._entries.pop(path, None)
        if old is None:
            return
        if stat.S_ISDIR(old.mode):
            if any(other.startswith(f"{path}/") for other in self._entries):
                raise InputError(f"{printable(path)} is a file and a folder at once", subject=str(self._source))
            (self._staging / path).rmdir()
        elif stat.S_ISREG(old.mode):
            linked = sorted(e.path for e in self._entries.values() if e.hardlink_to == path)
            for other in linked:  # the first of them becomes what the others are links to
                heir = replace(self._entries[other], hardlink_to=None if other == linked[0] else linked[0])
                self._entries[other] = replace(heir, size_bytes=old.size_bytes) if other == linked[0] else heir
            (self._staging / path).unlink()


@contextmanager
def _open_tar(raw: BufferedReader) -> Iterator[tarfile.TarFile]:
    """A tar archive as a stream, decompressed by what its first bytes say."""
    magic = raw.peek(4)[:4]
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        with (
            zstandard.ZstdDecompressor().stream_reader(raw) as stream,
            tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape") as archive,
        ):
            yield archive
        return
    with tarfile.open(fileobj=raw, mode="r:*", errors="surrogateescape") as archive:
        yield archive
