"""Unified kernel images: a boot stub with a kernel, its initial RAM disk and its command line as PE sections.

The sections are those of the Unified Kernel Image specification (UAPI.5), so that other tools can read the result and
other stubs that follow it can be used.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from armvm.disk.composed import ComposedDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import (
    CERTIFICATE_DIRECTORY,
    COFF_HEADER_SIZE,
    DEBUG_DIRECTORY,
    DIRECTORY,
    MAX_SECTIONS,
    SECTION_HEADER,
    SECTION_INITIALIZED_DATA,
    SECTION_READ,
    PeImage,
    parse_pe,
)
from armvm.printable import printable
from armvm.units import align_up

_PAGE = 4096
_LIMIT = 1 << 32
_INITRD_ALIGNMENT = 4
_COMMAND_LINE_SIZE = {ExecutionState.AARCH64: 2048, ExecutionState.AARCH32: 1024}
"""COMMAND_LINE_SIZE of Linux, the final NUL included: what is longer is cut off without a word."""

# Offsets of what changes, from the COFF header's signature and from the optional header's magic.
_SECTION_COUNT = 6
_SYMBOL_TABLE = 12
_SIZE_OF_INITIALIZED_DATA = 8
_SIZE_OF_IMAGE = 56
_SIZE_OF_HEADERS = 60
_CHECKSUM = 64


@dataclass(frozen=True, slots=True)
class _Section:
    """A section to add: its pieces, one after the other, each at the next multiple of four bytes."""

    name: str
    pieces: tuple[Disk, ...]

    def placed(self) -> list[tuple[int, Disk]]:
        position = 0
        result = []
        for piece in self.pieces:
            position = align_up(position, _INITRD_ALIGNMENT)
            result.append((position, piece))
            position += piece.size_bytes
        return result

    @property
    def size_bytes(self) -> int:
        offset, last = self.placed()[-1]
        return offset + last.size_bytes


def build_uki(
    stub: bytes,
    *,
    linux: Disk,
    initrd: Sequence[Disk] = (),
    cmdline: str | None = None,
    os_release: str | None = None,
    uname: str | None = None,
    name: str = "unified kernel image",
) -> ComposedDisk:
    """A unified kernel image, composed lazily: neither kernel nor initial RAM disk is copied into memory.

    The initial RAM disks are joined, each at a multiple of four bytes, as Linux asks for. Without ``cmdline`` (or with
    an empty one) the image has no built-in command line. Closing the result closes ``linux`` and ``initrd``.

    Raises InputError when the stub or the kernel is no EFI application or the whole would be too large, UsageError
    when they are made for different machines or a text cannot stand in the image.
    """
    stub_disk = MemoryDisk(stub, name="the boot stub")
    image = parse_pe(stub_disk)
    state = _check_stub(image, stub_disk)
    _check_kernel(linux, state)
    texts = (
        (".osrel", os_release),
        (".cmdline", _checked_cmdline(cmdline, state)),
        (".uname", uname),
    )
    sections = [
        _Section(section, (MemoryDisk(_encoded(section, text), name=section),)) for section, text in texts if text
    ]
    if any(disk.size_bytes for disk in initrd):
        sections.append(_Section(".initrd", tuple(disk for disk in initrd if disk.size_bytes)))
    sections.append(_Section(".linux", (linux,)))
    return _compose(stub, image, sections, name)


def _check_stub(image: PeImage, stub: Disk) -> ExecutionState:
    if image.state is None:
        raise InputError("no program for an ARM machine", subject=stub.name, found=f"machine {image.machine:#06x}")
    _refuse_problems(image, stub, image.state)
    if not any(section.raw_size for section in image.sections):
        raise InputError("it holds no code", subject=stub.name)
    if image.section(".linux"):
        raise InputError(
            "it holds a kernel already", subject=stub.name, hint="give a bare stub, such as linuxaa64.efi.stub"
        )
    return image.state


def _check_kernel(linux: Disk, state: ExecutionState) -> None:
    start = linux.read(0, min(linux.size_bytes, 64))
    if start[:2] == b"\x1f\x8b":
        raise InputError(
            "the kernel is compressed with gzip, firmware cannot start it",
            subject=linux.name,
            hint="gunzip it first",
        )
    if start[:2] != b"MZ":
        is_linux = start[0x38:0x3C] == b"ARM\x64" or start[0x24:0x28] == b"\x18\x28\x6f\x01"
        raise InputError(
            "this Linux kernel has no EFI stub" if is_linux else "the kernel is no EFI program",
            subject=linux.name,
            hint="a kernel that firmware can start is built with CONFIG_EFI_STUB=y (arm64: Image, arm: zImage)",
        )
    image = parse_pe(linux)
    if image.machine != state.pe_machine:
        kind = image.state.label if image.state else f"machine {image.machine:#06x}"
        raise UsageError(f"{linux.name} is a kernel for {kind}, the boot stub is for {state.label}")
    _refuse_problems(image, linux, state)


def _refuse_problems(image: PeImage, source: Disk, state: ExecutionState) -> None:
    for problem in check_efi_application(image, source, state):
        if problem.serious:
            raise InputError(
                f"{problem.message} ({problem.evidence.where})",
                subject=source.name,
                found=problem.evidence.found,
                expected=problem.evidence.expected,
            )


def _checked_cmdline(cmdline: str | None, state: ExecutionState) -> str | None:
    if cmdline is None:
        return None
    cmdline = cmdline.strip()
    if not all(character.isprintable() for character in cmdline):
        raise UsageError(f"the kernel command line holds control characters: {printable(cmdline)}")
    size, limit = len(cmdline.encode(errors="replace")), _COMMAND_LINE_SIZE[state] - 1
    if size > limit:
        raise UsageError(f"the kernel command line is {size} bytes long, {state.label} Linux takes {limit} at most")
    return cmdline


def _encoded(section: str, text: str) -> bytes:
    if "\0" in text:
        raise UsageError(f"the text for {section} holds a NUL character")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text for {section} is no Unicode: {printable(text)}") from error


def _compose(stub: bytes, image: PeImage, sections: list[_Section], name: str) -> ComposedDisk:
    with_data = [section for section in image.sections if section.raw_size]
    first_raw = min(section.raw_offset for section in with_data)
    # What follows the last section (signature, symbols) is left out: it would be wrong about the new image.
    last_raw = max(section.raw_offset + section.raw_size for section in with_data)
    size_of_headers = _grown_headers(image, len(sections))
    shift = align_up(max(size_of_headers - first_raw, 0), image.file_alignment)

    file_offset = align_up(last_raw + shift, image.file_alignment)
    address = max(section.virtual_address + section.memory_size for section in image.sections)
    pieces: list[tuple[int, Disk]] = [(first_raw + shift, MemoryDisk(stub[first_raw:last_raw], name="the boot stub"))]
    entries = []
    added_bytes = end_of_image = 0
    for section in sections:
        address = align_up(address, max(image.section_alignment, _PAGE))
        size = section.size_bytes
        raw_size = align_up(size, image.file_alignment)
        end_of_image = align_up(address + size, image.section_alignment)
        if max(end_of_image, file_offset + raw_size) >= _LIMIT:
            raise InputError(
                f"the initial RAM disk and the kernel are too large for one EFI program ({section.name})",
                subject=name,
                found=f"{size} bytes",
                expected="less than 4 GiB in all",
            )
        flags = SECTION_INITIALIZED_DATA | SECTION_READ
        entries.append(SECTION_HEADER.pack(section.name.encode(), size, address, raw_size, file_offset, flags))
        pieces += [(file_offset + offset, piece) for offset, piece in section.placed()]
        address += size
        file_offset += raw_size
        added_bytes += raw_size
    headers = _rewritten_headers(
        stub[: image.size_of_headers].ljust(size_of_headers, b"\0"),
        image,
        entries,
        shift=shift,
        size_of_image=end_of_image,
        added_bytes=added_bytes,
    )
    return ComposedDisk(name, file_offset, [(0, MemoryDisk(headers, name="PE headers")), *pieces])


def _grown_headers(image: PeImage, count: int) -> int:
    """SizeOfHeaders with room for ``count`` more section headers. Raises InputError when there is none."""
    # Between the section table and the first section is padding, not always of zeros: it may be written over.
    table_end = image.section_table_offset + len(image.sections) * SECTION_HEADER.size
    needed = table_end + count * SECTION_HEADER.size
    size = max(image.size_of_headers, align_up(needed, image.file_alignment))
    first_address = min(section.virtual_address for section in image.sections if section.memory_size)
    if len(image.sections) + count > MAX_SECTIONS or size > first_address:
        raise InputError(
            f"no room in the headers for {count} more sections",
            subject=image.name,
            offset_bytes=table_end,
            found=f"{len(image.sections)} sections, the first at {first_address:#x}",
            hint="use the stub that armvm brings with it, or one with 4 KiB section alignment",
        )
    return size


def _rewritten_headers(
    old: bytes, image: PeImage, entries: list[bytes], *, shift: int, size_of_image: int, added_bytes: int
) -> bytes:
    headers = bytearray(old)
    coff = image.optional_header_offset - COFF_HEADER_SIZE
    optional = image.optional_header_offset
    initialized = int.from_bytes(headers[optional + _SIZE_OF_INITIALIZED_DATA :][:4], "little") + added_bytes
    struct.pack_into("<H", headers, coff + _SECTION_COUNT, len(image.sections) + len(entries))
    struct.pack_into("<II", headers, coff + _SYMBOL_TABLE, 0, 0)
    struct.pack_into("<I", headers, optional + _SIZE_OF_INITIALIZED_DATA, min(initialized, _LIMIT - 1))
    struct.pack_into("<II", headers, optional + _SIZE_OF_IMAGE, size_of_image, len(headers))
    struct.pack_into("<I", headers, optional + _CHECKSUM, 0)
    # Debug entries point to bytes of the file: better none than wrong ones.
    for index in (CERTIFICATE_DIRECTORY, *((DEBUG_DIRECTORY,) if shift else ())):
        if index < len(image.directories):
            DIRECTORY.pack_into(headers, image.directories_offset + index * DIRECTORY.size, 0, 0)
    for index, section in enumerate(image.sections):
        if section.raw_size:
            place = image.section_table_offset + index * SECTION_HEADER.size
            struct.pack_into("<I", headers, place + 20, section.raw_offset + shift)
    table_end = image.section_table_offset + len(image.sections) * SECTION_HEADER.size
    added = b"".join(entries)
    headers[table_end : table_end + len(added)] = added
    return bytes(headers)
