"""What the file systems that a foreign library reads have in common: its inodes as entries, behind a guard."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Generic, TypeVar

from armvm.disk.files import MOST_ENTRIES, MOST_FOLDER_BYTES, BaseFileSystem, FileEntry, FileKind, join
from armvm.disk.guarded import Guard
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.printable import printable

_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.FOLDER, stat.S_IFLNK: FileKind.LINK}
_KEPT_FOLDERS = 8

Node = TypeVar("Node")


class NodeFileSystem(BaseFileSystem, Generic[Node]):
    """A file system whose files are the library's ``NODE`` values. A subclass says what one of them is.

    Everything that a subclass brings is called within a question to the guard, but for ``_link``.
    """

    NODE: type[Any]
    LONGEST_LINK = 65536

    def __init__(self, disk: Disk, *, name: str, kind: str) -> None:
        super().__init__(name, kind)
        self._guard = Guard(disk, subject=name)
        self._keep_folders()

    def _start(self) -> Node:
        """The root's node."""
        raise NotImplementedError

    def _children(self, node: Node) -> Iterator[tuple[str, Node]]:
        """What is in a folder, with or without ``.`` and ``..``."""
        raise NotImplementedError

    def _mode(self, node: Node) -> tuple[int, int]:
        """The node's mode (inode(7)) and its size in bytes."""
        raise NotImplementedError

    def _link(self, node: Node, path: str, size_bytes: int) -> str:
        """Where a symbolic link leads."""
        raise NotImplementedError

    def _names_bytes(self, node: Node) -> int:
        """How large a folder's names are at most, in bytes."""
        return self._mode(node)[1]

    def _keep_folders(self) -> None:
        self._folder = lru_cache(maxsize=_KEPT_FOLDERS)(self._read_folder)

    def _root(self) -> FileEntry:
        return self._entry("/", self._start())

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return [self._entry(join(folder.path, name), node) for name, node in self._names(folder).items()]

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        node = self._names(folder).get(name)
        return None if node is None else self._entry(join(folder.path, name), node)

    def _names(self, folder: FileEntry) -> dict[str, Node]:
        return self._folder(self._node(folder), folder.path)

    def _read_folder(self, node: Node, path: str) -> dict[str, Node]:
        subject = self._subject(path)
        found: dict[str, Node] = {}
        with self._guard.question(printable(path)):
            names_bytes = self._names_bytes(node)
            if names_bytes > MOST_FOLDER_BYTES:
                raise InputError("the directory is too large", subject=subject, found=f"{names_bytes} bytes")
            for name, child in self._children(node):
                if name in (".", ".."):
                    continue
                if not name or "/" in name or "\0" in name or len(found) >= MOST_ENTRIES:
                    raise InputError("the directory has impossible names, or too many", subject=subject)
                found.setdefault(name, child)
        return found

    def _entry(self, path: str, node: Node) -> FileEntry:
        with self._guard.question(printable(path)):
            mode, size_bytes = self._mode(node)
        kind = _KINDS.get(stat.S_IFMT(mode), FileKind.OTHER)
        target = None
        if kind is FileKind.LINK:
            if not 0 < size_bytes <= self.LONGEST_LINK:
                raise InputError("a symbolic link's length is impossible", subject=self._subject(path))
            target = self._link(node, path, size_bytes)
        counted = size_bytes if kind in (FileKind.FILE, FileKind.LINK) else 0
        return FileEntry(path, kind, counted, target, stat.S_IMODE(mode), node)

    def _node(self, entry: FileEntry) -> Node:
        if not isinstance(entry.node, self.NODE):
            raise InputError("is an entry of another file system", subject=self._subject(entry.path))
        node: Node = entry.node
        return node
