"""Writing an initial RAM disk piece by piece: folders, files, links and devices in the cpio format "newc".

Linux unpacks several archives that follow each other (Documentation/driver-api/early-userspace/buffer-format.rst): what
Debian's packages hold is one, kept for long; what is ours is another, made anew whenever armvm changes.
"""

from __future__ import annotations

from typing import BinaryIO

from armvm.errors import InputError
from armvm.units import align_up

_ALIGNMENT = 4
_FOLDER, _FILE, _PROGRAM, _LINK, _DEVICE = 0o040755, 0o100644, 0o100755, 0o120777, 0o020600
_MOST_FILE_BYTES = 0xFFFFFFFF


class CpioWriter:
    """Writes entries to ``file`` in the order in which they are added; every folder on the way is made once.

    Owners and times are zero, so that equal content gives equal bytes. A path that was added before is refused: Linux
    would take the later one, and whoever reads the recipe could not tell.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._known: dict[str, int] = {}
        self._number = 0

    def add_folder(self, path: str) -> None:
        """A folder and those above it; one that is there already is fine."""
        parts = checked_path(path).split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name not in self._known:
                self._known[name] = _FOLDER
                self._entry(name, _FOLDER)
            elif self._known[name] != _FOLDER:
                raise InputError("a file stands where a folder is to be", subject=name)

    def add_file(self, path: str, content: bytes, *, program: bool = False) -> None:
        """A regular file."""
        if len(content) > _MOST_FILE_BYTES:
            raise InputError("too large for an initial RAM disk", subject=path)
        self._add(path, _PROGRAM if program else _FILE, content)

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, _LINK, target.encode())

    def add_device(self, path: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(path, _DEVICE, b"", device=(major, minor))

    def finish(self) -> None:
        """The trailer; nothing may follow but another archive."""
        self._number = -1
        self._entry("TRAILER!!!", 0)

    def _add(self, path: str, mode: int, content: bytes, *, device: tuple[int, int] = (0, 0)) -> None:
        parent, _, _ = checked_path(path).rpartition("/")
        if parent:
            self.add_folder(parent)
        if path in self._known:
            raise InputError("is there twice", subject=path)
        self._known[path] = mode
        self._entry(path, mode, content, device=device)

    def _entry(self, path: str, mode: int, content: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        self._number += 1
        name = path.encode()
        links = 2 if mode == _FOLDER else 1
        fields = (self._number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
        self._file.write(head.ljust(align_up(len(head), _ALIGNMENT), b"\0"))
        self._file.write(content.ljust(align_up(len(content), _ALIGNMENT), b"\0"))


def checked_path(path: str) -> str:
    """``path`` when it is a plain path below the root. Raises InputError for any other."""
    parts = path.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in path or len(path.encode()) > 1024:
        raise InputError("not a path below the root of an initial RAM disk", subject=repr(path)[:200])
    return path
