"""LVM2 on a physical volume: its label, and the volume group's description in LVM's own text (lvm2, lib/format_text).

Our own reader: the library that knows LVM2 (dissect.volume 3, AGPL) maps striped volumes wrongly (it takes the stripe
size for the size of a whole stripe), does not follow metadata around the end of their ring, and splits hostile text in
quadratic time. What is read is small: a label, a header, a text.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.units import MIB

LABEL_SECTORS = (0, 512, 1024, 1536)
"""Where the label may be, in bytes."""
SECTOR_BYTES = 512

_MOST_AREAS = 16
_MOST_TEXT_BYTES = 4 * MIB
_MOST_DEPTH = 8
_MOST_TOKENS = 400_000
_AREA_MAGIC = b" LVM2 x[5A%r0N*>"
_AREA_HEADER_BYTES = 512
_IGNORED = 1
_TOKEN = re.compile(rb'\s+|#[^\n]*|("(?:[^"\\]|\\.)*")|([{}\[\]=,])|([^\s{}\[\]=,#"]+)')

Value = int | str | list[int | str]
Section = dict[str, "Value | Section"]


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """One physical volume: its UUID (32 characters, no dashes), and what its newest metadata say as text."""

    uuid: str
    metadata: bytes


def read_physical_volume(disk: Disk, *, subject: str) -> PhysicalVolume:
    """Read the label and the metadata of a physical volume. Raises InputError when there is none, or it is damaged."""
    head = disk.read(0, min(4096, disk.size_bytes))
    for sector in LABEL_SECTORS:
        if head[sector : sector + 8] == b"LABELONE" and head[sector + 24 : sector + 32] == b"LVM2 001":
            break
    else:
        raise InputError("has no LVM2 label", subject=subject)
    offset = sector + int.from_bytes(head[sector + 20 : sector + 24], "little")
    header = head[offset : sector + SECTOR_BYTES]
    if len(header) < 40 or not header[:32].isalnum():
        raise InputError("its LVM2 label is damaged", subject=subject)
    places = _places(header[40:])
    if len(places) < 2:
        raise InputError("its LVM2 label names no metadata", subject=subject)
    for start, length in places[1]:
        text = _metadata(disk, start, length, subject)
        if text is not None:
            return PhysicalVolume(header[:32].decode("ascii"), text)
    raise InputError("carries no LVM2 metadata: they are on another physical volume", subject=subject)


def _places(raw: bytes) -> list[list[tuple[int, int]]]:
    """Lists of (offset, size), each ended by zeros: the data areas, then the metadata areas."""
    lists: list[list[tuple[int, int]]] = [[]]
    for at in range(0, len(raw) - 15, 16):
        offset, size = struct.unpack_from("<QQ", raw, at)
        if offset:
            lists[-1].append((offset, size))
            if len(lists[-1]) > _MOST_AREAS:
                break
        elif len(lists) == 2:
            break
        else:
            lists.append([])
    return lists


def _metadata(disk: Disk, start: int, length: int, subject: str) -> bytes | None:
    """The text in one metadata area, a ring that starts behind its header; None when it holds none."""
    header = disk.read(start, _AREA_HEADER_BYTES)
    offset, size, _checksum, flags = struct.unpack_from("<QQII", header, 40)
    if header[4:20] != _AREA_MAGIC or not offset or flags & _IGNORED:
        return None
    if size > _MOST_TEXT_BYTES or not _AREA_HEADER_BYTES <= offset < length or size > length - _AREA_HEADER_BYTES:
        raise InputError("its LVM2 metadata are damaged", subject=subject, found=f"{size} bytes at {offset}")
    first = min(size, length - offset)
    text = disk.read(start + offset, first)
    return text + disk.read(start + _AREA_HEADER_BYTES, size - first)


def parse_text(text: bytes, *, subject: str) -> Section:
    """LVM's text format: ``name { … }`` and ``name = value`` with numbers, strings and lists of them.

    Raises InputError where it is none.
    """
    fault = InputError("its LVM2 metadata are no text of LVM's", subject=subject)
    tokens = _tokens(text.rstrip(b"\0"), fault)
    root: Section = {}
    sections = [root]
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token == "}":  # noqa: S105 - a token of the text
            sections.pop()
            if not sections:
                raise fault
        elif at >= len(tokens):
            raise fault
        elif tokens[at] == "{":
            section: Section = {}
            sections[-1][token] = section
            sections.append(section)
            if len(sections) > _MOST_DEPTH:
                raise fault
            at += 1
        elif tokens[at] == "=":
            value, at = _value(tokens, at + 1, fault)
            sections[-1][token] = value
        else:
            raise fault
    if len(sections) != 1:
        raise fault
    return root


def _tokens(text: bytes, fault: InputError) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(tokens) > _MOST_TOKENS:
            raise fault
        if match.lastindex:
            tokens.append(match[0].decode("utf-8", "replace"))
        at = match.end()
    return tokens


def _value(tokens: list[str], at: int, fault: InputError) -> tuple[Value, int]:
    if at < len(tokens) and tokens[at] == "[":
        values: list[int | str] = []
        at += 1
        while at < len(tokens) and tokens[at] != "]":
            if tokens[at] != ",":
                values.append(_scalar(tokens[at], fault))
            at += 1
        if at >= len(tokens):
            raise fault
        return values, at + 1
    if at >= len(tokens):
        raise fault
    return _scalar(tokens[at], fault), at + 1


def _scalar(token: str, fault: InputError) -> int | str:
    if token.startswith('"'):
        return token[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if token in ("{", "}", "[", "]", "=", ",") or len(token) > 32:
        raise fault
    return int(token) if token.lstrip("-").isdecimal() and token.isascii() else token
