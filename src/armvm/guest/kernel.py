"""A Linux kernel at rest: its execution state, its packaging, its version, the configuration and the words inside it.

Sources: Linux, Documentation/arch/arm64/booting.rst (Image), Documentation/arch/arm/booting.rst (zImage),
drivers/firmware/efi/libstub/zboot-header.S (EFI zboot), kernel/configs.c (IKCONFIG).
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from armvm.disk.decompress import MAGICS, Member, recognise, unpack_bytes
from armvm.disk.storage import Disk, Slice
from armvm.errors import InputError, MissingError
from armvm.execution import ExecutionState
from armvm.guest.kernel_config import MOST_CONFIG_BYTES, KernelConfig
from armvm.printable import printable
from armvm.units import KIB, MIB

MOST_KERNEL_BYTES = 256 * MIB
_PIECE_BYTES = MIB
_HEAD_BYTES = 4096
_SEARCHED_BYTES = 512 * KIB
_MOST_CANDIDATES = 32
_BANNER = re.compile(rb"Linux version (\d[!-~]{0,127}) \([^\n\0]{1,1024}")
_CONFIG_START, _CONFIG_END = b"IKCFG_ST", b"IKCFG_ED"
_MOST_PACKED_CONFIG = MIB
_OVERLAP = 2 * KIB
_ZBOOT = struct.Struct("<4s4sII8x32s")
_ARM_MAGIC = b"\x18\x28\x6f\x01"


class KernelFormat(enum.Enum):
    """How a kernel image is packaged."""

    IMAGE = "Image"
    PACKED_IMAGE = "compressed Image"
    ZBOOT = "EFI zboot image"
    ZIMAGE = "zImage"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one pass over the unpacked kernel came to."""

    banner: str | None
    config: KernelConfig | None
    marks: frozenset[bytes]


class KernelFacts:
    """A kernel image. ``state``, ``format`` and ``compression`` come from its header; the rest is read when asked for.

    What is asked for raises InputError when the kernel is damaged, MissingError when only a program that is not
    installed can unpack it.
    """

    def __init__(
        self,
        disk: Disk,
        state: ExecutionState,
        format: KernelFormat,
        payload: Member | None,
        marks: Collection[bytes] = (),
    ) -> None:
        self.disk = disk
        self.state = state
        self.format = format
        self.compression = payload.compression if payload else None
        self._payload = payload
        self._marks = frozenset(marks)

    @cached_property
    def banner(self) -> str | None:
        """The line ``Linux version …`` that the kernel begins its log with."""
        if self._payload is not None or "_seen" in self.__dict__:
            return self._seen.banner
        return next((_banner(text) for text, _ in self._windows() if _BANNER.search(text)), None)

    @property
    def version(self) -> str | None:
        """The kernel's release as ``uname -r`` says it: the name of its folder of modules."""
        return self.banner.split(" ", 3)[2] if self.banner else None

    @property
    def config(self) -> KernelConfig | None:
        """The configuration that it carries (CONFIG_IKCONFIG), or None."""
        return self._seen.config

    def marks(self) -> frozenset[bytes]:
        """Those of the byte strings that ``read_kernel`` was given that stand in the kernel."""
        return self._seen.marks

    @cached_property
    def _seen(self) -> _Seen:
        banner: str | None = None
        packed: bytearray | None = None
        config: KernelConfig | None = None
        missing = set(self._marks)
        for text, fresh in self._windows():
            banner = banner or _banner(text)
            missing -= {mark for mark in missing if mark in text}
            if packed is None and config is None:
                start = text.find(_CONFIG_START)
                packed = bytearray(text[start + len(_CONFIG_START) :]) if start >= 0 else None
            elif packed is not None:
                packed += fresh
            if packed is not None and (_CONFIG_END in packed or len(packed) > _MOST_PACKED_CONFIG):
                config = self._unpacked_config(bytes(packed.partition(_CONFIG_END)[0]))
                packed = None
        return _Seen(banner, config, self._marks - missing)

    def _unpacked_config(self, packed: bytes) -> KernelConfig | None:
        """The configuration between the two marks; None when the first was only a word in some text."""
        where = f"{printable(self.disk.name)} (IKCONFIG)"
        with suppress(InputError):
            text = unpack_bytes(packed, most_bytes=MOST_CONFIG_BYTES, name=where)
            return KernelConfig.parse(text.decode("utf-8", "replace"), where)
        return None

    def _windows(self) -> Iterator[tuple[bytes, bytes]]:
        """The unpacked kernel in pieces: each with the end of the one before it, and by itself."""
        tail = b""
        total = 0
        for piece in self._pieces():
            total += len(piece)
            if total > MOST_KERNEL_BYTES:
                raise InputError(
                    "larger than any kernel", subject=self.disk.name, expected=f"at most {MOST_KERNEL_BYTES} bytes"
                )
            yield tail + piece, piece
            tail = (tail + piece)[-_OVERLAP:]

    def _pieces(self) -> Iterator[bytes]:
        if self._payload is not None:
            yield from self._payload
            return
        offset = 0
        while offset < self.disk.size_bytes:
            piece = self.disk.read(offset, min(_PIECE_BYTES, self.disk.size_bytes - offset))
            offset += len(piece)
            yield piece


