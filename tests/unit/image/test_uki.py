from __future__ import annotations

import gzip
from typing import Any

import pytest

from armvm.disk.storage import BaseDisk, Disk, MemoryDisk
from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import PeImage, parse_pe
from armvm.image.uki import build_uki
from tools.pe_images import DEFAULT_SECTIONS, Section, linux_kernel, make_pe


def kernel(state: ExecutionState = ExecutionState.AARCH64) -> MemoryDisk:
    return MemoryDisk(linux_kernel(state), name="vmlinuz")


def whole(disk: Disk) -> bytes:
    return disk.read(0, disk.size_bytes)


def built(stub: bytes, **parts: Any) -> tuple[bytes, PeImage]:
    content = whole(build_uki(stub, linux=kernel(), **parts))
    return content, parse_pe(MemoryDisk(content))


def content_of(image: bytes, name: str) -> bytes:
    section = parse_pe(MemoryDisk(image)).section(name)
    assert section is not None
    return image[section.raw_offset : section.raw_offset + section.data_size]


@pytest.mark.parametrize("state", ExecutionState)
def test_carries_everything_in_order_and_is_a_good_program(state: ExecutionState) -> None:
    stub = make_pe(state)
    uki = build_uki(
        stub,
        linux=kernel(state),
        initrd=[MemoryDisk(b"first"), MemoryDisk(b"second!")],
        cmdline="root=LABEL=r quiet\n",
        os_release="ID=debian\n",
        uname="6.1.0",
    )
    content = whole(uki)
    image = parse_pe(uki)
    names = [section.name for section in image.sections]
    assert names == [".text", ".data", ".reloc", ".osrel", ".cmdline", ".uname", ".initrd", ".linux"]
    assert check_efi_application(image, uki, state) == ()
    assert content_of(content, ".text") == content_of(stub, ".text")
    assert content_of(content, ".osrel") == b"ID=debian\n"
    assert content_of(content, ".cmdline") == b"root=LABEL=r quiet"
    assert content_of(content, ".uname") == b"6.1.0"
    assert content_of(content, ".initrd") == b"first\0\0\0second!"
    assert content_of(content, ".linux") == linux_kernel(state)


def test_leaves_out_what_is_not_given() -> None:
    _, image = built(make_pe(), cmdline="", initrd=[MemoryDisk(b"")])
    assert [section.name for section in image.sections[3:]] == [".linux"]


