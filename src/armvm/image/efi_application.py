"""Whether a PE image is an EFI application that firmware can load and start (requirement ``image.efi-application``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from armvm.disk.storage import Disk
from armvm.execution import ExecutionState
from armvm.image.pe import (
    DIRECTORY,
    EXECUTABLE_IMAGE,
    MAX_DIRECTORIES,
    OPTIONAL_32,
    OPTIONAL_64,
    RELOCS_STRIPPED,
    SECTION_EXECUTE,
    SECTION_HEADER,
    SECTION_WRITE,
    SUBSYSTEM_EFI_APPLICATION,
    DataDirectory,
    PeImage,
)
from armvm.printable import printable
from armvm.spec.verdict import Evidence, Problem

_NX_ALIGNMENT = 4096
_MAX_RELOCATIONS_SIZE = 1024 * 1024
_RELOCATION_BLOCK = struct.Struct("<II")
_THUMB_MOV32 = 7
_RELOCATION_TYPES = {
    ExecutionState.AARCH64: frozenset({0, 1, 2, 3, 10}),
    ExecutionState.AARCH32: frozenset({0, 1, 2, 3, 10, _THUMB_MOV32}),
}
"""ABSOLUTE, HIGH, LOW, HIGHLOW, DIR64, THUMB_MOV32: what EDK2 can apply for each state."""

_MACHINES = {
    0xAA64: "AArch64",
    0x01C2: "AArch32 (ARM/Thumb)",
    0x01C4: "ARMNT (Thumb-2, Windows)",
    0x01C0: "ARM (little endian)",
    0x8664: "x86-64",
    0x014C: "x86 (32-bit)",
    0x0EBC: "EFI byte code",
    0x5032: "RISC-V 32",
    0x5064: "RISC-V 64",
    0x6264: "LoongArch 64",
}
_SUBSYSTEMS = {
    10: "EFI application",
    11: "EFI boot service driver",
    12: "EFI runtime driver",
    13: "EFI ROM image",
    1: "native",
    2: "Windows GUI",
    3: "Windows console",
}


def check_efi_application(image: PeImage, source: Disk, state: ExecutionState) -> tuple[Problem, ...]:
    """Everything that keeps ``image`` from being an EFI application that firmware in ``state`` can load and start.

    ``source`` is what ``image`` was parsed from; of it, only the relocations are read. The rules are those of UEFI
    2.10 §2.1.1 and of the loaders in use (EDK2, U-Boot). Checksums and signatures are not judged.
    """
    return (
        *_check_kind(image, state),
        *_check_headers(image),
        *_check_sections(image),
        *_check_overlaps(image),
        *_check_entry_point(image),
        *_check_relocations(image, source, state),
        *_check_protection(image),
    )


def _check_kind(image: PeImage, state: ExecutionState) -> Iterator[Problem]:
    if image.machine != state.pe_machine:
        yield _problem(
            "machine",
            _machine_message(image.machine, state),
            "Machine",
            _named(image.machine, _MACHINES),
            _named(state.pe_machine, _MACHINES),
        )
    if image.subsystem != SUBSYSTEM_EFI_APPLICATION:
        yield _problem(
            "subsystem",
            "it is no EFI application: firmware does not start it as a boot program",
            "Subsystem",
            _named(image.subsystem, _SUBSYSTEMS, "d"),
            _named(SUBSYSTEM_EFI_APPLICATION, _SUBSYSTEMS, "d"),
        )
    wants_plus = state is ExecutionState.AARCH64
    if image.is_pe32_plus != wants_plus:
        yield _problem(
            "format",
            f"{state.label} programs are {_format(wants_plus)}",
            "optional header",
            _format(image.is_pe32_plus),
            _format(wants_plus),
        )
    if not image.characteristics & EXECUTABLE_IMAGE:
        yield _problem(
            "not-executable",
            "it is not marked as an executable image",
            "Characteristics",
            f"{image.characteristics:#06x}",
            f"bit {EXECUTABLE_IMAGE:#x} set",
            serious=False,
        )


def _machine_message(machine: int, state: ExecutionState) -> str:
    if state is ExecutionState.AARCH32 and machine == 0x01C4:
        return "its machine type is ARMNT, which compilers for Windows write; UEFI on AArch32 asks for 0x01c2"
    other = next((candidate for candidate in ExecutionState if candidate.pe_machine == machine), None)
    if other is not None:
        return f"it is a program for {other.label}, not for {state.label}"
    return f"it is a program for another machine: {_named(machine, _MACHINES)}"


def _check_headers(image: PeImage) -> Iterator[Problem]:
    # EDK2 refuses an image on each of these (PeCoffLoaderGetPeHeader).
    fixed_size = (OPTIONAL_64 if image.is_pe32_plus else OPTIONAL_32).size
    expected_size = fixed_size + image.directory_count * DIRECTORY.size
    if image.directory_count > MAX_DIRECTORIES or image.optional_header_size != expected_size:
        yield _problem(
            "directories",
            "the size of the optional header and the number of data directories contradict each other",
            "SizeOfOptionalHeader, NumberOfRvaAndSizes",
            f"{image.optional_header_size} bytes, {image.directory_count} directories",
            f"{expected_size} bytes, at most {MAX_DIRECTORIES}",
        )
    table_end = image.section_table_offset + len(image.sections) * SECTION_HEADER.size
    if not table_end <= image.size_of_headers < image.size_of_image:
        yield _problem(
            "headers-size",
            "the headers do not hold the section table, or do not fit into the image",
            "SizeOfHeaders",
            f"{image.size_of_headers:#x}",
            f"at least {table_end:#x}, below SizeOfImage {image.size_of_image:#x}",
        )
    if image.size_of_headers > image.file_size_bytes:
        yield _problem(
            "headers-size",
            "the headers reach past the end of the file",
            "SizeOfHeaders",
            f"{image.size_of_headers:#x}",
            f"at most {image.file_size_bytes:#x}",
        )
    for name, value in (("SectionAlignment", image.section_alignment), ("FileAlignment", image.file_alignment)):
        if value.bit_count() != 1:
            yield _problem("alignment", "an alignment is no power of two", name, f"{value:#x}", "a power of two")
    certificates = image.certificates
    if certificates and certificates.address + certificates.size_bytes > image.file_size_bytes:
        yield _problem(
            "certificates",
            "the certificate table reaches past the end of the file: it is cut off, or was never signed like this",
            "certificate table",
            f"{certificates.address:#x}..{certificates.address + certificates.size_bytes:#x}",
            f"at most {image.file_size_bytes:#x}",
        )


def _check_sections(image: PeImage) -> Iterator[Problem]:
    if not image.sections:
        yield _problem("no-sections", "it has no sections: there is nothing to start", "NumberOfSections", "0")
    for section in image.sections:
        where = f"section {printable(section.name)}"
        memory_end = section.virtual_address + section.memory_size
        file_end = section.raw_offset + section.raw_size
        if memory_end > image.size_of_image:
            yield _problem(
                "section-memory",
                "a section reaches past the end of the image in memory",
                where,
                f"{section.virtual_address:#x}..{memory_end:#x}",
                f"at most SizeOfImage {image.size_of_image:#x}",
            )
        if section.raw_size and file_end > image.file_size_bytes:
            yield _problem(
                "section-file",
                "a section reaches past the end of the file: the file is cut off or damaged",
                where,
                f"{section.raw_offset:#x}..{file_end:#x}",
                f"at most {image.file_size_bytes:#x}",
            )
        if section.raw_size and min(section.virtual_address, section.raw_offset) < image.size_of_headers:
            yield _problem(
                "section-headers",
                "a section lies inside the headers",
                where,
                f"address {section.virtual_address:#x}, file offset {section.raw_offset:#x}",
                f"at least SizeOfHeaders {image.size_of_headers:#x}",
            )
        if image.section_alignment and section.virtual_address % image.section_alignment:
            # systemd's programs for armhf are so, and start everywhere: worth a word, no more.
            yield _problem(
                "section-alignment",
                "a section's address is not aligned",
                where,
                f"{section.virtual_address:#x}",
                f"a multiple of SectionAlignment {image.section_alignment:#x}",
                serious=False,
            )


def _check_overlaps(image: PeImage) -> Iterator[Problem]:
    placed = sorted((s for s in image.sections if s.memory_size), key=lambda section: section.virtual_address)
    for index, section in enumerate(placed[1:], 1):
        before = max(placed[:index], key=lambda other: other.virtual_address + other.memory_size)
        end = before.virtual_address + before.memory_size
        if section.virtual_address < end:
            yield _problem(
                "section-overlap",
                "two sections overlap in memory",
                f"sections {printable(before.name)} and {printable(section.name)}",
                f"{section.virtual_address:#x}",
                f"at least {end:#x}",
            )


def _check_entry_point(image: PeImage) -> Iterator[Problem]:
    entry = image.entry_point_rva
    holder = next(
        (s for s in image.sections if s.virtual_address <= entry < s.virtual_address + s.memory_size),
        None,
    )
    if holder is None:
        yield _problem(
            "entry-point",
            "the entry point lies in no section",
            "AddressOfEntryPoint",
            f"{entry:#x}",
            "an address inside a section",
        )
    elif not holder.characteristics & SECTION_EXECUTE:
        yield _problem(
            "entry-not-executable",
            "the entry point lies in a section that is not executable: firmware that protects memory cannot start it",
            f"section {printable(holder.name)}",
            f"{holder.characteristics:#010x}",
            f"bit {SECTION_EXECUTE:#x} set",
            serious=False,
        )


def _check_relocations(image: PeImage, source: Disk, state: ExecutionState) -> Iterator[Problem]:
    if image.characteristics & RELOCS_STRIPPED:
        yield _problem(
            "relocations-stripped",
            "its relocations are stripped: it starts only at the address it was linked for, which no VM promises",
            "Characteristics, ImageBase",
            f"{image.characteristics:#06x}, {image.image_base:#x}",
            f"bit {RELOCS_STRIPPED:#x} clear",
        )
        return
    table = image.relocations
    if table is None:
        # Linux kernels are position-independent, have no relocations, and say so with an image base of zero.
        if image.image_base:
            yield _problem(
                "no-relocations",
                "it has an image base and no relocations: it starts only if its code is position-independent",
                "ImageBase",
                f"{image.image_base:#x}",
                "relocations, or 0",
                serious=False,
            )
        return
    if table.size_bytes > _MAX_RELOCATIONS_SIZE:
        yield _problem(
            "relocations-unread",
            "its relocations are too many to be judged",
            "relocation table",
            f"{table.size_bytes} bytes",
            f"at most {_MAX_RELOCATIONS_SIZE}",
            serious=False,
        )
        return
    offset = _file_offset(image, table)
    if offset is None:
        yield _problem(
            "relocations",
            "the relocation table lies in no section of the file",
            "relocation table",
            f"{table.address:#x}..{table.address + table.size_bytes:#x}",
        )
        return
    yield from _check_relocation_blocks(image, source.read(offset, table.size_bytes), state)


def _check_relocation_blocks(image: PeImage, table: bytes, state: ExecutionState) -> Iterator[Problem]:
    position = 0
    types: set[int] = set()
    while position < len(table):
        if len(table) - position < _RELOCATION_BLOCK.size:
            break  # less than a block's header: what alignment left over
        page, size = _RELOCATION_BLOCK.unpack_from(table, position)
        if not _RELOCATION_BLOCK.size <= size <= len(table) - position or page >= image.size_of_image:
            yield _problem(
                "relocations",
                "a block of the relocation table is damaged: firmware refuses to load the image",
                f"relocation table, offset {position:#x}",
                f"page {page:#x}, {size} bytes",
                f"a page below {image.size_of_image:#x}, 8 to {len(table) - position} bytes",
            )
            return
        # The upper four bits of each entry of two bytes are its type; the set takes them at the speed of C.
        types.update(set(table[position + _RELOCATION_BLOCK.size + 1 : position + size : 2]))
        position += size
    types = {value >> 4 for value in types}
    if unknown := types - _RELOCATION_TYPES[state]:
        yield _problem(
            "relocation-type",
            f"it has relocations of a type that {state.label} firmware cannot apply",
            "relocation table",
            ", ".join(f"type {kind}" for kind in sorted(unknown)),
            ", ".join(str(kind) for kind in sorted(_RELOCATION_TYPES[state])),
        )
    if state is ExecutionState.AARCH32 and _THUMB_MOV32 in types:
        yield _problem(
            "relocation-thumb-mov32",
            "it has relocations that EDK2 applies and U-Boot does not: U-Boot cannot start it",
            "relocation table",
            f"type {_THUMB_MOV32} (THUMB_MOV32)",
            "a program compiled without movw/movt",
            serious=False,
        )


def _check_protection(image: PeImage) -> Iterator[Problem]:
    for section in image.sections:
        if section.characteristics & SECTION_WRITE and section.characteristics & SECTION_EXECUTE:
            yield _problem(
                "writable-executable",
                "a section is both writable and executable: firmware that protects memory refuses it",
                f"section {printable(section.name)}",
                f"{section.characteristics:#010x}",
                "one of the two",
                serious=False,
            )
    if image.section_alignment < _NX_ALIGNMENT:
        yield _problem(
            "page-alignment",
            "its sections are not aligned to pages: firmware cannot protect its memory",
            "SectionAlignment",
            f"{image.section_alignment:#x}",
            f"at least {_NX_ALIGNMENT:#x}",
            serious=False,
        )


def _file_offset(image: PeImage, table: DataDirectory) -> int | None:
    for section in image.sections:
        inside = table.address - section.virtual_address
        if inside >= 0 and inside + table.size_bytes <= section.raw_size:
            offset = section.raw_offset + inside
            return offset if offset + table.size_bytes <= image.file_size_bytes else None
    return None


def _problem(
    code: str, message: str, where: str, found: str, expected: str | None = None, *, serious: bool = True
) -> Problem:
    return Problem(code, message, Evidence(where, found, expected), serious)


def _named(value: int, names: dict[int, str], form: str = "#06x") -> str:
    return f"{value:{form}} ({names.get(value, 'unknown')})"


def _format(is_pe32_plus: bool) -> str:
    return "PE32+" if is_pe32_plus else "PE32"
