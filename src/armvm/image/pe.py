"""PE/COFF images: what UEFI firmware loads and starts (UEFI 2.10 §2.1.1, Microsoft PE/COFF specification)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.execution import ExecutionState

MAX_SECTIONS = 96
"""The most sections that an image may have (PE/COFF specification §3.3)."""

SUBSYSTEM_EFI_APPLICATION = 10

RELOCS_STRIPPED = 0x0001
EXECUTABLE_IMAGE = 0x0002

SECTION_INITIALIZED_DATA = 0x00000040
SECTION_EXECUTE = 0x20000000
SECTION_READ = 0x40000000
SECTION_WRITE = 0x80000000

DOS_HEADER_SIZE = 64
SECTION_HEADER = struct.Struct("<8sIIII12xI")
"""Name, VirtualSize, VirtualAddress, SizeOfRawData, PointerToRawData, (relocations, line numbers), Characteristics."""

CERTIFICATE_DIRECTORY = 4
RELOCATION_DIRECTORY = 5
DEBUG_DIRECTORY = 6
MAX_DIRECTORIES = 16

_DOS = struct.Struct("<2s58xI")
_COFF = struct.Struct("<4sHHIIIHH")
COFF_HEADER_SIZE = _COFF.size
"""The signature and the COFF header; the optional header follows."""
OPTIONAL_32 = struct.Struct("<H14xI8xIII16xIIIHH20xI")
OPTIONAL_64 = struct.Struct("<H14xI4xQII16xIIIHH36xI")
DIRECTORY = struct.Struct("<II")
_MAGIC_32 = 0x10B
_MAGIC_64 = 0x20B


@dataclass(frozen=True, slots=True)
class PeSection:
    """One section: where it stands in the file and where in memory. Addresses are relative to the image base."""

    name: str
    virtual_address: int
    virtual_size: int
    raw_offset: int
    raw_size: int
    characteristics: int

    @property
    def memory_size(self) -> int:
        """The bytes that it takes in memory: a VirtualSize of zero stands for the size in the file."""
        return self.virtual_size or self.raw_size

    @property
    def data_size(self) -> int:
        """The bytes of the file that count: the raw size is rounded up to the file alignment, the virtual is not."""
        return min(self.raw_size, self.memory_size)


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """One data directory. ``address`` is relative to the image base (for the certificate table: a file offset)."""

    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PeImage:
    """The headers of a PE image, as they stand in the file: nothing is judged yet."""

    name: str
    file_size_bytes: int
    machine: int
    is_pe32_plus: bool
    subsystem: int
    characteristics: int
    dll_characteristics: int
    entry_point_rva: int
    image_base: int
    section_alignment: int
    file_alignment: int
    size_of_image: int
    size_of_headers: int
    sections: tuple[PeSection, ...]
    directories: tuple[DataDirectory, ...]
    directory_count: int
    optional_header_offset: int
    optional_header_size: int

    @property
    def state(self) -> ExecutionState | None:
        """The execution state that it is made for; None when it is made for another architecture."""
        return next((state for state in ExecutionState if state.pe_machine == self.machine), None)

    @property
    def section_table_offset(self) -> int:
        """Where the section headers begin in the file."""
        return self.optional_header_offset + self.optional_header_size

    @property
    def directories_offset(self) -> int:
        """Where the data directories begin in the file."""
        return self.optional_header_offset + (OPTIONAL_64 if self.is_pe32_plus else OPTIONAL_32).size

    @property
    def relocations(self) -> DataDirectory | None:
        """The base relocation table; None when there is none."""
        return self._directory(RELOCATION_DIRECTORY)

    @property
    def certificates(self) -> DataDirectory | None:
        """The attribute certificate table, where signatures stand; None when there is none."""
        return self._directory(CERTIFICATE_DIRECTORY)

    @property
    def debug(self) -> DataDirectory | None:
        """The debug directory; None when there is none."""
        return self._directory(DEBUG_DIRECTORY)

    def section(self, name: str) -> PeSection | None:
        """The first section of that name; None when there is none."""
        return next((section for section in self.sections if section.name == name), None)

    def _directory(self, index: int) -> DataDirectory | None:
        return self.directories[index] if index < len(self.directories) and self.directories[index].size_bytes else None


def parse_pe(source: Disk) -> PeImage:
    """Read the headers of a PE image, and nothing else of the file.

    Raises InputError when it is no PE image, or is cut off inside its headers.
    """
    if source.size_bytes < DOS_HEADER_SIZE:
        raise InputError("too short for a PE image", subject=source.name, found=f"{source.size_bytes} bytes")
    magic, pe_offset = _DOS.unpack(source.read(0, _DOS.size))
    if magic != b"MZ":
        raise InputError(
            "no PE image (EFI program)", subject=source.name, offset_bytes=0, found=_shown(magic), expected="'MZ'"
        )
    signature, machine, section_count, _, _, _, optional_size, characteristics = _COFF.unpack(
        _read(source, pe_offset, _COFF.size, "the PE header")
    )
    if signature != b"PE\0\0":
        raise InputError(
            "no PE image (EFI program)",
            subject=source.name,
            offset_bytes=pe_offset,
            found=_shown(signature),
            expected="'PE\\x00\\x00'",
        )
    if section_count > MAX_SECTIONS:
        raise InputError(
            "more sections than a PE image may have",
            subject=source.name,
            offset_bytes=pe_offset + 6,
            found=str(section_count),
            expected=f"at most {MAX_SECTIONS}",
        )
    optional_offset = pe_offset + _COFF.size
    optional = _read(source, optional_offset, optional_size, "the optional header")
    is_pe32_plus, layout = _optional_layout(source, optional_offset, optional)
    (
        _,
        entry_point_rva,
        image_base,
        section_alignment,
        file_alignment,
        size_of_image,
        size_of_headers,
        _checksum,
        subsystem,
        dll_characteristics,
        directory_count,
    ) = layout.unpack_from(optional)
    present = min(directory_count, MAX_DIRECTORIES, (optional_size - layout.size) // DIRECTORY.size)
    table_size = section_count * SECTION_HEADER.size
    table = _read(source, optional_offset + optional_size, table_size, "the section table")
    return PeImage(
        name=source.name,
        file_size_bytes=source.size_bytes,
        machine=machine,
        is_pe32_plus=is_pe32_plus,
        subsystem=subsystem,
        characteristics=characteristics,
        dll_characteristics=dll_characteristics,
        entry_point_rva=entry_point_rva,
        image_base=image_base,
        section_alignment=section_alignment,
        file_alignment=file_alignment,
        size_of_image=size_of_image,
        size_of_headers=size_of_headers,
        sections=tuple(
            PeSection(name.rstrip(b"\0").decode("latin-1"), address, virtual_size, raw_offset, raw_size, flags)
            for name, virtual_size, address, raw_size, raw_offset, flags in SECTION_HEADER.iter_unpack(table)
        ),
        directories=tuple(
            DataDirectory(*DIRECTORY.unpack_from(optional, layout.size + index * DIRECTORY.size))
            for index in range(present)
        ),
        directory_count=directory_count,
        optional_header_offset=optional_offset,
        optional_header_size=optional_size,
    )


def _optional_layout(source: Disk, offset: int, optional: bytes) -> tuple[bool, struct.Struct]:
    magic = int.from_bytes(optional[:2], "little")
    if magic not in {_MAGIC_32, _MAGIC_64}:
        raise InputError(
            "an unknown kind of optional header",
            subject=source.name,
            offset_bytes=offset,
            found=f"{magic:#06x}",
            expected="0x010b (PE32) or 0x020b (PE32+)",
        )
    layout = OPTIONAL_64 if magic == _MAGIC_64 else OPTIONAL_32
    if len(optional) < layout.size:
        raise InputError(
            "the optional header is too short",
            subject=source.name,
            offset_bytes=offset,
            found=f"{len(optional)} bytes",
            expected=f"at least {layout.size}",
        )
    return magic == _MAGIC_64, layout


def _read(source: Disk, offset: int, length: int, what: str) -> bytes:
    if offset + length > source.size_bytes:
        raise InputError(
            f"{what} lies outside the file",
            subject=source.name,
            offset_bytes=offset,
            found=f"a file of {source.size_bytes} bytes",
            expected=f"at least {offset + length}",
        )
    return source.read(offset, length)


def _shown(raw: bytes) -> str:
    return repr(raw.decode("latin-1"))
