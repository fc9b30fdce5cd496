from __future__ import annotations

import struct

import pytest

from armvm.disk.storage import BaseDisk, MemoryDisk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.image.pe import DataDirectory, PeImage, PeSection, parse_pe
from tools.pe_images import DEFAULT_SECTIONS, Section, linux_kernel, make_pe


def parse(content: bytes) -> PeImage:
    return parse_pe(MemoryDisk(content, name="BOOTAA64.EFI"))


@pytest.mark.parametrize("state", ExecutionState)
def test_reads_what_the_headers_say(state: ExecutionState) -> None:
    image = parse(make_pe(state, image_base=0x400000, directories={4: (0x600, 8), 6: (0x2010, 28)}))
    assert image.name == "BOOTAA64.EFI"
    assert image.state is state
    assert image.is_pe32_plus is (state is ExecutionState.AARCH64)
    assert (image.subsystem, image.characteristics, image.dll_characteristics) == (10, 0x22, 0)
    assert (image.entry_point_rva, image.image_base) == (0x1000, 0x400000)
    assert (image.section_alignment, image.file_alignment) == (0x1000, 0x200)
    assert (image.size_of_image, image.size_of_headers) == (0x4000, 0x200)
    assert image.sections[1] == PeSection(".data", 0x2000, 64, 0x400, 0x200, 0xC0000040)
    assert image.relocations == DataDirectory(0x3000, 12)
    assert image.certificates == DataDirectory(0x600, 8)
    assert image.debug == DataDirectory(0x2010, 28)


def test_finds_sections_by_name() -> None:
    image = parse(make_pe())
    assert image.section(".data") == image.sections[1]
    assert image.section(".linux") is None


def test_an_image_without_relocations_has_none() -> None:
    image = parse(linux_kernel())
    assert image.relocations is None
    assert len(image.directories) == 6


def test_the_size_in_memory_and_the_bytes_that_count() -> None:
    image = parse(
        make_pe(
            sections=(
                *DEFAULT_SECTIONS,
                Section(".bss", 0x4000, b"", virtual_size=0x3000),
                Section(".old", 0x7000, b"x" * 100, virtual_size=0),
            )
        )
    )
    text, data, _, bss, old = image.sections
    assert (text.data_size, data.memory_size, data.data_size) == (256, 64, 64)
    assert (bss.memory_size, bss.data_size) == (0x3000, 0)
    assert (old.memory_size, old.data_size) == (512, 512)


def test_reads_headers_and_nothing_else() -> None:
    class Counted(BaseDisk):
        """A kernel of 32 MiB of which every read is noted."""

        content: bytes = make_pe()
        last_byte = 0

        def _read(self, offset: int, length: int) -> bytes:
            self.last_byte = max(self.last_byte, offset + length)
            return self.content[offset : offset + length]

    disk = Counted("kernel", "raw", 32 << 20)
    assert parse_pe(disk).file_size_bytes == 32 << 20
    assert disk.last_byte <= 0x400


@pytest.mark.parametrize("state", ExecutionState)
def test_every_truncation_of_the_headers_is_an_input_error(state: ExecutionState) -> None:
    content = make_pe(state)
    table_end = parse(content).section_table_offset + 3 * 40
    for length in range(table_end):
        with pytest.raises(InputError):
            parse(content[:length])
    assert len(parse(content[:table_end]).sections) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (b"\x7fELF".ljust(4096, b"\0"), "found '\\x7fE', expected 'MZ'"),
        (make_pe().replace(b"PE\0\0", b"NE\0\0", 1), "offset 0x80: no PE image"),
        (make_pe(magic=0x107), "expected 0x010b (PE32) or 0x020b (PE32+)"),
        (make_pe(optional_size=100), "the optional header is too short"),
        (make_pe(section_count=97), "more sections than a PE image may have: found 97"),
        (make_pe(section_count=0xFFFF), "more sections"),
        (make_pe(section_count=96)[:0x500], "the section table lies outside the file"),
        (make_pe()[:0x3C] + struct.pack("<I", 0xFFFFFFF0) + make_pe()[0x40:], "the PE header lies outside the file"),
        (make_pe()[:0x94] + struct.pack("<H", 0xFFFF) + make_pe()[0x96:], "the optional header lies outside the file"),
    ],
)
def test_what_is_no_pe_image_is_an_input_error(content: bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(content)
    assert said in caught.value.message
    assert caught.value.message.startswith("BOOTAA64.EFI")


def test_more_directories_than_there_is_room_for_are_not_read() -> None:
    image = parse(make_pe(directory_count=0xFFFFFFFF, optional_size=112 + 3 * 8))
    assert len(image.directories) == 3
    assert image.directory_count == 0xFFFFFFFF


def test_headers_may_stand_at_odd_places() -> None:
    assert parse(make_pe(pe_offset=0x201)).sections == parse(make_pe(pe_offset=0x201)).sections
    assert parse(make_pe(pe_offset=0x201)).section(".text")
