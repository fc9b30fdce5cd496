"""What an EFI program is: a kernel, a unified kernel image, GRUB, shim, systemd-boot … and what it will look for."""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass

from armvm.disk.storage import Disk, Slice
from armvm.errors import InputError
from armvm.image.pe import PeImage, PeSection
from armvm.units import MIB

_TEXT_LIMIT = 64 * 1024
_GRUB_MAGIC = 0x676D696D  # 'mimg' (GRUB, include/grub/kernel.h)
_GRUB_INFO_64 = struct.Struct("<I4xQQ")
_GRUB_INFO_32 = struct.Struct("<III")
_GRUB_OBJECT = struct.Struct("<II")
_GRUB_MOST_OBJECTS = 4096
_GRUB_MEMDISK, _GRUB_CONFIG, _GRUB_PREFIX = 1, 2, 3
_KERNEL_MAGICS = ((0x38, b"ARM\x64"), (0x24, b"\x18\x28\x6f\x01"))
"""Offset and magic of arm64's Image and arm's zImage (Linux, Documentation/arch/arm64 and arm, booting.rst)."""
_MOST_SEARCHED_BYTES = 8 * MIB
_LOADER_INFO = re.compile(rb"#### LoaderInfo: (systemd-boot|systemd-stub) ([!-~]{1,64}) ####")
_OWN_STUB = b"armvm stub: "
_SECOND_STAGES = tuple(name.encode("utf-16-le") for name in ("grubaa64.efi", "grubarm.efi"))
_FALLBACK_LISTS = tuple(name.encode("utf-16-le") for name in ("bootaa64.csv", "bootarm.csv"))


class ProgramKind(enum.Enum):
    """The kinds of EFI programs whose ways of finding the rest of the system are known."""

    UNIFIED_KERNEL = "unified kernel image"
    KERNEL = "Linux kernel (EFI stub)"
    BOOT_STUB = "boot stub without a kernel"
    GRUB = "GRUB"
    SHIM = "shim"
    FALLBACK = "shim's fallback"
    SYSTEMD_BOOT = "systemd-boot"
    OTHER = "EFI program"


@dataclass(frozen=True, slots=True)
class BootProgram:
    """An EFI program's kind and what it carries inside.

    ``version`` is as the program's own SBAT says. For unified kernel images: ``command_line``, ``os_release`` (its
    text), ``kernel_version``. For GRUB: ``grub_prefix`` (where it looks for grub.cfg), and whether it has an embedded
    configuration or memory disk, which may send it elsewhere.
    """

    kind: ProgramKind
    version: str | None = None
    command_line: str | None = None
    os_release: str | None = None
    kernel_version: str | None = None
    grub_prefix: str | None = None
    grub_config: str | None = None
    grub_memdisk: bool = False

    @property
    def os_name(self) -> str | None:
        """PRETTY_NAME of the os-release that it carries."""
        for line in (self.os_release or "").splitlines():
            key, _, value = line.partition("=")
            if key == "PRETTY_NAME":
                return value.strip().strip("\"'")
        return None

    @property
    def label(self) -> str:
        """Kind and version in a few words."""
        version = self.version or self.kernel_version
        return f"{self.kind.value} {version}" if version else self.kind.value


def identify(pe: PeImage, source: Disk) -> BootProgram:
    """Say what the program behind ``pe`` is. Reads only headers and small sections; what cannot be read is left out."""
    sbat = _sbat(pe, source)
    if pe.section(".linux") is not None:
        return BootProgram(
            ProgramKind.UNIFIED_KERNEL,
            command_line=_text(pe, source, ".cmdline"),
            os_release=_text(pe, source, ".osrel"),
            kernel_version=_text(pe, source, ".uname"),
        )
    if pe.section("mods") is not None:
        return _grub(pe, source, sbat.get("grub"))
    head = source.read(0, min(64, source.size_bytes))
    if any(head[offset : offset + len(magic)] == magic for offset, magic in _KERNEL_MAGICS):
        return BootProgram(ProgramKind.KERNEL)
    return _by_its_words(source, sbat)


