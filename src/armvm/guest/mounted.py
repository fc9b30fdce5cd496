"""A guest's files as the running system sees them: its root with the file systems that are mounted below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from armvm.disk.files import BaseFileSystem, FileEntry, FileKind, FileSystem, join
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.guest.facts import PlacedFile, PlacedLine
from armvm.printable import printable
from armvm.spec.verdict import Evidence
from armvm.units import KIB

MOST_TEXT_BYTES = 256 * KIB
"""The largest text file that is read: configuration that a person wrote is a hundred times smaller."""
_MOST_FILES = 2000
_MOST_NAMES = 1000


class GuestFiles(BaseFileSystem):
    """A root file system with others mounted into it (``mounts``: mount point to file system); links cross them.

    The nodes of its entries are the files' true places. What it stands on stays the caller's to close.
    """

    def __init__(self, root: FileSystem, mounts: Mapping[str, FileSystem] | None = None) -> None:
        super().__init__(root.name, root.kind)
        self._mounts = {join(path): files for path, files in (mounts or {}).items() if join(path) != "/"}
        self._base = root

    def placed(self, path: str) -> PlacedFile | None:
        """Where the file at ``path`` truly stands, links followed; None when there is none.

        Raises InputError at a loop of links, or where a folder cannot be read.
        """
        entry = self.lookup(path)
        if entry is None or entry.kind is not FileKind.FILE or not isinstance(entry.node, PlacedFile):
            return None
        return entry.node

    def _root(self) -> FileEntry:
        return self._top(self._base, "/")

    def _top(self, files: FileSystem, path: str) -> FileEntry:
        return FileEntry(path, FileKind.FOLDER, node=PlacedFile(files, "/"))

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        path = join(folder.path, name)
        if path in self._mounts:
            return self._top(self._mounts[path], path)
        place = self._place(folder)
        found = place.files.lookup(join(place.path, name), follow=False)
        return None if found is None else self._moved(place.files, found, path)

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        place = self._place(folder)
        for found in place.files.entries(place.path):
            path = join(folder.path, found.name)
            mounted = self._mounts.get(path)
            yield self._moved(place.files, found, path) if mounted is None else self._top(mounted, path)

    def _open(self, entry: FileEntry) -> Disk:
        return self._place(entry).open()

    @staticmethod
    def _moved(files: FileSystem, found: FileEntry, path: str) -> FileEntry:
        place = PlacedFile(files, found.path)
        return FileEntry(path, found.kind, found.size_bytes, found.link_target, found.mode, place)

    @staticmethod
    def _place(entry: FileEntry) -> PlacedFile:
        if not isinstance(entry.node, PlacedFile):
            raise InputError("is no file of this guest", subject=printable(entry.path))
        return entry.node


class GuestText:
    """Reads a guest's text files, within bounds, and remembers in ``unread`` what it could not read, and why."""

    def __init__(self, files: GuestFiles) -> None:
        self.files = files
        self.unread: list[Evidence] = []
        self._left = _MOST_FILES

    def exists(self, path: str) -> bool:
        """Whether anything stands at ``path``: a link to /dev/null counts, whatever it leads to."""
        return self._lookup(path, follow=False) is not None

    def link_target(self, path: str) -> str | None:
        """The text of the symbolic link at ``path``; None when there is none."""
        entry = self._lookup(path, follow=False)
        return entry.link_target if entry is not None else None

    def true_path(self, path: str) -> str | None:
        """Where ``path`` leads with all links followed; None when it leads nowhere."""
        entry = self._lookup(path, follow=True)
        return entry.path if entry is not None else None

    def lines(self, path: str) -> tuple[PlacedLine, ...]:
        """The lines of a text file; none when there is no such file, or it cannot be read."""
        try:
            place = self.files.placed(path)
            if place is None:
                return ()
            self._left -= 1
            if self._left >= 0:
                return split_lines(place, place.files.read(place.path, max_bytes=MOST_TEXT_BYTES))
        except InputError as error:
            self._cannot(path, error.message)
            return ()
        self._cannot(path, f"is not read: more than {_MOST_FILES} files")
        return ()

    def names(self, folder: str, suffixes: tuple[str, ...] = ("",)) -> tuple[str, ...]:
        """The paths of the files and links in ``folder`` whose names end so, sorted; none when there is no folder."""
        kinds = (FileKind.FILE, FileKind.LINK)
        return tuple(each.path for each in self._entries(folder) if each.kind in kinds and each.name.endswith(suffixes))

    def _entries(self, folder: str) -> tuple[FileEntry, ...]:
        try:
            found = self.files.lookup(folder)
            entries = () if found is None or found.kind is not FileKind.FOLDER else self.files.entries(found)
        except InputError as error:
            self._cannot(folder, error.message)
            return ()
        if len(entries) > _MOST_NAMES:
            self._cannot(folder, f"is not read whole: {len(entries)} files")
        return entries[:_MOST_NAMES]

    def _lookup(self, path: str, *, follow: bool) -> FileEntry | None:
        try:
            return self.files.lookup(path, follow=follow)
        except InputError as error:
            self._cannot(path, error.message)
            return None

    def _cannot(self, path: str, why: str) -> None:
        self.unread.append(Evidence(f"{self.files.name}, {printable(path)}", printable(why)))


def split_lines(place: PlacedFile, content: bytes) -> tuple[PlacedLine, ...]:
    """A text file's lines, numbered from 1; what is not UTF-8 became U+FFFD."""
    texts = content.decode("utf-8", "replace").split("\n")
    if texts and not texts[-1]:
        texts.pop()
    return tuple(PlacedLine(place, number, text.removesuffix("\r")) for number, text in enumerate(texts, start=1))
