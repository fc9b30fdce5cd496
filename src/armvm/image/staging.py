"""A root tree being put together: archives, layers and single files laid out in a folder of our own.

Nothing but real folders is ever walked through on the host: symbolic links are kept as text until the tree is whole,
and names go through them inside the tree only. Whatever an archive says, nothing outside the folder is touched.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import GIB, MIB, align_up

BLOCK_SIZE = 4096
"""What a file's content is rounded up to, in bytes."""
_MAX_SYMLINKS = 40
_MOST_ENTRIES = 4_000_000
_MOST_BYTES = 256 * GIB
_XATTR_PREFIX = "SCHILY.xattr."
_TAR_DEVICES = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
"""Names that take away what a lower layer brought (OCI Image Specification 1.1, layer.md, "Whiteouts")."""


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

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)


@dataclass(frozen=True, slots=True)
class RootTree:
    """A tree ready to be made into a file system: its entries, and the folder that holds their content."""

    entries: tuple[Entry, ...]
    staging: Path

    @property
    def content_bytes(self) -> int:
        """The blocks that its files and folders take, in bytes."""
        return sum(align_up(max(entry.size_bytes, 1), BLOCK_SIZE) for entry in self.entries)

    def manifest(self) -> Iterator[str]:
        """What identifies the tree, line by line, but for the bytes of its files."""
        for entry in self.entries:
            yield (
                f"{entry.path}\0{entry.mode:o}\0{entry.uid}\0{entry.gid}\0{entry.size_bytes}\0{entry.link_target}"
                f"\0{entry.hardlink_to}\0{entry.device}"
            )


