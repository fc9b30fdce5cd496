"""Boot Loader Specification entries: the text files of type 1 and the unified kernel images of type 2.

Source: The Boot Loader Specification (UAPI.1) and the Version Format Specification (UAPI.10).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from armvm.disk.files import FileKind, FileSystem
from armvm.errors import InputError
from armvm.guest.facts import PlacedFile, PlacedLine
from armvm.guest.trouble import Trouble, remark, untold
from armvm.printable import printable
from armvm.units import KIB

_T = TypeVar("_T")

MOST_ENTRY_BYTES = 64 * KIB
MOST_ENTRIES = 512
_COUNTING = re.compile(r"\+(\d{1,6})(?:-(\d{1,6}))?$")
_VERSION_PART = re.compile(r"\d+|[A-Za-z]+|[~^.-]")
_ARCHITECTURES = {"aa64": "aa64", "arm64": "aa64", "aarch64": "aa64", "arm": "arm"}


@dataclass(frozen=True, slots=True)
class LoaderEntry:
    """A boot loader entry of type 1. Paths are as the file has them, from the root of its own file system.

    ``options`` are all its options lines in one, ``options_line`` the first of them. ``id`` is the file's name without
    its ending and boot counter; ``tries_left`` is None without a counter.
    """

    file: PlacedFile
    id: str
    title: str
    lines: tuple[PlacedLine, ...]
    linux: PlacedLine | None = None
    efi: PlacedLine | None = None
    initrds: tuple[PlacedLine, ...] = ()
    options: str = ""
    options_line: PlacedLine | None = None
    devicetree: PlacedLine | None = None
    version: str = ""
    machine_id: str = ""
    sort_key: str = ""
    architecture: str | None = None
    tries_left: int | None = None


@dataclass(frozen=True, slots=True)
class UnifiedEntry:
    """A unified kernel image in ``/EFI/Linux`` (type 2)."""

    file: PlacedFile
    id: str
    tries_left: int | None = None


@dataclass(frozen=True, slots=True)
class Rank:
    """What a menu sorts an entry by; empty where it says nothing."""

    id: str
    sort_key: str = ""
    machine_id: str = ""
    version: str = ""
    tries_left: int | None = None


def value_of(line: PlacedLine) -> str:
    """What stands behind the key of a line."""
    parts = line.text.strip().split(None, 1)
    return parts[1].strip() if len(parts) > 1 else ""


def parse_entry(file: PlacedFile) -> LoaderEntry:
    """Read an entry of type 1. Raises InputError when it cannot be read."""
    text = file.files.read(file.path, max_bytes=MOST_ENTRY_BYTES).decode("utf-8", "replace")
    lines: dict[str, list[PlacedLine]] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        stripped = raw.strip()
        if stripped and not stripped.startswith("#"):
            lines.setdefault(stripped.split(None, 1)[0].lower(), []).append(PlacedLine(file, number, raw.rstrip("\r")))

    def one(*keys: str) -> PlacedLine | None:
        return next((lines[key][-1] for key in keys if key in lines), None)

    def word(key: str) -> str:
        line = one(key)
        return value_of(line) if line else ""

    name, tries_left = _uncounted(file.path.rpartition("/")[2].removesuffix(".conf"))
    architecture = word("architecture").lower()
    options = lines.get("options", [])
    return LoaderEntry(
        file=file,
        id=name,
        title=word("title") or word("version") or name,
        lines=tuple(line for group in lines.values() for line in group),
        linux=one("linux"),
        efi=one("efi", "uki"),
        initrds=tuple(lines.get("initrd", [])),
        options=" ".join(filter(None, map(value_of, options))),
        options_line=options[0] if options else None,
        devicetree=one("devicetree"),
        version=word("version"),
        machine_id=word("machine-id"),
        sort_key=word("sort-key"),
        architecture=_ARCHITECTURES.get(architecture, architecture) or None,
        tries_left=tries_left,
    )


def read_entries(files: FileSystem, folder: str) -> tuple[tuple[LoaderEntry, ...], tuple[Trouble, ...]]:
    """The entries of type 1 in a folder, by name, and what cannot be read of them."""
    found: list[LoaderEntry] = []
    troubles: list[Trouble] = []
    for file in _files_in(files, folder, ".conf", troubles):
        try:
            found.append(parse_entry(file))
        except InputError as error:
            troubles.append(untold(file.where, printable(error.message)))
    return tuple(found), tuple(troubles)


def read_unified(files: FileSystem, folder: str) -> tuple[tuple[UnifiedEntry, ...], tuple[Trouble, ...]]:
    """The unified kernel images in a folder, by name, and what cannot be read of them."""
    troubles: list[Trouble] = []
    found = []
    for file in _files_in(files, folder, ".efi", troubles):
        name, tries_left = _uncounted(file.path.rpartition("/")[2][: -len(".efi")])
        found.append(UnifiedEntry(file, name, tries_left))
    return tuple(found), tuple(troubles)


def in_order(items: Iterable[_T], rank: Callable[[_T], Rank]) -> tuple[_T, ...]:
    """As a menu has them: those with tries left, those with a sort key by it, then machine, newest version first."""
    ordered = sorted(items, key=lambda item: version_key(rank(item).id), reverse=True)
    ordered.sort(key=lambda item: version_key(rank(item).version) if rank(item).sort_key else _LOWEST, reverse=True)
    ordered.sort(key=lambda item: _group(rank(item)))
    return tuple(ordered)


def _group(rank: Rank) -> tuple[bool, bool, str, str]:
    has_key = bool(rank.sort_key)
    return rank.tries_left == 0, not has_key, rank.sort_key, rank.machine_id if has_key else ""


def _files_in(files: FileSystem, folder: str, ending: str, troubles: list[Trouble]) -> list[PlacedFile]:
    """The files in a folder with that ending; none when there is no such folder."""
    try:
        entry = files.lookup(folder)
        if entry is None or entry.kind is not FileKind.FOLDER:
            return []
        names = [
            found.path
            for found in files.entries(entry)
            if found.name.lower().endswith(ending) and found.kind in (FileKind.FILE, FileKind.LINK)
        ]
    except InputError as error:
        troubles.append(untold(f"{files.name}, {folder}", printable(error.message)))
        return []
    if len(names) > MOST_ENTRIES:
        troubles.append(remark(f"{files.name}, {folder}", f"{len(names)} entries", f"at most {MOST_ENTRIES} are read"))
    return [PlacedFile(files, path) for path in names[:MOST_ENTRIES]]


def _uncounted(name: str) -> tuple[str, int | None]:
    """A name without its boot counter (``name+3-1``), and the tries left (UAPI.1, boot counting)."""
    found = _COUNTING.search(name)
    return (name, None) if found is None else (name[: found.start()], int(found[1]))


def compare_versions(left: str, right: str) -> int:
    """Below 0 when ``left`` is older, above 0 when it is newer (UAPI.10)."""
    a, b = _VERSION_PART.findall(left[:256]), _VERSION_PART.findall(right[:256])
    for one, other in zip(a, b, strict=False):
        if one == other:
            continue
        ranks = _rank(one), _rank(other)
        if ranks[0] != ranks[1]:
            return -1 if ranks[0] < ranks[1] else 1
        if one.isdigit():
            if int(one) != int(other):
                return -1 if int(one) < int(other) else 1
            continue
        return -1 if one < other else 1
    longer = a[len(b) :] or b[len(a) :]
    if not longer:
        return 0
    result = -1 if longer[0] == "~" else 1
    return result if len(a) > len(b) else -result


def _rank(part: str) -> int:
    """The order of kinds of parts: ``~`` is before the end, then ``-``, ``^``, ``.``, letters, digits."""
    return "~-^.".index(part) if part in "~-^." else 5 if part.isdigit() else 4


version_key = functools.cmp_to_key(compare_versions)
"""A version as a key to sort by."""
_LOWEST = version_key("~")
