"""Kernel modules and Debian packages for tests: ELF objects with nothing but a .modinfo section, trees and archives."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import zstandard

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".xz": lambda content: lzma.compress(content, check=lzma.CHECK_CRC32),
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
}


def module(*info: str, wide: bool = True) -> bytes:
    """A relocatable ELF file whose section .modinfo holds ``info`` (``depends=virtio``)."""
    modinfo = b"".join(entry.encode() + b"\0" for entry in info)
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64 if wide else 52
    table = start + len(modinfo) + len(names)
    places = [(0, 0, 0, 0), (1, 1, start, len(modinfo)), (10, 3, start + len(modinfo), len(names))]
    layout = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
    sections = b"".join(struct.pack(layout, name, kind, 0, 0, at, size, 0, 0, 1, 0) for name, kind, at, size in places)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    machine, words = (183, "QQQ") if wide else (40, "III")
    section_size = struct.calcsize(layout)
    header = struct.pack(f"<HHI{words}IHHHHHH", 1, machine, 1, 0, 0, table, 0, start, 0, 0, section_size, 3, 2)
    return ident + header + modinfo + names + sections


def modules_folder(folder: Path, modules: Mapping[str, str], suffix: str = "") -> Path:
    """A ``lib/modules/RELEASE``: path below ``kernel/`` without ``.ko`` → what it depends on."""
    for path, needed in modules.items():
        file = folder / "kernel" / f"{path}.ko{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(COMPRESSORS[suffix](module("license=GPL", f"depends={needed}")))
    return folder


def debian_package(path: Path, files: Mapping[str, bytes], compression: str = ".xz") -> Path:
    """A Debian package with ``files`` ("./boot/vmlinuz-1" → content), written without dpkg."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return write_ar(
        path,
        {
            "debian-binary": b"2.0\n",
            "control.tar": b"",
            f"data.tar{compression}": COMPRESSORS[compression](stream.getvalue()),
        },
    )


def write_ar(path: Path, members: Mapping[str, bytes]) -> Path:
    """An ar archive as deb(5) has it."""
    content = b"!<arch>\n"
    for name, data in members.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    path.write_bytes(content)
    return path