class StagedTree:
    """A tree that grows in ``staging``, a new and empty folder. ``subject`` is what messages call its source.

    Paths are written without a slash in front. Every method raises InputError for what no tree can hold.
    """

    def __init__(self, staging: Path, subject: str) -> None:
        self._staging = staging
        self._subject = subject
        self._entries: dict[str, Entry] = {"": Entry("", stat.S_IFDIR | 0o755, 0, 0, 0)}
        self._children: dict[str, set[str]] = {"": set()}
        self._links: dict[str, set[str]] = {}
        self._bytes = 0

    def unpack(self, archive: tarfile.TarFile) -> None:
        """Lay out a whole archive on top of what is there; a later member of the same name counts."""
        for member in archive:
            self._add(archive, member)

    def unpack_layer(self, archive: tarfile.TarFile) -> None:
        """Lay out a layer of a container image: what it whites out goes, what it brings replaces what was there."""
        own: set[str] = set()
        for member in archive:
            parent, name = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
            if name == _OPAQUE:
                folder = self._place(str(parent / "x")).rpartition("/")[0]
                for child in [self._join(folder, child) for child in self._children.get(folder, ())]:
                    self._remove_but(child, own)
            elif name.startswith(_WHITEOUT):
                hidden = name.removeprefix(_WHITEOUT)
                if hidden in ("", ".", ".."):
                    raise InputError(f"a whiteout of nothing: {printable(member.name)}", subject=self._subject)
                self._remove_but(self._place(str(parent / hidden)), own)
            else:
                path = self._place(member.name)
                old = self._entries.get(path)
                if path and old is not None and old.is_folder and not member.isdir():
                    self.remove(path)
                own.add(self._add(archive, member))

    def copy_folder(self, folder: Path, entries: Iterator[Entry]) -> None:
        """Take over ``entries`` of a folder on the host; files are linked where that is possible, and not written."""
        for entry in entries:
            if not entry.path:
                self._entries[""] = entry
                continue
            target = self._staging / entry.path
            self._make_room(entry.path)
            if entry.is_folder:
                target.mkdir()
            elif entry.hardlink_to is not None:
                os.link(self._staging / entry.hardlink_to, target)
            elif entry.is_file:
                source = folder / entry.path
                try:
                    os.link(source, target, follow_symlinks=False)
                except OSError:
                    shutil.copyfile(source, target, follow_symlinks=False)
            self._set(entry)

    def write(self, path: str, content: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int) -> None:
        """Put a regular file at ``path``, in place of what is there; its folders are made where they are missing."""
        place = self._place(path)
        self.remove(place)
        with (self._staging / place).open("xb") as file:
            file.write(content)
        self._set(Entry(place, stat.S_IFREG | mode, uid, gid, mtime, size_bytes=len(content)))

    def symlink(self, path: str, target: str, *, mtime: int) -> None:
        """Put a symbolic link at ``path``, in place of what is there."""
        place = self._place(path)
        self.remove(place)
        self._set(Entry(place, stat.S_IFLNK | 0o777, 0, 0, mtime, link_target=target))

    def folder(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int) -> None:
        """Make sure of a folder at ``path``, with these attributes."""
        place = self._place(path)
        old = self._entries.get(place)
        if old is None or not old.is_folder:
            self.remove(place)
            (self._staging / place).mkdir()
        self._set(Entry(place, stat.S_IFDIR | mode, uid, gid, mtime))

    def remove(self, path: str) -> None:
        """Take ``path`` away, with everything below it; where there is nothing, nothing happens."""
        self._remove_but(path, frozenset())

    def names(self, path: str) -> tuple[str, ...]:
        """The names in the folder at ``path`` (links are followed), sorted; none when there is no such folder."""
        entry = self.lookup(path)
        return tuple(sorted(self._children.get(entry.path, ()), key=os.fsencode)) if entry and entry.is_folder else ()

    def lookup(self, path: str) -> Entry | None:
        """The entry that ``path`` leads to, links followed inside the tree; None when there is none."""
        try:
            resolved = self._resolve([part for part in PurePosixPath(path).parts if part != "/"], make=False)
        except InputError:
            return None
        return None if resolved is None else self._entries.get(resolved)

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """The content of the regular file that ``path`` leads to; None when there is none, or it is larger."""
        content = self.content(path)
        if content is None or content.stat().st_size > max_bytes:
            return None
        return content.read_bytes()

    def content(self, path: str) -> Path | None:
        """The file on the host that holds the content of the regular file at ``path``; it must not be written."""
        entry = self.lookup(path)
        return self._staging / entry.path if entry is not None and entry.is_file else None

    def finish(self) -> RootTree:
        """The whole tree; nothing can be changed afterwards."""
        for entry in self._entries.values():  # last, so that unpacking never went through one
            if entry.link_target is not None:
                (self._staging / entry.path).symlink_to(entry.link_target)
        entries = tuple(self._entries[path] for path in sorted(self._entries, key=os.fsencode))
        return RootTree(entries, self._staging)

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        path = self._place(member.name)
        if not path and not member.isdir():
            raise InputError("a member has no name", subject=self._subject)
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
            if existing is None or not existing.is_folder:
                self._make_room(path)
                target.mkdir()
            self._set(replace(entry, mode=mode | stat.S_IFDIR))
            return path
        self._make_room(path)
        if member.issym():
            entry = replace(entry, mode=0o777 | stat.S_IFLNK, link_target=member.linkname)
        elif member.islnk():
            first = self._place(member.linkname)
            known = self._entries.get(first)
            if known is None or not known.is_file:
                raise InputError(f"{printable(path)} is a hard link to what is not there", subject=self._subject)
            first = known.hardlink_to or first
            os.link(self._staging / first, target)
            entry = replace(entry, mode=mode | stat.S_IFREG, hardlink_to=first)
        elif member.isreg():
            self._count(member.size)
            content = archive.extractfile(member)
            if content is None:
                raise InputError(f"{printable(path)} has no content", subject=self._subject)
            with content, target.open("xb") as out:
                shutil.copyfileobj(content, out, MIB)
            entry = replace(entry, mode=mode | stat.S_IFREG, size_bytes=member.size)
        elif member.type in _TAR_DEVICES:
            entry = replace(entry, mode=mode | _TAR_DEVICES[member.type], device=(member.devmajor, member.devminor))
        else:
            raise InputError(f"{printable(path)} is of an unknown kind {member.type!r}", subject=self._subject)
        self._set(entry)
        return path

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._bytes > _MOST_BYTES or len(self._entries) > _MOST_ENTRIES:
            limit = f"{_MOST_BYTES // GIB} GiB and {_MOST_ENTRIES} files"
            raise InputError("more than a root tree may hold", subject=self._subject, expected=f"at most {limit}")

    def _place(self, name: str) -> str:
        """Where ``name`` lands: below the root, links among its folders followed inside the tree, parents made."""
        parts = [part for part in PurePosixPath(name).parts if part != "/"]
        if ".." in parts:
            raise InputError(f"a member's name leaves the archive: {printable(name)}", subject=self._subject)
        if not parts:
            return ""
        folder = self._resolve(parts[:-1], make=True)
        return self._join(folder or "", parts[-1])

    def _resolve(self, parts: list[str], *, make: bool) -> str | None:
        """The path that ``parts`` lead to. With ``make`` each is a folder; without, None where nothing is."""
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
                    raise InputError(f"symbolic links loop at {printable(path)}", subject=self._subject)
                if entry.link_target.startswith("/"):
                    here = []
                pending.extend(reversed([p for p in PurePosixPath(entry.link_target).parts if p != "/"]))
                continue
            if entry is None:
                if not make:
                    return None
                (self._staging / path).mkdir()
                self._set(Entry(path, stat.S_IFDIR | 0o755, 0, 0, 0))
            elif not entry.is_folder and (make or pending):
                raise InputError(f"{printable(path)} is a file and a folder at once", subject=self._subject)
            here.append(part)
        return "/".join(here)

    @staticmethod
    def _join(folder: str, name: str) -> str:
        return f"{folder}/{name}" if folder else name

    def _set(self, entry: Entry) -> None:
        self._entries[entry.path] = entry
        if entry.path:
            self._children.setdefault(entry.path.rpartition("/")[0], set()).add(entry.path.rpartition("/")[2])
        if entry.is_folder:
            self._children.setdefault(entry.path, set())
        if entry.hardlink_to is not None:
            self._links.setdefault(entry.hardlink_to, set()).add(entry.path)
        if len(self._entries) > _MOST_ENTRIES:
            self._count(0)

    def _make_room(self, path: str) -> None:
        """For a member that the archive has twice: the later one counts, but a full folder is not thrown away."""
        if self._children.get(path):
            raise InputError(f"{printable(path)} is a file and a folder at once", subject=self._subject)
        self._drop(path)

    def _remove_but(self, path: str, kept: set[str] | frozenset[str]) -> bool:
        """Take ``path`` away but for ``kept`` entries and the folders above them; says whether it is gone."""
        if not path:
            raise InputError("the root itself cannot be taken away", subject=self._subject)
        gone = True
        pending = [(path, False)]
        while pending:  # without recursion: a hostile layer nests deeper than Python's stack
            here, emptied = pending.pop()
            if here not in self._entries:
                continue
            if not emptied and self._children.get(here):
                pending.append((here, True))
                pending.extend((self._join(here, child), False) for child in sorted(self._children[here]))
            elif here in kept or self._children.get(here):
                gone = False
            else:
                self._drop(here)
        return gone

    def _drop(self, path: str) -> None:
        old = self._entries.pop(path, None)
        if old is None:
            return
        with suppress(KeyError):
            self._children[path.rpartition("/")[0]].remove(path.rpartition("/")[2])
        if old.is_folder:
            self._children.pop(path, None)
            (self._staging / path).rmdir()
        elif old.is_file:
            if old.hardlink_to is not None:
                self._links[old.hardlink_to].discard(path)
            linked = sorted(self._links.pop(path, ()))
            for other in linked:  # the first of them becomes what the others are links to
                heir = replace(self._entries[other], hardlink_to=None if other == linked[0] else linked[0])
                self._entries[other] = replace(heir, size_bytes=old.size_bytes) if other == linked[0] else heir
            if linked[1:]:
                self._links[linked[0]] = set(linked[1:])
            (self._staging / path).unlink()
