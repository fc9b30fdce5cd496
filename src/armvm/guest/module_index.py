"""A ``lib/modules/RELEASE`` on a file system of the guest: which modules are there, what they need, what is built in.

Sources: modules.dep(5), kmod's libkmod/libkmod-index.c for the binary lists, which are all that some systems keep.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from armvm.disk.files import FileEntry, FileKind, FileSystem, join
from armvm.errors import InputError
from armvm.printable import printable
from armvm.probe.modules import MODULE_SUFFIXES, modinfo, module_name, normal_name, unpack_module
from armvm.units import MIB

_BASES = ("/lib/modules", "/usr/lib/modules")
_MOST_LIST_BYTES = 16 * MIB
_MOST_MODULE_BYTES = 64 * MIB
_MOST_FILES = 50_000
_MOST_NEEDED = 128
_INDEX_MAGIC, _INDEX_VERSION = 0xB007F457, 2
_HAS_PREFIX, _HAS_VALUES, _HAS_CHILDREN, _OFFSET = 0x80000000, 0x40000000, 0x20000000, 0x0FFFFFFF
_MOST_NODES = 200_000
_MOST_KEY_BYTES = 256


@dataclass(frozen=True, slots=True)
class ModuleNeeds:
    """What one module needs, and who says so."""

    names: tuple[str, ...]
    source: str


class ModuleIndex:
    """The modules of one kernel release at one place. Lists are read when they are first asked for.

    Everything raises InputError where the file system cannot be read.
    """

    def __init__(self, files: FileSystem, folder: str) -> None:
        self.files = files
        self.folder = folder
        self.release = folder.rpartition("/")[2]

    @property
    def where(self) -> str:
        """How evidence calls it: ``partition 2, /lib/modules/6.1.0-50-arm64``."""
        return f"{self.files.name}, {printable(self.folder)}"

    def file(self, name: str) -> FileEntry | None:
        """The file of a module (by its name as the kernel says it), perhaps compressed; None when it is not there."""
        path = self._paths.get(name)
        if path is None:
            return None
        found = self.files.lookup(path)
        return found if found is not None and found.kind is FileKind.FILE else None

    @cached_property
    def builtin(self) -> frozenset[str] | None:
        """The names of what ``modules.builtin`` says is in the kernel; None without such a list.

        It knows of what could be a module too; drivers that can only be built in are mostly not in it.
        """
        text = self._text("modules.builtin")
        if text is not None and text.strip():
            return frozenset(module_name(line) for line in text.splitlines())
        keys = self._binary("modules.builtin.bin")
        return frozenset(normal_name(key) for key in keys) if keys else None

    def needs(self, name: str) -> ModuleNeeds:
        """Everything that a module needs, directly and not: from ``modules.dep``, else as the modules say themselves.

        Raises InputError when the module's own file is asked and cannot be read.
        """
        if name in self._dependencies:
            return ModuleNeeds(self._dependencies[name], f"{self.where}/{self._list_name}")
        found: dict[str, None] = {}
        pending = [name]
        while pending:
            for other in self._said_needs(pending.pop()):
                if other not in found and other != name:
                    found[other] = None
                    pending.append(other)
            if len(found) > _MOST_NEEDED:
                raise InputError(f"{printable(name)} needs more than {_MOST_NEEDED} modules", subject=self.where)
        return ModuleNeeds(tuple(found), "modinfo")

    @cached_property
    def _listed(self) -> tuple[str, Mapping[str, str]]:
        """The list of dependencies that is there, and its lines: the file of a module to the files that it needs."""
        text = self._text("modules.dep")
        if text is not None and ":" in text:
            return "modules.dep", dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        values = self._binary("modules.dep.bin") or {}
        return "modules.dep.bin", dict(value.split(":", 1) for value in values.values() if ":" in value)

    @property
    def _list_name(self) -> str:
        return self._listed[0]

    @cached_property
    def _dependencies(self) -> Mapping[str, tuple[str, ...]]:
        return {
            module_name(path): tuple(dict.fromkeys(map(module_name, needed.split())))
            for path, needed in self._listed[1].items()
        }

    @cached_property
    def _paths(self) -> Mapping[str, str]:
        """The paths of all modules by name: as the list has them, else as the files are found.

        An initial RAM disk is in memory, and modules may have been put in behind the list's back: there, files count.
        """
        listed = self._listed[1]
        if listed and self.files.kind != "cpio":
            return {module_name(path): path if path[:1] == "/" else join(self.folder, path) for path in listed}
        found: dict[str, str] = {}
        for count, entry in enumerate(self._walk()):
            if count > _MOST_FILES:
                raise InputError(f"more than {_MOST_FILES} files", subject=self.where)
            if entry.kind is not FileKind.FOLDER and entry.path.endswith(MODULE_SUFFIXES):
                name = module_name(entry.path)
                if name not in found or f"{self.folder}/updates/" in entry.path:
                    found[name] = entry.path
        return found

    def _walk(self) -> Iterator[FileEntry]:
        return self.files.walk(self.folder)

    def _said_needs(self, name: str) -> tuple[str, ...]:
        """What the module ``name`` says itself that it needs; nothing when it has no file here."""
        entry = self.file(name)
        if entry is None:
            return ()
        content = self.files.read(entry, max_bytes=_MOST_MODULE_BYTES)
        subject = f"{self.files.name}, {printable(entry.path)}"
        if not entry.path.endswith(".ko"):
            content = unpack_module(content, subject)
        said = (text.partition("=") for text in modinfo(content, subject))
        needed = (value.split(",") for key, _, value in said if key == "depends")
        return tuple(normal_name(other) for names in needed for other in names if other)

    def _text(self, name: str) -> str | None:
        content = self._read(name)
        return None if content is None else content.decode("utf-8", "replace")

    def _binary(self, name: str) -> Mapping[str, str] | None:
        content = self._read(name)
        return None if not content else parse_index(content, f"{self.where}/{name}")

    def _read(self, name: str) -> bytes | None:
        entry = self.files.lookup(join(self.folder, name))
        if entry is None or entry.kind is not FileKind.FILE:
            return None
        return self.files.read(entry, max_bytes=_MOST_LIST_BYTES)


def find_modules(files: FileSystem, release: str | None) -> ModuleIndex | None:
    """The modules for ``release`` on ``files``; without a release, those of the only one that is there.

    None when there are none. Raises InputError where the file system cannot be read.
    """
    if release is None:
        releases = module_releases(files)
        if len(releases) != 1:
            return None
        release = releases[0]
    if "/" in release or release in {"", ".", ".."}:
        return None
    for base in _BASES:
        entry = files.lookup(join(base, release))
        if entry is not None and entry.kind is FileKind.FOLDER:
            return ModuleIndex(files, entry.path)
    return None


def module_releases(files: FileSystem) -> tuple[str, ...]:
    """The kernel releases that ``files`` has modules for. Raises InputError where a folder cannot be read."""
    found: dict[str, None] = {}
    for base in _BASES:
        entry = files.lookup(base)
        if entry is not None and entry.kind is FileKind.FOLDER:
            found |= dict.fromkeys(child.name for child in files.entries(entry) if child.kind is FileKind.FOLDER)
    return tuple(found)


def parse_index(content: bytes, subject: str) -> dict[str, str]:
    """Keys to values of one of kmod's binary lists (``modules.dep.bin``): a tree of prefixes.

    Raises InputError when it is damaged.
    """
    result: dict[str, str] = {}
    try:
        magic, version, root = struct.unpack_from(">III", content)
        if magic != _INDEX_MAGIC or version >> 16 != _INDEX_VERSION:
            raise InputError("no list of kmod's", subject=subject, found=f"{magic:#010x}, version {version:#x}")
        pending = [(root, b"")]
        budget = min(_MOST_NODES, len(content))  # a node takes a byte at least, and none is reached twice
        while pending:
            budget -= 1
            if budget < 0:
                raise InputError("a list of kmod's that goes round in circles", subject=subject)
            reference, key = pending.pop()
            pending += _node(content, reference, key, result)
    except (struct.error, IndexError, ValueError) as error:
        raise InputError("a damaged list of kmod's", subject=subject) from error
    return result


def _node(content: bytes, reference: int, key: bytes, result: dict[str, str]) -> list[tuple[int, bytes]]:
    """Read one node: its value goes into ``result``, its children are given back. Raises ValueError and the like."""
    position = reference & _OFFSET
    if reference & _HAS_PREFIX:
        end = content.index(b"\0", position)
        key += content[position:end]
        position = end + 1
    if len(key) > _MOST_KEY_BYTES:
        raise ValueError("a key is too long")
    children = []
    if reference & _HAS_CHILDREN:
        first, last = content[position], content[position + 1]
        for index, byte in enumerate(range(first, last + 1)):
            (child,) = struct.unpack_from(">I", content, position + 2 + 4 * index)
            if child:
                children.append((child, key + bytes([byte])))
        position += 2 + 4 * max(last - first + 1, 0)
    if reference & _HAS_VALUES:
        (count,) = struct.unpack_from(">I", content, position)
        if count:
            start = position + 8  # behind the count and the first value's priority
            with suppress(UnicodeDecodeError):
                result[key.decode()] = content[start : content.index(b"\0", start)].decode()
    return children