def test_sections_stand_at_pages_and_the_sizes_add_up() -> None:
    content, image = built(make_pe(), cmdline="x", initrd=[MemoryDisk(b"i" * 5000)])
    cmdline, initrd, linux = image.sections[3:]
    assert (cmdline.virtual_address, initrd.virtual_address, linux.virtual_address) == (0x4000, 0x5000, 0x7000)
    assert image.size_of_image == 0x7000 + -(-len(linux_kernel()) // 0x1000) * 0x1000
    assert linux.raw_offset + linux.raw_size == len(content)
    assert all(section.raw_offset % 512 == 0 == section.raw_size % 512 for section in image.sections)


def test_grows_the_headers_into_the_room_before_the_first_section() -> None:
    stub = make_pe(directories={6: (0x2000, 28)})
    assert parse_pe(MemoryDisk(stub)).size_of_headers == 0x200
    content, image = built(stub, cmdline="x", os_release="y")
    assert image.size_of_headers == 0x400
    assert image.sections[0].raw_offset == 0x400
    for name in (".text", ".data", ".reloc"):
        assert content_of(content, name) == content_of(stub, name)
    assert image.debug is None, "debug entries point to bytes of the file that have moved"


def test_keeps_the_headers_where_they_have_room() -> None:
    sections = tuple(
        Section(s.name, s.virtual_address, s.content, s.characteristics, raw_offset=None) for s in DEFAULT_SECTIONS
    )
    roomy = make_pe(sections=sections, pe_offset=0x140, directories={6: (0x2000, 28)})
    image = parse_pe(MemoryDisk(roomy))
    assert image.size_of_headers == 0x400
    _, grown = built(roomy, cmdline="x")
    assert grown.size_of_headers == 0x400
    assert grown.sections[:3] == image.sections
    assert grown.debug == image.debug


def test_a_stub_without_room_is_an_input_error() -> None:
    tight = tuple(Section(s.name, s.virtual_address - 0xE00, s.content, s.characteristics) for s in DEFAULT_SECTIONS)
    stub = make_pe(sections=tight, entry=0x200, section_alignment=0x20, file_alignment=0x20)
    with pytest.raises(InputError, match="no room in the headers for 1 more sections"):
        build_uki(stub, linux=kernel())


def test_drops_the_signature_of_a_signed_stub() -> None:
    stub = make_pe()
    signed = make_pe(directories={4: (len(stub), 8)}, tail=b"\x08\0\0\0\0\x02\x02\0")
    content, image = built(signed, cmdline="x")
    assert image.certificates is None
    assert content == built(stub, cmdline="x")[0]


def test_is_composed_lazily() -> None:
    class Zeros(BaseDisk):
        """An initial RAM disk far larger than memory, of which nothing may be read before it is asked for."""

        def _read(self, offset: int, length: int) -> bytes:  # noqa: ARG002
            assert length < 1 << 20
            return bytes(length)

    uki = build_uki(make_pe(), linux=kernel(), initrd=[Zeros("initrd", "raw", 3 << 30)])
    assert uki.size_bytes > 3 << 30
    assert uki.read(1 << 30, 4) == bytes(4)
    with pytest.raises(InputError, match="too large for one EFI program"):
        build_uki(make_pe(), linux=kernel(), initrd=[Zeros("initrd", "raw", 4 << 30)])


def test_an_alignment_that_leaves_no_room_below_4_gib_is_an_input_error() -> None:
    with pytest.raises(InputError, match="too large for one EFI program"):
        build_uki(make_pe(section_alignment=0x80000000), linux=kernel(), cmdline="x")


def test_the_same_input_gives_the_same_bytes() -> None:
    assert built(make_pe(), cmdline="x")[0] == built(make_pe(), cmdline="x")[0]


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (gzip.compress(linux_kernel()), InputError, "compressed with gzip"),
        (b"\0" * 0x38 + b"ARM\x64" + bytes(100), InputError, "this Linux kernel has no EFI stub"),
        (b"\0" * 0x24 + b"\x18\x28\x6f\x01" + bytes(100), InputError, "this Linux kernel has no EFI stub"),
        (b"#!/bin/sh\n", InputError, "the kernel is no EFI program"),
        (b"", InputError, "the kernel is no EFI program"),
        (linux_kernel()[:-1], InputError, "reaches past the end of the file"),
        (linux_kernel(ExecutionState.AARCH32), UsageError, "vmlinuz is a kernel for AArch32, the boot stub is for"),
        (make_pe(machine=0x8664), UsageError, "machine 0x8664"),
    ],
)
def test_what_is_no_kernel_for_this_stub(content: bytes, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build_uki(make_pe(), linux=MemoryDisk(content, name="vmlinuz"))


def test_the_hint_for_a_kernel_without_efi_stub_names_the_option() -> None:
    with pytest.raises(InputError) as caught:
        build_uki(make_pe(), linux=MemoryDisk(b"\0" * 0x38 + b"ARM\x64" + bytes(100)))
    assert "CONFIG_EFI_STUB" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("stub", "said"),
    [
        (b"", "too short"),
        (make_pe(machine=0x8664), "no program for an ARM machine"),
        (make_pe(subsystem=12), "no EFI application"),
        (make_pe(file_alignment=0), "no power of two"),
        (make_pe(sections=(*DEFAULT_SECTIONS, Section(".linux", 0x4000, b"k"))), "holds a kernel already"),
        (
            make_pe(sections=(Section(".bss", 0x1000, b"", 0x60000020, virtual_size=0x100),), size_of_image=0x2000),
            "holds no code",
        ),
    ],
)
def test_what_is_no_stub(stub: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_uki(stub, linux=kernel())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"cmdline": "a\nb"}, "control characters: a"),
        ({"cmdline": "a\0b"}, "control characters"),
        ({"cmdline": "a" * 2048}, "2048 bytes long, AArch64 Linux takes 2047 at most"),
        ({"os_release": "ID=a\0"}, "NUL"),
        ({"uname": "\ud800"}, "no Unicode"),
        ({"cmdline": "\ud800"}, "control characters"),
    ],
)
def test_texts_that_cannot_stand_in_the_image(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_uki(make_pe(), linux=kernel(), **parts)


def test_the_longest_command_line_depends_on_the_state() -> None:
    longest = "a" * 1023
    build_uki(make_pe(ExecutionState.AARCH32), linux=kernel(ExecutionState.AARCH32), cmdline=longest)
    with pytest.raises(UsageError, match="1023 at most"):
        build_uki(make_pe(ExecutionState.AARCH32), linux=kernel(ExecutionState.AARCH32), cmdline=longest + "a")
