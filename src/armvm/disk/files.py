"""The FileSystem protocol: files by their path, whatever holds them; and what all file systems have in common.

Paths are absolute and ``/``-separated. Symbolic links are followed inside the file system only: ``..`` never leaves its
root, an absolute link starts there again, and a loop ends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import MIB

MOST_LINKS = 40
"""How many symbolic links a path may lead through, as in Linux (path_resolution(7))."""
MOST_ENTRIES = 131_072
"""How many entries a folder may have; an audit asks for none with more."""
MOST_FOLDER_BYTES = 16 * MIB
"""How large a directory may be on its disk."""
_MOST_WALKED = 1_000_000
_MOST_DEPTH = 128


class FileKind(enum.Enum):
    """What a name in a folder stands for."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    OTHER = "special file"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file, folder or link. ``path`` is where it stands, with no link on the way; the root's is ``/``.

    ``mode`` holds the permission bits, None where the file system has none. ``node`` is the file system's own handle.
    """

    path: str
    kind: FileKind
    size_bytes: int = 0
    link_target: str | None = None
    mode: int | None = None
    node: object = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The last part of its path; empty for the root."""
        return self.path.rpartition("/")[2]


@runtime_checkable
class FileSystem(Protocol):
    """A file system that can be read. Its disk stays the caller's to close, unless the maker says otherwise."""

    @property
    def name(self) -> str:
        """How evidence calls it: ``partition 2``, ``logical volume vg/root``."""
        ...

    @property
    def kind(self) -> str:
        """Its type as ``blkid`` spells it: vfat, ext4, xfs, btrfs, squashfs."""
        ...

    def lookup(self, path: str, *, follow: bool = True) -> FileEntry | None:
        """What stands at ``path``, or None. With ``follow`` a link at its end is followed too, else it is given itself.

        A link that leads nowhere gives None. Raises InputError at a loop of links, or where a folder cannot be read.
        """
        ...

    def entries(self, path: str | FileEntry = "/") -> tuple[FileEntry, ...]:
        """What is in a folder, sorted by name. Raises InputError when there is no such folder or it cannot be read."""
        ...

    def walk(self, path: str = "/") -> Iterator[FileEntry]:
        """Everything below ``path``, folders before what is in them, links not followed.

        Raises InputError where a folder cannot be read or stands twice, and past a million entries or 128 levels.
        """
        ...

    def open(self, path: str | FileEntry) -> Disk:
        """A file's content, read lazily. Raises InputError when there is no such file or it cannot be read."""
        ...

    def read(self, path: str | FileEntry, *, max_bytes: int = 16 * MIB) -> bytes:
        """A file's whole content. Raises InputError as ``open`` does, and when it is larger than ``max_bytes``."""
        ...

    def close(self) -> None:
        """Let go of what it holds. Closing twice is no error."""
        ...