def read_kernel(disk: Disk, *, marks: Collection[bytes] = ()) -> KernelFacts:
    """Say what kernel ``disk`` is, by its header. ``marks`` are what to look for in it, should somebody ask later.

    Raises InputError when it is no Linux kernel for ARM, MissingError when only a program that is not installed can
    unpack it.
    """
    head = disk.read(0, min(disk.size_bytes, _HEAD_BYTES))
    if _is_image(head):
        return KernelFacts(disk, ExecutionState.AARCH64, KernelFormat.IMAGE, None, marks)
    if head[0x24:0x28] == _ARM_MAGIC:
        return KernelFacts(disk, ExecutionState.AARCH32, KernelFormat.ZIMAGE, _zimage_payload(disk), marks)
    if head[:2] == b"MZ" and head[4:8] == b"zimg":
        return KernelFacts(disk, _pe_state(head, disk), KernelFormat.ZBOOT, _zboot_payload(head, disk), marks)
    if recognise(head) is not None:
        member = Member(disk)
        if _is_image(next(iter(member), b"")):
            return KernelFacts(disk, ExecutionState.AARCH64, KernelFormat.PACKED_IMAGE, member, marks)
    found = "an x86 kernel" if head[0x202:0x206] == b"HdrS" else printable(repr(head[:8])[2:-1])
    raise InputError("no Linux kernel for ARM", subject=disk.name, found=found, expected="an Image or a zImage")


def _is_image(head: bytes) -> bool:
    return head[0x38:0x3C] == b"ARM\x64"


def _banner(text: bytes) -> str | None:
    found = _BANNER.search(text)
    return found[0].decode("utf-8", "replace") if found else None


def _pe_state(head: bytes, disk: Disk) -> ExecutionState:
    start = int.from_bytes(head[0x3C:0x40], "little")
    machine = int.from_bytes(head[start + 4 : start + 6], "little")
    for state in ExecutionState:
        if head[start : start + 4] == b"PE\0\0" and machine == state.pe_machine:
            return state
    raise InputError("no Linux kernel for ARM", subject=disk.name, found=f"PE machine type {machine:#06x}")


def _zboot_payload(head: bytes, disk: Disk) -> Member:
    _, _, offset, size, name = _ZBOOT.unpack_from(head)
    payload = Slice(disk, offset, size, name="payload")
    if recognise(payload.read(0, min(9, size))) is None:
        raise InputError(
            "an EFI zboot image of an unknown compression",
            subject=disk.name,
            offset_bytes=offset,
            found=printable(name.split(b"\0", 1)[0].decode("ascii", "replace")),
        )
    return Member(payload)


def _zimage_payload(disk: Disk) -> Member | None:
    """The compressed kernel in a zImage: the first place behind the decompressor that unpacks to something."""
    head = disk.read(0, min(disk.size_bytes, _SEARCHED_BYTES))
    pattern = re.compile(b"|".join(re.escape(magic) for magic in MAGICS.values()))
    unreadable: MissingError | None = None
    for count, found in enumerate(pattern.finditer(head)):
        if count >= _MOST_CANDIDATES:
            break
        member = Member(disk, found.start())
        try:
            if len(next(iter(member), b"")) >= 64 * KIB:
                return member
        except InputError:
            continue
        except MissingError as error:
            unreadable = error
    if unreadable is not None:
        raise unreadable
    return None  # not compressed (CONFIG_KERNEL_UNCOMPRESSED), or in a way that nobody knows: searched as it is
