"""The Disk protocol: a readable run of bytes with a size and a sector size; everything above stands on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from armvm.errors import InputError


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes that either holds data or is known to read as zeros."""

    offset: int
    length: int
    data: bool


@dataclass(slots=True)
class Traffic:
    """What a network was asked for so far, for a file of ``size_bytes``: bytes of content received, requests sent."""

    size_bytes: int = 0
    transferred_bytes: int = 0
    requests: int = 0


@runtime_checkable
class Disk(Protocol):
    """A disk as a VM sees it. Reading is lazy and never goes outside ``[0, size_bytes)``."""

    @property
    def name(self) -> str:
        """How messages call it: a path, or ``disk.qcow2, partition 1``."""
        ...

    @property
    def format(self) -> str:
        """The container's format, as ``qemu-img`` spells it: raw, qcow2, vmdk, vhdx, vpc, vdi."""
        ...

    @property
    def size_bytes(self) -> int:
        """The size that a VM sees, in bytes."""
        ...

    @property
    def sector_size(self) -> int:
        """The logical sector size in bytes: 512 or 4096."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``. Raises InputError when they do not all exist."""
        ...

    def extents(self) -> Iterator[Extent]:
        """The whole disk in order as extents: what a sparse copy needs. May call everything data."""
        ...

    def close(self) -> None:
        """Let go of files and processes. Reading afterwards is an error; closing twice is none."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BaseDisk:
    """What all disks have in common: bounds before every read, and the context manager."""

    traffic: Traffic | None = None
    """What was asked of a network for it; None where its bytes are on this machine."""

    def __init__(self, name: str, format: str, size_bytes: int, sector_size: int = 512) -> None:
        self.name = name
        self.format = format
        self.size_bytes = size_bytes
        self.sector_size = sector_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``. Raises InputError when they do not all exist."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InputError(
                f"a read of {length} bytes goes past the end",
                subject=self.name,
                offset_bytes=offset,
                expected=f"at most {self.size_bytes} bytes",
            )
        return self._read(offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def extents(self) -> Iterator[Extent]:
        """The whole disk as one run of data."""
        if self.size_bytes:
            yield Extent(0, self.size_bytes, data=True)

    def close(self) -> None:
        """Nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryDisk(BaseDisk):
    """A disk whose bytes are in memory."""

    def __init__(self, content: bytes, *, name: str = "memory", sector_size: int = 512) -> None:
        super().__init__(name, "raw", len(content), sector_size)
        self._content = content

    def _read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


class Slice(BaseDisk):
    """A run of another disk's bytes, such as a partition. Closing it leaves the disk under it open."""

    def __init__(self, disk: Disk, offset: int, size_bytes: int, *, name: str) -> None:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > disk.size_bytes:
            raise InputError(
                f"{name} reaches outside its disk",
                subject=disk.name,
                offset_bytes=max(offset, 0),
                found=f"{size_bytes} bytes",
                expected=f"at most {max(disk.size_bytes - offset, 0)}",
            )
        super().__init__(f"{disk.name}, {name}", "raw", size_bytes, disk.sector_size)
        self._disk = disk
        self._offset = offset

    def _read(self, offset: int, length: int) -> bytes:
        return self._disk.read(self._offset + offset, length)

    def extents(self) -> Iterator[Extent]:
        """What the disk says of this run of its bytes."""
        end = self._offset + self.size_bytes
        for extent in self._disk.extents():
            if extent.offset >= end:
                return
            low, high = max(extent.offset, self._offset), min(extent.offset + extent.length, end)
            if low < high:
                yield Extent(low - self._offset, high - low, extent.data)
