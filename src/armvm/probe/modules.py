"""Linux kernel modules: which files a driver needs, in the order in which they must be loaded, and their content.

Source: modules.dep(5), modinfo(8), and the ELF specification for the .modinfo section of a module.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from armvm.disk.decompress import Member
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import MIB

MOST_MODULE_BYTES = 64 * MIB
_MOST_LIST_BYTES = 16 * MIB
_MOST_FILES = 50_000
_MOST_MODULES = 128
_MOST_SECTIONS = 4096
_MOST_SECTION_BYTES = MIB
MODULE_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
"""How the names of module files end."""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A kernel module by its name as the kernel says it (``virtio_net``), and its file, perhaps compressed.

    ``path`` is None for a module that was asked for and that this kernel does not have.
    """

    name: str
    path: Path | None


def find_kernel_modules(folder: Path, wanted: Sequence[str]) -> tuple[ModuleFile, ...]:
    """The files of the ``wanted`` modules and of all that they depend on, in the order in which to load them.

    ``folder`` is a ``lib/modules/RELEASE``, of an installed system or of an unpacked package: without ``modules.dep``
    (which packages leave to depmod) the modules themselves say what they need. What ``modules.builtin`` names is left
    out. Raises InputError when ``folder`` holds no modules, or a file in it is damaged.
    """
    files = _module_files(folder)
    builtin = {module_name(line) for line in _lines(folder / "modules.builtin")}
    known = _dependencies(folder)
    ordered: dict[str, ModuleFile] = {}
    for name in map(normal_name, wanted):
        if name in builtin:
            continue
        if name in files:
            _add(name, files, known, ordered)
        else:
            ordered.setdefault(name, ModuleFile(name, None))
    return tuple(ordered.values())


def _add(
    name: str, files: Mapping[str, Path], known: Mapping[str, tuple[str, ...]], ordered: dict[str, ModuleFile]
) -> None:
    """Put ``name`` behind everything that it needs (depth first, without recursion; a circle is broken anywhere)."""
    open_names = [name]
    entered: set[str] = set()
    while open_names:
        current = open_names[-1]
        if current in ordered or current in entered:
            open_names.pop()
            ordered.setdefault(current, ModuleFile(current, files[current]))
            continue
        entered.add(current)
        if len(entered) + len(ordered) > _MOST_MODULES:
            raise InputError(f"{printable(name)} needs more than {_MOST_MODULES} modules", subject=str(files[name]))
        needed = known[current] if current in known else _needed_by(files[current])
        # A dependency without a file is built in, or its absence is said by the kernel when it loads this one.
        open_names += [other for other in reversed(needed) if other in files and other not in entered]


def read_module(path: Path) -> bytes:
    """A module's content, decompressed. Raises InputError when it cannot be read or is larger than 64 MiB."""
    packed = _read(path, MOST_MODULE_BYTES)
    return packed if path.suffix == ".ko" else unpack_module(packed, str(path))


def unpack_module(packed: bytes, name: str) -> bytes:
    """A compressed module's content. Raises InputError, with ``name``, when it is damaged or larger than 64 MiB."""
    pieces = bytearray()
    for piece in Member(MemoryDisk(packed, name=name)):
        pieces += piece
        if len(pieces) > MOST_MODULE_BYTES:
            raise InputError("larger than any module", subject=name, expected=f"at most {MOST_MODULE_BYTES} bytes")
    return bytes(pieces)


def _module_files(folder: Path) -> dict[str, Path]:
    """Name to file of every module below ``folder``; ``updates`` and ``extra`` go before the kernel's own."""
    found: dict[str, Path] = {}
    seen = 0
    for top, folders, names in os.walk(folder):
        folders.sort()
        seen += len(names)
        if seen > _MOST_FILES:
            raise InputError(f"more than {_MOST_FILES} files", subject=str(folder), expected="a lib/modules/RELEASE")
        replaces = Path(top).relative_to(folder).parts[:1] in {("updates",), ("extra",)}
        for name in sorted(names):
            if name.endswith(MODULE_SUFFIXES) and (replaces or module_name(name) not in found):
                found[module_name(name)] = Path(top, name)
    if not found:
        raise InputError("no kernel modules", subject=str(folder), expected="a lib/modules/RELEASE with .ko files")
    return found