class BaseFileSystem:
    """What all file systems share: paths, links and bounds. A subclass knows its folders and how to open a file."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind

    # What a subclass brings

    def _root(self) -> FileEntry:
        raise NotImplementedError

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        """The folder's entries, without ``.`` and ``..``, with their paths, in any order."""
        raise NotImplementedError

    def _open(self, entry: FileEntry) -> Disk:
        raise NotImplementedError

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        """One entry of a folder; a subclass that can find it without listing the folder does."""
        return next((entry for entry in self._list(folder) if entry.name == name), None)

    def _identity(self, folder: FileEntry) -> object:
        """What tells a folder from all others, whichever path leads there: a damaged tree may lead back to itself."""
        return folder.path

    # What everybody else calls

    def lookup(self, path: str, *, follow: bool = True) -> FileEntry | None:
        """What stands at ``path``, or None; see FileSystem."""
        root = self._root()
        trail = [root]  # the folders from the root to where we are
        pending = _parts(path)
        links = 0
        while pending:
            part = pending.pop()
            here = trail[-1]
            if part == "..":
                if len(trail) > 1:
                    trail.pop()
                continue
            if here.kind is not FileKind.FOLDER:
                return None
            found = self._child(here, part)
            if found is None:
                return None
            if found.kind is FileKind.LINK and (follow or pending):
                links += 1
                if links > MOST_LINKS:
                    raise InputError("symbolic links go round in circles", subject=f"{self.name}, {printable(path)}")
                target = found.link_target or ""
                if target.startswith("/"):
                    trail = [root]
                pending += _parts(target)
                continue
            trail.append(found)
        return trail[-1]

    def entries(self, path: str | FileEntry = "/") -> tuple[FileEntry, ...]:
        """What is in a folder, sorted by name; see FileSystem."""
        folder = self._found(path)
        if folder.kind is not FileKind.FOLDER:
            raise InputError("is no folder", subject=self._subject(folder.path), found=folder.kind.value)
        return tuple(sorted(self._list(folder), key=lambda entry: entry.name))

    def walk(self, path: str = "/") -> Iterator[FileEntry]:
        """Everything below ``path``; see FileSystem."""
        count = 0
        walked = {self._identity(self._found(path))}
        pending = [(0, entry) for entry in reversed(self.entries(path))]
        while pending:
            depth, entry = pending.pop()
            count += 1
            if count > _MOST_WALKED or depth > _MOST_DEPTH:
                raise InputError("has too many files, or folders nested too deeply", subject=self._subject(entry.path))
            yield entry
            if entry.kind is FileKind.FOLDER:
                identity = self._identity(entry)
                if identity in walked:
                    raise InputError("is a folder that was there already", subject=self._subject(entry.path))
                walked.add(identity)
                pending += [(depth + 1, child) for child in reversed(self.entries(entry))]

    def open(self, path: str | FileEntry) -> Disk:
        """A file's content as a disk; see FileSystem."""
        entry = self._found(path)
        if entry.kind is not FileKind.FILE:
            raise InputError("is no file", subject=self._subject(entry.path), found=entry.kind.value)
        return self._open(entry)

    def read(self, path: str | FileEntry, *, max_bytes: int = 16 * MIB) -> bytes:
        """A file's whole content; see FileSystem."""
        content = self.open(path)
        if content.size_bytes > max_bytes:
            raise InputError(
                "is too large to be read whole",
                subject=content.name,
                found=f"{content.size_bytes} bytes",
                expected=f"at most {max_bytes}",
            )
        return content.read(0, content.size_bytes)

    def close(self) -> None:
        """Nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _found(self, path: str | FileEntry) -> FileEntry:
        if isinstance(path, FileEntry):
            return path
        entry = self.lookup(path)
        if entry is None:
            raise InputError("is not there", subject=self._subject(path))
        return entry

    def _subject(self, path: str) -> str:
        return f"{self.name}, {printable(path)}"


class MemoryFileSystem(BaseFileSystem):
    """A tree in memory, made of ``files`` (path to content) and ``links`` (path to target); folders come by themselves.

    What an initial RAM disk unpacks to, and what tests stand on. Of two files at one path the later one counts.
    """

    def __init__(
        self, files: Mapping[str, bytes], links: Mapping[str, str] | None = None, *, name: str = "memory"
    ) -> None:
        super().__init__(name, "memory")
        self._folders: dict[str, dict[str, FileEntry]] = {"": {}}
        for path, content in files.items():
            self._add(FileEntry(join(path), FileKind.FILE, len(content), node=content))
        for path, target in (links or {}).items():
            self._add(FileEntry(join(path), FileKind.LINK, link_target=target))

    def _add(self, entry: FileEntry) -> None:
        parent, _, name = entry.path.rpartition("/")
        missing = []
        while parent not in self._folders:
            missing.append(parent)
            self._folders[parent] = {}
            parent = parent.rpartition("/")[0]
        for path in missing:
            above, _, folder_name = path.rpartition("/")
            self._folders[above][folder_name] = FileEntry(path, FileKind.FOLDER)
        self._folders[entry.path.rpartition("/")[0]][name] = entry

    def _root(self) -> FileEntry:
        return FileEntry("/", FileKind.FOLDER)

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return self._folders[folder.path.rstrip("/")].values()

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        return self._folders[folder.path.rstrip("/")].get(name)

    def _open(self, entry: FileEntry) -> Disk:
        content = entry.node
        return MemoryDisk(content if isinstance(content, bytes) else b"", name=self._subject(entry.path))


def join(*parts: str) -> str:
    """One absolute path of its parts, without empty ones, ``.`` and doubled separators (``..`` stays)."""
    return "/" + "/".join(part for path in parts for part in path.split("/") if part not in ("", "."))


def _parts(path: str) -> list[str]:
    """The parts of a path, the last first, as they are taken from the end of a list."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
