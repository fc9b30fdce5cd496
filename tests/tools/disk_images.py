"""Whole disk images for the checks: good ones, and ones broken in exactly one way.

The partition table comes from ``gpt_images``, which is independent of the production writer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache
from uuid import UUID

from armvm.disk.composed import ComposedDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.efi import EfiProgram, read_program
from armvm.execution import ExecutionState
from armvm.units import align_up
from tools import fat_images, gpt_images
from tools.gpt_images import MIB, Entry
from tools.pe_images import DEFAULT_SECTIONS, Section, make_pe, relocation_block

ESP_BYTES = 33 * MIB
DISK_BYTES = ESP_BYTES + 2 * MIB
AA64 = "EFI/BOOT/BOOTAA64.EFI"
ARM = "EFI/BOOT/BOOTARM.EFI"

Files = Mapping[str, bytes]
Maker = Callable[[], Disk]


@cache
def program(state: ExecutionState = ExecutionState.AARCH64, **contents: bytes) -> bytes:
    """An EFI application, sound in every header, with these sections after its own (``linux=…`` is ``.linux``)."""
    sections = list(DEFAULT_SECTIONS[:2])
    # Relocations of the kind that the execution state has: DIR64, HIGHLOW.
    kind = 10 if state is ExecutionState.AARCH64 else 3
    sections.append(Section(".reloc", 0x3000, relocation_block(0x2000, (kind, 0), (0, 0)), 0x42000040))
    address = 0x10000
    for name, content in contents.items():
        sections.append(Section(name if name == "mods" else f".{name}", address, content))
        address += align_up(max(len(content), 1), 0x1000)
    return make_pe(state, sections=sections)


def unified_kernel(state: ExecutionState = ExecutionState.AARCH64) -> bytes:
    """A unified kernel image, as far as its sections tell."""
    return program(state, osrel=b"PRETTY_NAME=Test\n", cmdline=b"quiet", linux=b"a kernel" * 999)


def disk_image(
    files: Files | None = None, *, esp: Disk | None = None, entries: tuple[Entry, ...] | None = None
) -> ComposedDisk:
    """A disk of 35 MiB with one ESP: it holds ``files`` (default: boot programs for both states), or is ``esp``."""
    if files is None:
        files = {AA64: unified_kernel(), ARM: unified_kernel(ExecutionState.AARCH32)}
    volume = fat_images.fat32_disk(files) if esp is None else esp
    first = MIB // 512
    esp_entry = Entry(1, first, first + ESP_BYTES // 512 - 1, gpt_images.ESP, name="ESP")
    table = gpt_images.good_gpt(DISK_BYTES, partitions=entries or (esp_entry,))
    return _assembled(table, volume)


def _assembled(table: bytes | bytearray, volume: Disk) -> ComposedDisk:
    end = MIB + ESP_BYTES
    content = MemoryDisk(volume.read(0, min(volume.size_bytes, ESP_BYTES)))
    pieces: list[tuple[int, Disk]] = [(0, MemoryDisk(bytes(table[:MIB]))), (MIB, content)]
    pieces.append((end, MemoryDisk(bytes(table[end:]))))
    return ComposedDisk("image", len(table), pieces)


def with_table(edit: Callable[[bytearray], object]) -> Maker:
    """The good image with ``edit`` applied to its partition table."""

    def make() -> Disk:
        first = MIB // 512
        table = gpt_images.good_gpt(
            DISK_BYTES, partitions=(Entry(1, first, first + ESP_BYTES // 512 - 1, gpt_images.ESP, name="ESP"),)
        )
        edit(table)
        return _assembled(table, fat_images.fat32_disk({AA64: unified_kernel()}))

    return make


def with_files(files: Callable[[], Files]) -> Maker:
    """An image whose ESP holds ``files``."""
    return lambda: disk_image(files())


def with_program(edit: Callable[[bytearray], object], path: str = AA64) -> Maker:
    """The good image with ``edit`` applied to its boot program."""

    def make() -> Disk:
        state = ExecutionState.AARCH64 if path == AA64 else ExecutionState.AARCH32
        program = bytearray(unified_kernel(state))
        edit(program)
        return disk_image({path: bytes(program)})

    return make


def _pe(program: bytearray) -> int:
    return int(struct.unpack_from("<I", program, 0x3C)[0])


def _set(offset: int, format: str, value: int) -> Callable[[bytearray], None]:
    """Change a field at ``offset`` from the PE signature."""
    return lambda program: struct.pack_into(format, program, _pe(program) + offset, value)


def _section_header(program: bytearray, name: bytes) -> int:
    return program.index(name.ljust(8, b"\0"), _pe(program))


def _section_past_the_end(program: bytearray) -> None:
    struct.pack_into("<I", program, _section_header(program, b".linux") + 20, len(program))


def grub(prefix: str, config: str = "") -> bytes:
    """What ``identify`` takes for GRUB with that prefix (grub-mkimage's module area in a section of its own)."""
    objects = b""
    for kind, text in ((3, prefix), (2, config)):
        payload = text.encode() + b"\0"
        if text:
            objects += struct.pack("<II", kind, 8 + len(payload)) + payload
    return program(mods=struct.pack("<I4xQQ", 0x676D696D, 24, 24 + len(objects)) + objects)


def systemd_boot() -> bytes:
    """What ``identify`` takes for systemd-boot."""
    return program(sdmagic=b"#### LoaderInfo: systemd-boot 252 ####")


def shim(looks_for: str = "\\grubaa64.efi") -> bytes:
    """What ``identify`` takes for shim: an SBAT entry, and the name of its second stage."""
    sbat = b"sbat,1,SBAT Version,sbat,1,https://example\nshim,4,UEFI shim,shim,15.8,https://example\n"
    return program(sbat=sbat, words=looks_for.encode("utf-16-le"))


def fallback() -> bytes:
    """What ``identify`` takes for shim's fallback."""
    return shim("\\bootaa64.csv")


def boot_csv(*targets: str) -> bytes:
    """A list for shim's fallback."""
    return "".join(f"{target},Test,,A test\n" for target in targets).encode("utf-16")


_FIRMWARE_FILE_SYSTEM = UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")


def firmware_volume(file_system: UUID = _FIRMWARE_FILE_SYSTEM) -> bytes:
    """The head of a UEFI firmware volume, padded to 64 KiB."""
    return (bytes(16) + file_system.bytes_le + bytes(8) + b"_FVH").ljust(65536, b"\xff")


def _wipe(start: int, end: int | None = None) -> Callable[[bytearray], None]:
    def edit(table: bytearray) -> None:
        stop = len(table) if end is None else end
        table[start:stop] = bytes(stop - start if start >= 0 else -start)

    return edit


def _flip(offset: int) -> Callable[[bytearray], None]:
    def edit(table: bytearray) -> None:
        table[offset] ^= 0xFF

    return edit


def _retyped(table: bytearray) -> None:
    for header in gpt_images.header_offsets(table):
        array = gpt_images.array_offset(table, header)
        table[array : array + 16] = gpt_images.LINUX.bytes_le
    gpt_images.fix_crcs(table)


def _hidden(table: bytearray) -> None:
    for header in gpt_images.header_offsets(table):
        gpt_images.put(table, gpt_images.array_offset(table, header) + gpt_images.ATTRIBUTES, "<Q", 2)
    gpt_images.fix_crcs(table)


def _grown(table: bytearray) -> None:
    table.extend(bytes(MIB))


def _mbr_only(table: bytearray) -> None:
    table[512:MIB] = bytes(MIB - 512)
    table[-33 * 512 :] = bytes(33 * 512)
    struct.pack_into("<B3sB3s2I", table, gpt_images.RECORD, 0, b"\0\2\0", 0x83, b"\xff\xff\xff", 2048, 40000)


def _boot(**extra: bytes) -> Files:
    return {AA64: unified_kernel(), **extra}


def _two_partitions(content: bytes, type_guid: UUID = gpt_images.LINUX) -> Maker:
    """The good image, followed by a partition that holds ``content``."""

    def make() -> Disk:
        first, second = MIB // 512, (MIB + ESP_BYTES) // 512
        entries = (
            Entry(1, first, second - 1, gpt_images.ESP, name="ESP"),
            Entry(2, second, second + MIB // 512 - 1, type_guid),
        )
        table = gpt_images.good_gpt(DISK_BYTES + MIB, partitions=entries)
        table[second * 512 : second * 512 + len(content)] = content
        return _assembled(table, fat_images.fat32_disk({AA64: unified_kernel()}))

    return make


def _file_systems() -> dict[str, tuple[str, Maker]]:
    return {
        f"fat {code}": ("image.esp-fat32", lambda maker=maker: disk_image(esp=maker()))  # type: ignore[misc]
        for code, maker in fat_images.BROKEN.items()
        # These two need the partition, or the disk, to be of another size than this one.
        if code not in ("volume-size", "sector-size")
    }


BROKEN: Mapping[str, tuple[str, Maker]] = {
    "no partition table": ("image.gpt", lambda: MemoryDisk(bytes(4 * MIB))),
    "MBR only": ("image.gpt", with_table(_mbr_only)),
    "no protective MBR": ("image.gpt", with_table(_wipe(0, 512))),
    "primary header wiped": ("image.gpt", with_table(_wipe(512, 1024))),
    "backup header wiped": ("image.gpt", with_table(_wipe(-512))),
    "primary header CRC": ("image.gpt", with_table(_flip(512 + 16))),
    "backup header CRC": ("image.gpt", with_table(_flip(-512 + 16))),
    "primary array CRC": ("image.gpt", with_table(_flip(1024 + gpt_images.NAME))),
    "disk grown": ("image.gpt", with_table(_grown)),
    "ESP of another type": ("image.esp", with_table(_retyped)),
    "ESP hidden from firmware": ("image.esp", with_table(_hidden)),
    "no file system": ("image.esp-fat32", lambda: disk_image(esp=MemoryDisk(bytes(ESP_BYTES)))),
    "FAT16": (
        "image.esp-fat32",
        lambda: disk_image(esp=MemoryDisk(fat_images.small_fat(16, {AA64: unified_kernel()}))),
    ),
    **_file_systems(),
    "vendor path only": ("image.removable-path", with_files(lambda: {"EFI/debian/grubaa64.efi": unified_kernel()})),
    "x86 only": ("image.removable-path", with_files(lambda: {"EFI/BOOT/BOOTX64.EFI": unified_kernel()})),
    "empty ESP": ("image.removable-path", with_files(lambda: {"README.TXT": b"nothing here\n"})),
    "a folder in its place": ("image.removable-path", with_files(lambda: {f"{AA64}/x": b"x"})),
    "boot program is text": ("image.efi-application", with_files(lambda: {AA64: b"echo hello\n" * 99})),
    "boot program is empty": ("image.efi-application", with_files(lambda: {AA64: b""})),
    "boot program cut off": ("image.efi-application", with_files(lambda: {AA64: unified_kernel()[:2000]})),
    "machine type x86-64": ("image.efi-application", with_program(_set(4, "<H", 0x8664))),
    "machine type of Windows on ARM": ("image.efi-application", with_program(_set(4, "<H", 0x01C4), ARM)),
    "AArch64 program at BOOTARM.EFI": ("image.efi-application", with_files(lambda: {ARM: unified_kernel()})),
    "subsystem boot driver": ("image.efi-application", with_program(_set(24 + 68, "<H", 11))),
    "entry point outside": ("image.efi-application", with_program(_set(24 + 16, "<I", 0x7FFFF000))),
    "section past the end": ("image.efi-application", with_program(_section_past_the_end)),
    "U-Boot's variables": ("image.no-variables", with_files(lambda: _boot(**{"ubootefi.var": b"\0" * 64}))),
    "EDK2's variables": ("image.no-variables", with_files(lambda: _boot(NvVars=b"\0" * 64))),
    "a variable store": (
        "image.no-variables",
        with_files(lambda: _boot(**{"saved/vars.fd": firmware_volume(UUID("fff12b8d-7696-4c8b-a985-2747075b4f50"))})),
    ),
    "U-Boot's environment": (
        "image.no-variables",
        _two_partitions(b"", UUID("3de21764-95bd-54bd-a5c3-4abe786f38a8")),
    ),
    "U-Boot": ("image.no-firmware", with_files(lambda: _boot(**{"u-boot.bin": b"\0" * 64}))),
    "EDK2": ("image.no-firmware", with_files(lambda: _boot(**{"firmware/QEMU_EFI.fd": firmware_volume()}))),
    "a capsule": ("image.no-firmware", with_files(lambda: _boot(**{"EFI/UpdateCapsule/new.cap": b"\0" * 64}))),
    "a firmware partition": ("image.no-firmware", _two_partitions(firmware_volume())),
}
"""What is wrong, in words, to the one requirement that it breaks and a maker of the image."""

BROKEN_BOOT: Mapping[str, tuple[str, Maker]] = {
    "stub without kernel": (
        "image.self-contained-boot",
        with_files(lambda: {AA64: read_program(EfiProgram.STUB, ExecutionState.AARCH64)}),
    ),
    "GRUB without configuration": ("image.self-contained-boot", with_files(lambda: {AA64: grub("/EFI/debian")})),
    "shim alone": ("image.self-contained-boot", with_files(lambda: {AA64: shim()})),
    "shim with a broken list": (
        "image.self-contained-boot",
        with_files(
            lambda: {
                AA64: shim(),
                "EFI/BOOT/fbaa64.efi": fallback(),
                "EFI/debian/BOOTAA64.CSV": boot_csv("shimaa64.efi"),
            }
        ),
    ),
    "systemd-boot without entries": ("image.self-contained-boot", with_files(lambda: {AA64: systemd_boot()})),
    "systemd-boot with a dangling entry": (
        "image.self-contained-boot",
        with_files(lambda: {AA64: systemd_boot(), "loader/entries/a.conf": b"title A\nlinux /vmlinuz\n"}),
    ),
}
"""The same for what is judged by following the boot chain (``guest``)."""
