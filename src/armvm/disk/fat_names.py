"""Names on FAT: which are legal, and the unique 8.3 alias beside each long one (fatgen103, "Long Names")."""

from __future__ import annotations

from collections.abc import Sequence

from armvm.disk.fat_directory import MOST_NAME_UNITS, fold_name

ILLEGAL_CHARACTERS = frozenset('"*/:<>?\\|') | {chr(code) for code in range(0x20)} | {"\x7f"}
"""What no name may hold."""
ILLEGAL_SHORT_CHARACTERS = ILLEGAL_CHARACTERS | frozenset("+,;=[]")
"""What no 8.3 name may hold either (the dot between its parts is not stored)."""


def name_fault(name: str) -> str | None:
    """Why ``name`` cannot be the name of a file on FAT; None when it can."""
    if name in (".", ".."):
        return "is a folder's name for itself or its parent"
    illegal = next((character for character in name if character in ILLEGAL_CHARACTERS), None)
    if illegal is not None:
        return f"holds {illegal!r}, which FAT does not allow"
    if name.endswith((".", " ")):
        return "ends in a dot or a space, which FAT drivers cut off"
    try:
        units = len(name.encode("utf-16-le")) // 2
    except UnicodeEncodeError:
        return "is no valid Unicode"
    return f"has {units} UTF-16 units, FAT allows {MOST_NAME_UNITS}" if units > MOST_NAME_UNITS else None


def short_aliases(names: Sequence[str]) -> list[bytes]:
    """The 11 bytes of a unique 8.3 name for each of a directory's ``names``, in their order.

    A name that is 8.3 but for its case keeps it; any other gets a numeric tail (``LONGNA~1TXT``). Aliases are plain
    ASCII: what a byte above 0x7f means depends on a code page that the reader may not have.
    """
    taken = {fold_name(name) for name in names}
    tails: dict[tuple[str, str], int] = {}
    aliases = []
    for name in names:
        base, extension = _basis(name)
        if not (name.isascii() and _dotted(base, extension) == fold_name(name)):
            basis = base[:6], extension
            number = tails.get(basis, 1)
            while _dotted(_with_tail(base, number), extension) in taken:
                number += 1
            tails[basis] = number + 1
            base = _with_tail(base, number)
            taken.add(_dotted(base, extension))
        aliases.append(f"{base:8}{extension:3}".encode("ascii"))
    return aliases


def needs_long_name(name: str, alias: bytes) -> bool:
    """Whether ``name`` is more than its ``alias`` says.

    The case bits that Windows NT keeps in a reserved byte are in no specification, so lower case is a long name too.
    """
    text = alias.decode("ascii")
    return name != _dotted(text[:8].rstrip(" "), text[8:].rstrip(" "))


def _basis(name: str) -> tuple[str, str]:
    """What an alias is built from: the first eight characters, and the first three after the last dot."""
    stem, dot, extension = name.strip(". ").rpartition(".")
    if not dot:
        stem, extension = extension, ""
    return _short_part(stem)[:8], _short_part(extension)[:3]


def _short_part(text: str) -> str:
    kept = (character for character in text if character not in " .")
    return "".join(
        character.upper() if character.isascii() and character not in ILLEGAL_SHORT_CHARACTERS else "_"
        for character in kept
    )


def _dotted(base: str, extension: str) -> str:
    return f"{base}.{extension}" if extension else base


def _with_tail(base: str, number: int) -> str:
    tail = f"~{number}"
    return base[: 8 - len(tail)] + tail
