"""Bootable test images: a GPT with one FAT32 ESP, and an EFI program that stands in for a guest (``efi_guest.c``).

Written with mkfs.vfat and mtools and a few lines of GPT, not with armvm's own writers: what boots here proves nothing
about those, and their faults cannot hide here.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20
READY = "ARMVM-GUEST-READY"
"""The line that every stand-in guest says when it is up."""

BOOT_FILES = {"aarch64": "BOOTAA64.EFI", "aarch32": "BOOTARM.EFI"}
_TARGETS = {
    "aarch64": ("-target", "aarch64-uefi", "-mcpu", "generic"),
    "aarch32": ("-target", "thumb-uefi", "-mcpu", "generic+v7a+no_movt+hwdiv-neon"),
}
_ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


def efi_guest(folder: Path, state: str) -> Path:
    """The stand-in guest compiled for ``state`` ("aarch64" or "aarch32")."""
    program = folder / BOOT_FILES[state]
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "build-exe"),
            *("-cflags", "-ffreestanding", "-fno-stack-protector", "-mno-stack-arg-probe", "-fshort-wchar", "--"),
            str(Path(__file__).with_name("efi_guest.c")),
            *("-O", "ReleaseSmall", "-fstrip", "-fno-compiler-rt", "-fentry=EfiMain", f"-femit-bin={program}"),
            *(*_TARGETS[state], "--cache-dir", str(folder / "zig"), "--global-cache-dir", str(folder / "zig")),
        ],
        check=True,
        capture_output=True,
        timeout=240,
    )
    if state == "aarch32":  # the linker says ARMNT (0x1c4), the firmware wants THUMB (0x1c2)
        content = bytearray(program.read_bytes())
        struct.pack_into("<H", content, struct.unpack_from("<I", content, 0x3C)[0] + 4, 0x01C2)
        program.write_bytes(content)
    return program


def esp_image(path: Path, files: Mapping[str, bytes | Path], *, sector_size: int = 512, size_bytes: int = 0) -> Path:
    """A disk image at ``path`` whose only partition is an ESP with ``files`` ("EFI/BOOT/BOOTAA64.EFI" → content)."""
    esp_bytes = size_bytes or (48 * MIB if sector_size == 512 else 300 * MIB)
    esp = path.with_name(f"{path.name}.esp")
    with esp.open("wb") as file:
        file.truncate(esp_bytes)
    _run("mkfs.vfat", "-F", "32", "-S", str(sector_size), "-s", "1", "--invariant", str(esp))
    made: set[str] = set()
    for name, content in files.items():
        for folder in reversed(Path(name).parents[:-1]):
            if str(folder) not in made:
                _run("mmd", "-i", str(esp), f"::{folder}")
                made.add(str(folder))
        source = content
        if isinstance(content, bytes):
            source = path.with_name(f"{path.name}.file")
            source.write_bytes(content)
        _run("mcopy", "-i", str(esp), str(source), f"::{name}")
        if isinstance(content, bytes):
            path.with_name(f"{path.name}.file").unlink()
    with path.open("wb") as disk:
        disk.truncate(esp_bytes + 2 * MIB)
        _write_gpt(disk, esp_bytes, sector_size)
        disk.seek(MIB)
        with esp.open("rb") as source_file:
            while chunk := source_file.read(MIB):
                disk.seek(len(chunk), 1) if not any(chunk) else disk.write(chunk)
    esp.unlink()
    return path


def guest_image(path: Path, *states: str, mode: str = "w", sector_size: int = 512) -> Path:
    """An image that boots ``efi_guest.c`` in each of ``states``; ``mode`` is what it does once it is up."""
    programs = {f"EFI/BOOT/{BOOT_FILES[state]}": efi_guest(path.parent, state) for state in states}
    return esp_image(path, {**programs, "MODE": mode.encode()}, sector_size=sector_size)


def read_esp_file(image: Path, name: str) -> bytes:
    """The content of a file on the ESP of a raw image made here, as mtools reads it."""
    return _run("mtype", "-i", f"{image}@@1M", f"::{name}")


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def _write_gpt(disk: object, esp_bytes: int, sector_size: int) -> None:
    """A protective MBR and both GPT copies (UEFI 2.10 §5.2.3, §5.3) around one ESP that starts at 1 MiB."""
    total = (esp_bytes + 2 * MIB) // sector_size
    table_sectors = 128 * 128 // sector_size
    first, last = MIB // sector_size, (MIB + esp_bytes) // sector_size - 1
    mbr = bytearray(512)
    struct.pack_into("<BBBBBBBBII", mbr, 446, 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, min(total - 1, 0xFFFFFFFF))
    mbr[510:] = b"\x55\xaa"
    entry = struct.pack("<16s16sQQQ72s", _ESP_TYPE.bytes_le, uuid.UUID(int=0xE5F).bytes_le, first, last, 0, b"")
    entries = entry.ljust(128 * 128, b"\0")

    def header(own: int, other: int, table: int) -> bytes:
        fields = [b"EFI PART", 0x10000, 92, 0, 0, own, other, 2 + table_sectors, total - 2 - table_sectors]
        fields += [uuid.UUID(int=0xD15C).bytes_le, table, 128, 128, zlib.crc32(entries)]
        layout = "<8sIIIIQQQQ16sQIII"
        fields[3] = zlib.crc32(struct.pack(layout, *fields))
        return struct.pack(layout, *fields)

    for sector, content in (
        (0, bytes(mbr)),
        (1, header(1, total - 1, 2)),
        (2, entries),
        (total - 1 - table_sectors, entries),
        (total - 1, header(total - 1, 1, total - 1 - table_sectors)),
    ):
        disk.seek(sector * sector_size)  # type: ignore[attr-defined]
        disk.write(content)  # type: ignore[attr-defined]