def _dependencies(folder: Path) -> dict[str, tuple[str, ...]]:
    """What ``modules.dep`` says, if it is there: names to the names of what they need, nearest first."""
    result: dict[str, tuple[str, ...]] = {}
    for line in _lines(folder / "modules.dep"):
        module, colon, needed = line.partition(":")
        if colon:
            # depmod lists them so that the last is to be loaded first.
            result[module_name(module)] = tuple(module_name(path) for path in reversed(needed.split()))
    return result


def _needed_by(path: Path) -> tuple[str, ...]:
    """What a module says itself that it needs: ``depends``, and the soft dependencies that go before it."""
    needed: list[str] = []
    for entry in modinfo(read_module(path), str(path)):
        key, _, value = entry.partition("=")
        if key == "depends":
            needed += value.split(",")
        elif key == "softdep":
            needed += value.partition("pre:")[2].partition("post:")[0].split()
    return tuple(normal_name(name) for name in needed if name)


def modinfo(content: bytes, subject: str) -> tuple[str, ...]:
    """The ``key=value`` texts of a module's .modinfo section (ELF-64 Object File Format 1.5, "Sections").

    Raises InputError when ``content`` is no little-endian ELF object with such a section.
    """
    for name, offset, size in _sections(content, subject):
        if name == b".modinfo":
            if size > _MOST_SECTION_BYTES or offset + size > len(content):
                raise InputError("the section .modinfo goes past the end", subject=subject, offset_bytes=offset)
            text = content[offset : offset + size]
            return tuple(part.decode("utf-8", "replace") for part in text.split(b"\0") if part)
    raise InputError("no section .modinfo", subject=subject, expected="a Linux kernel module")


def _sections(content: bytes, subject: str) -> Iterable[tuple[bytes, int, int]]:
    """(name, file offset, size) of each section."""
    wide = content[4:5] == b"\x02"
    header = struct.Struct("<40xQ10xHHH" if wide else "<32xI10xHHH")
    section = struct.Struct("<I20xQQ" if wide else "<I12xII")
    if content[:4] != b"\x7fELF" or content[5:6] != b"\x01" or len(content) < header.size:
        raise InputError("no ELF file", subject=subject, expected="a little-endian Linux kernel module")
    table, entry_size, count, names_index = header.unpack_from(content)
    if not section.size <= entry_size <= 1024 or count > _MOST_SECTIONS or table + count * entry_size > len(content):
        raise InputError("the section table goes past the end", subject=subject, offset_bytes=table)
    entries = [section.unpack_from(content, table + index * entry_size) for index in range(count)]
    if names_index >= count:
        raise InputError("no section names", subject=subject, found=f"index {names_index} of {count}")
    _, names_offset, names_size = entries[names_index]
    names = content[names_offset : names_offset + min(names_size, _MOST_SECTION_BYTES)]
    return [(names[start:].split(b"\0", 1)[0][:64], offset, size) for start, offset, size in entries]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return _read(path, _MOST_LIST_BYTES).decode("utf-8", "replace").splitlines()


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    if len(content) > most_bytes:
        raise InputError(f"larger than {most_bytes} bytes", subject=str(path))
    return content


def module_name(path: str) -> str:
    """The name of the module in a file, as the kernel says it: ``block/xen-blkfront.ko.xz`` → ``xen_blkfront``."""
    return normal_name(PurePosixPath(path).name.partition(".ko")[0])


def normal_name(name: str) -> str:
    """A module's name as the kernel says it: ``virtio-net`` → ``virtio_net``."""
    return name.replace("-", "_")
