"""PE images made field by field, so that each can be wrong in exactly one way."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from armvm.execution import ExecutionState

TEXT = 0x60000020
DATA = 0xC0000040
READ_ONLY = 0x40000040


@dataclass(frozen=True)
class Section:
    """A section whose header says what it is told to, and whose content stands where the header says, or nowhere."""

    name: str
    virtual_address: int
    content: bytes
    characteristics: int = READ_ONLY
    virtual_size: int | None = None
    raw_offset: int | None = None
    raw_size: int | None = None


def relocation_block(page: int, *entries: tuple[int, int], size: int | None = None) -> bytes:
    """A block of a relocation table; ``entries`` are (type, offset in the page)."""
    body = b"".join(struct.pack("<H", kind << 12 | offset) for kind, offset in entries)
    return struct.pack("<II", page, 8 + len(body) if size is None else size) + body


DEFAULT_SECTIONS = (
    Section(".text", 0x1000, b"\x1f\x20\x03\xd5" * 64, TEXT),
    Section(".data", 0x2000, b"data" * 16, DATA),
    Section(".reloc", 0x3000, relocation_block(0x2000, (10, 0), (0, 0)), 0x42000040),
)


def make_pe(
    state: ExecutionState = ExecutionState.AARCH64,
    *,
    sections: Sequence[Section] = DEFAULT_SECTIONS,
    machine: int | None = None,
    plus: bool | None = None,
    magic: int | None = None,
    subsystem: int = 10,
    characteristics: int = 0x0022,
    entry: int = 0x1000,
    image_base: int = 0,
    section_alignment: int = 0x1000,
    file_alignment: int = 0x200,
    size_of_image: int | None = None,
    size_of_headers: int | None = None,
    section_count: int | None = None,
    directory_count: int = 16,
    directories: dict[int, tuple[int, int]] | None = None,
    optional_size: int | None = None,
    pe_offset: int = 0x80,
    tail: bytes = b"",
) -> bytes:
    """An EFI application that nothing is wrong with, but for what the arguments change."""
    plus = state is ExecutionState.AARCH64 if plus is None else plus
    fixed = 112 if plus else 96
    optional_size = fixed + 16 * 8 if optional_size is None else optional_size
    headers_end = pe_offset + 24 + optional_size + 40 * len(sections)
    if size_of_headers is None:
        size_of_headers = -(-headers_end // 512) * 512
    placed, position = [], -(-headers_end // 512) * 512
    for section in sections:
        raw_size = -(-len(section.content) // 512) * 512 if section.raw_size is None else section.raw_size
        placed.append((section, position if section.raw_offset is None else section.raw_offset, raw_size))
        position += -(-len(section.content) // 512) * 512
    last = max((s.virtual_address + max(len(s.content), s.virtual_size or 0) for s in sections), default=0x1000)
    size_of_image = -(-last // 0x1000) * 0x1000 if size_of_image is None else size_of_image

    body = bytearray(position)
    body[:2] = b"MZ"
    struct.pack_into("<I", body, 0x3C, pe_offset)
    count = len(sections) if section_count is None else section_count
    coff = (b"PE\0\0", state.pe_machine if machine is None else machine, count, 0, 0, 0, optional_size, characteristics)
    struct.pack_into("<4sHHIIIHH", body, pe_offset, *coff)
    optional = bytearray(fixed + 16 * 8)
    struct.pack_into("<H", optional, 0, magic or (0x20B if plus else 0x10B))
    struct.pack_into("<I", optional, 16, entry)
    struct.pack_into("<Q" if plus else "<I", optional, 24 if plus else 28, image_base)
    struct.pack_into("<II", optional, 32, section_alignment, file_alignment)
    struct.pack_into("<II", optional, 56, size_of_image, size_of_headers)
    struct.pack_into("<H", optional, 68, subsystem)
    struct.pack_into("<I", optional, fixed - 4, directory_count)
    reloc = next((s for s in sections if s.name == ".reloc"), None)
    tables = {5: (reloc.virtual_address, len(reloc.content))} if reloc else {}
    for index, (address, size) in {**tables, **(directories or {})}.items():
        struct.pack_into("<II", optional, fixed + index * 8, address, size)
    optional_offset = pe_offset + 24
    body[optional_offset : optional_offset + optional_size] = optional[:optional_size].ljust(optional_size, b"\0")
    for index, (section, raw_offset, raw_size) in enumerate(placed):
        virtual_size = len(section.content) if section.virtual_size is None else section.virtual_size
        header = (section.name.encode(), virtual_size, section.virtual_address, raw_size, raw_offset)
        place = optional_offset + optional_size + index * 40
        struct.pack_into("<8sIIII12xI", body, place, *header, section.characteristics)
        if section.raw_offset is None:
            body[raw_offset : raw_offset + len(section.content)] = section.content
    return bytes(body) + tail


def linux_kernel(state: ExecutionState = ExecutionState.AARCH64, size: int = 0x8000) -> bytes:
    """What a Linux kernel with an EFI stub looks like from outside: two sections and no relocations."""
    sections = (
        Section(".text", 0x1000, bytes(i * 7 & 0xFF for i in range(size)), TEXT),
        Section(".data", 0x1000 + -(-size // 0x1000) * 0x1000, b"kernel data", DATA),
    )
    kernel = bytearray(
        make_pe(
            state,
            sections=sections,
            characteristics=0x0206,
            directory_count=6,
            optional_size=160 if state is ExecutionState.AARCH64 else 144,
        )
    )
    if state is ExecutionState.AARCH64:
        kernel[0x38:0x3C] = b"ARM\x64"
    else:
        struct.pack_into("<I", kernel, 0x24, 0x016F2818)
    return bytes(kernel)