def _by_its_words(source: Disk, sbat: dict[str, str]) -> BootProgram:
    """Programs whose sections say nothing: they are known by the names that they look for, or give themselves."""
    content = source.read(0, source.size_bytes) if source.size_bytes <= _MOST_SEARCHED_BYTES else b""
    loader = _LOADER_INFO.search(content)
    if loader is not None:
        name, version = loader[1].decode(), loader[2].decode("ascii", "replace")
        kind = ProgramKind.SYSTEMD_BOOT if name == "systemd-boot" else ProgramKind.BOOT_STUB
        return BootProgram(kind, version=version)
    if _OWN_STUB in content:
        return BootProgram(ProgramKind.BOOT_STUB)
    if "shim" in sbat:
        if any(name in content for name in _SECOND_STAGES):
            return BootProgram(ProgramKind.SHIM, version=sbat["shim"])
        if any(name in content for name in _FALLBACK_LISTS):
            return BootProgram(ProgramKind.FALLBACK, version=sbat["shim"])
    return BootProgram(ProgramKind.OTHER)


def _section_bytes(source: Disk, section: PeSection, limit: int) -> bytes:
    length = min(section.data_size, limit, max(source.size_bytes - section.raw_offset, 0))
    try:
        return source.read(section.raw_offset, length)
    except InputError:
        return b""


def _text(pe: PeImage, source: Disk, name: str) -> str | None:
    section = pe.section(name)
    if section is None:
        return None
    return _section_bytes(source, section, _TEXT_LIMIT).split(b"\0", 1)[0].decode("utf-8", "replace").strip()


def _sbat(pe: PeImage, source: Disk) -> dict[str, str]:
    """Component to package version, from the program's SBAT section (shim, SBAT.md)."""
    versions: dict[str, str] = {}
    for line in (_text(pe, source, ".sbat") or "").splitlines():
        fields = line.split(",")
        if len(fields) >= 5:
            versions.setdefault(fields[0], fields[4])
    return versions


def _grub(pe: PeImage, source: Disk, version: str | None) -> BootProgram:
    section = pe.section("mods")
    assert section is not None  # noqa: S101 - the caller looked
    prefix = config = None
    memdisk = False
    for kind, offset, size in _grub_objects(source, section, wide=pe.is_pe32_plus):
        if kind == _GRUB_PREFIX:
            prefix = _grub_text(source, offset, size)
        elif kind == _GRUB_CONFIG:
            config = _grub_text(source, offset, size)
        elif kind == _GRUB_MEMDISK:
            memdisk = True
    return BootProgram(ProgramKind.GRUB, version=version, grub_prefix=prefix, grub_config=config, grub_memdisk=memdisk)


def _grub_objects(source: Disk, section: PeSection, *, wide: bool) -> list[tuple[int, int, int]]:
    """(type, file offset of the payload, its size) for each object that grub-mkimage put into the program."""
    info = _GRUB_INFO_64 if wide else _GRUB_INFO_32
    head = _section_bytes(source, section, info.size)
    if len(head) < info.size:
        return []
    magic, first, size = info.unpack(head)
    if magic != _GRUB_MAGIC:
        return []
    end = min(size, section.data_size, max(source.size_bytes - section.raw_offset, 0))
    objects: list[tuple[int, int, int]] = []
    position = first
    while position + _GRUB_OBJECT.size <= end and len(objects) < _GRUB_MOST_OBJECTS:
        place = section.raw_offset + position
        kind, length = _GRUB_OBJECT.unpack(source.read(place, _GRUB_OBJECT.size))
        if length < _GRUB_OBJECT.size or position + length > end:
            break
        objects.append((kind, place + _GRUB_OBJECT.size, length - _GRUB_OBJECT.size))
        position += length
    return objects


def grub_memdisk(pe: PeImage, source: Disk) -> Disk | None:
    """The memory disk inside a GRUB program; None when it has none."""
    section = pe.section("mods")
    if section is None:
        return None
    for kind, offset, size in _grub_objects(source, section, wide=pe.is_pe32_plus):
        if kind == _GRUB_MEMDISK:
            return Slice(source, offset, size, name="memory disk")
    return None


def _grub_text(source: Disk, offset: int, size: int) -> str:
    return source.read(offset, min(size, _TEXT_LIMIT)).split(b"\0", 1)[0].decode("utf-8", "replace")
