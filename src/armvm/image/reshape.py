"""A disk with the same partitions and other sectors, or of another size, planned as a disk of pieces.

Partitions keep their numbers, GUIDs, names, attributes and, where the sectors allow it, their places in bytes; so
everything that names them still finds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.disk.composed import ComposedDisk
from armvm.disk.ext_resize import resized_ext
from armvm.disk.fat import FatKind, FatVolume
from armvm.disk.filesystems import Content, detect_content
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import ENTRY_COUNT, ENTRY_SIZE_BYTES, Partition, PartitionTable, TableKind
from armvm.disk.gpt_write import ALIGNMENT_BYTES, GptLayout, serialise
from armvm.disk.storage import Disk, MemoryDisk, Slice
from armvm.errors import InputError, UsageError
from armvm.image.carry import FatCopy, copy_fat, doubt, why_not_carried
from armvm.process import find_program
from armvm.units import MIB, SECTOR_SIZES, align_down, align_up, format_size

LAST = 0
"""Stands for the number of the partition that stands last on the disk."""

_ARRAY_BYTES = ENTRY_COUNT * ENTRY_SIZE_BYTES
_BOOT_CODE_BYTES = 440
_EXT = frozenset({"ext2", "ext3", "ext4"})
_GROWN_BY_THE_GUEST = {
    "xfs": "growpart is done, xfs_growfs grows the file system when it is mounted",
    "btrfs": "btrfs filesystem resize grows it when it is mounted",
    "LVM2_member": "pvresize grows it in the guest",
    "crypto_LUKS": "it grows when it is opened, what is inside is the guest's to grow",
}


@dataclass(frozen=True, slots=True)
class Reshape:
    """What is to change. ``size_bytes`` or ``extra_bytes`` give the disk's size, ``smallest`` cuts what is unused.

    ``shrink`` also makes the file system of the last partition smaller, to fit ``size_bytes`` or as small as it gets;
    ``grow`` is the number of a partition (or LAST) that takes the free room behind it.
    """

    sector_size: int | None = None
    size_bytes: int | None = None
    extra_bytes: int | None = None
    smallest: bool = False
    shrink: bool = False
    grow: int | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself (UsageError)."""
        if self.sector_size is not None and self.sector_size not in SECTOR_SIZES:
            raise UsageError(f"not a sector size: {self.sector_size}", hint="512 or 4096 bytes")
        if sum((self.size_bytes is not None, self.extra_bytes is not None, self.smallest)) > 1:
            raise UsageError("more than one size is asked for")
        if self.grow is not None and (self.smallest or self.shrink):
            raise UsageError("a partition cannot grow on a disk that is made as small as it gets")
        if self.shrink and self.extra_bytes is not None:
            raise UsageError("a disk cannot grow and shrink")

    @property
    def changes_anything(self) -> bool:
        """Whether it is more than a copy."""
        return self != Reshape()


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The planned disk, and what the user should know about it, a line each."""

    disk: Disk
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Part:
    """A partition on its way: where it goes, in bytes, and what it will hold."""

    entry: Partition
    start: int
    size: int
    content: Disk
    found: Content | None
    fat: FatCopy | None = None

    @property
    def name(self) -> str:
        return f"partition {self.entry.number}"

    @property
    def end(self) -> int:
        return self.start + self.size


@contextmanager
def plan_reshape(source: Disk, wish: Reshape, *, scratch_folder: Path) -> Iterator[Reshaped]:
    """``source`` as ``wish`` has it, to be read while the block runs; copies that programs work on are in the folder.

    Raises InputError for a disk without a sound GPT (repairing is not done here) and for what cannot be read,
    UsageError when something is in the way, MissingError when a program that was asked for is not there.
    """
    with ExitStack() as stack:
        yield _Planner(source, wish, scratch_folder, stack).plan() if wish.changes_anything else Reshaped(source, ())


class _Planner:
    """One plan in the making: the partitions in the order of the disk, and what there is to say."""

    def __init__(self, source: Disk, wish: Reshape, folder: Path, stack: ExitStack) -> None:
        self._source = source
        self._wish = wish
        self._folder = folder
        self._stack = stack
        self._sector_size = wish.sector_size or source.sector_size
        self._backup_bytes = _ARRAY_BYTES + self._sector_size
        self._head_bytes = 2 * self._sector_size + _ARRAY_BYTES
        self._table = _sound_table(source)
        self._notes: list[str] = []
        self._parts: list[_Part] = []

    def plan(self) -> Reshaped:
        for entry in sorted(self._table.partitions, key=lambda partition: partition.first_lba):
            content = entry.slice(self._source)
            start = entry.offset_bytes(self._source.sector_size)
            self._parts.append(_Part(entry, start, content.size_bytes, content, detect_content(content)))
        if self._sector_size != self._source.sector_size:
            self._check_contents()
        for part in self._parts:
            self._remake_fat(part)
        self._place()
        if self._wish.shrink:
            self._shrink_last()
        size = self._size()
        if self._wish.grow is not None:
            self._grow(size)
        return Reshaped(self._compose(size), tuple(self._notes))

    def _note(self, part: _Part, text: str) -> None:
        self._notes.append(f"{part.name}: {text}")

    # Other sectors

    def _check_contents(self) -> None:
        refused = []
        for part in self._parts:
            reason = why_not_carried(part.content, part.found, self._sector_size)
            if reason:
                refused.append(f"{part.name}: {reason}")
            elif warning := doubt(part.content, part.found, self._sector_size):
                self._note(part, warning)
        if refused:
            raise UsageError(
                f"cannot be made a disk of {self._sector_size}-byte sectors: {'; '.join(refused)}",
                hint="make that file system anew with larger blocks, and copy its files",
            )

    def _remake_fat(self, part: _Part) -> None:
        """FAT counts in the sectors of its disk, and firmware refuses any other: where they differ, it is rebuilt."""
        if self._wish.sector_size is None or not _is_fat(part):
            return
        volume = FatVolume(part.content)
        if volume.bytes_per_sector == self._sector_size:
            return
        part.fat = copy_fat(volume)
        self._notes += [f"{part.name}: {note}" for note in part.fat.notes]
        before = part.size
        least = align_up(part.fat.minimum_size(self._sector_size), ALIGNMENT_BYTES)
        part.size = max(align_up(part.size, self._sector_size), least)
        grown = f", {format_size(before)} becomes {format_size(part.size)}" if part.size > before else ""
        kind = "is" if volume.kind is FatKind.FAT32 else f"was {volume.kind.value} and is"
        self._note(part, f"its file system {kind} rebuilt as FAT32 with {self._sector_size}-byte sectors{grown}")

    def _place(self) -> None:
        """Leave what can stay where it is; move the others to the next aligned place."""
        cursor = self._head_bytes
        for part in self._parts:
            part.size = align_up(part.size, self._sector_size)
            before = part.start
            if part.start % self._sector_size or part.start < cursor:
                part.start = align_up(max(part.start, cursor), ALIGNMENT_BYTES)
                self._note(part, f"moves from byte {before} to {part.start} ({format_size(part.start)})")
            cursor = part.end

    # Another size

    @property
    def _required(self) -> int:
        """The least size of the disk: up to the last partition, and the backup table."""
        return (self._parts[-1].end if self._parts else ALIGNMENT_BYTES) + self._backup_bytes

    def _wanted(self) -> int | None:
        if self._wish.extra_bytes is not None:
            return align_up(self._source.size_bytes + self._wish.extra_bytes, self._sector_size)
        return None if self._wish.size_bytes is None else align_up(self._wish.size_bytes, self._sector_size)

    def _size(self) -> int:
        wanted, required = self._wanted(), self._required
        old = align_up(self._source.size_bytes, self._sector_size)
        if wanted is not None:
            if wanted < required:
                raise self._too_small(wanted)
            return wanted
        if self._wish.smallest or self._wish.shrink:
            return min(align_up(required, MIB), max(old, required))
        if required > old:
            size = align_up(required, MIB)
            self._notes.append(f"the disk becomes {format_size(size)}, for its partitions need more room")
            return size
        return old

    def _too_small(self, wanted: int) -> UsageError:
        least = format_size(align_up(self._required, MIB))
        if not self._parts:
            return UsageError(f"a disk of {wanted} bytes has no room for a GPT", hint=f"it takes {least}")
        last = self._parts[-1]
        holds = last.found.kind if last.found else "something unknown"
        return UsageError(
            f"a disk of {format_size(wanted)} is too small: {last.name} ({holds}) ends at byte {last.end}",
            hint=f"--size min makes it {least}"
            + ("; --shrink makes the file system smaller too" if holds in _EXT and not self._wish.shrink else ""),
        )

    def _shrink_last(self) -> None:
        if not self._parts:
            return
        part, wanted = self._parts[-1], self._wanted()
        target = None if wanted is None else align_down(wanted - self._backup_bytes, ALIGNMENT_BYTES) - part.start
        if target is not None and target >= part.size:
            return
        kind = part.found.kind if part.found else None
        if kind not in _EXT:
            # A size that was asked for is refused where it is reckoned; without one, the unused tail is all there is.
            self._note(part, f"{kind or 'what it holds'} cannot be made smaller: only what is unused is cut off")
            return
        if target is not None and target <= 0:
            return
        before = part.size
        part.content = self._stack.enter_context(resized_ext(part.content, target, folder=self._folder))
        part.size = align_up(part.content.size_bytes, ALIGNMENT_BYTES)
        part.size = min(before, part.size)
        self._note(part, f"{kind} shrinks from {format_size(before)} to {format_size(part.size)}")

    def _grow(self, disk_size: int) -> None:
        index = len(self._parts) - 1
        if self._wish.grow != LAST:
            numbers = [part.entry.number for part in self._parts]
            index = numbers.index(self._wish.grow) if self._wish.grow in numbers else -1
        if index < 0:
            raise UsageError(f"there is no partition {self._wish.grow or ''} to grow".replace("  ", " "))
        part = self._parts[index]
        if index + 1 < len(self._parts):
            limit, behind = self._parts[index + 1].start, f"{self._parts[index + 1].name} stands right behind it"
        else:
            end = disk_size - self._backup_bytes
            limit, behind = max(align_down(end, ALIGNMENT_BYTES), part.end), "it reaches to the end of the disk"
        if limit <= part.end:
            raise UsageError(f"{part.name} cannot grow: {behind}", hint="give the disk more room with --size +SIZE")
        before, part.size = part.size, align_down(limit - part.start, self._sector_size)
        self._note(part, f"grows from {format_size(before)} to {format_size(part.size)}")
        self._grow_content(part)

    def _grow_content(self, part: _Part) -> None:
        kind = part.found.kind if part.found else None
        if kind in _EXT:
            if find_program("resize2fs") is not None and find_program("e2fsck") is not None:
                part.content = self._stack.enter_context(resized_ext(part.content, part.size, folder=self._folder))
            else:
                self._note(part, f"resize2fs is not installed: the guest has to grow its {kind} (growpart, resize2fs)")
        elif part.fat is None and _is_fat(part):
            part.fat = copy_fat(FatVolume(part.content))
            self._notes += [f"{part.name}: {note}" for note in part.fat.notes]
        elif part.fat is None:
            how = _GROWN_BY_THE_GUEST.get(kind or "", "what it holds keeps its size")
            self._note(part, f"only the partition grows; {how}")

    # The result

    def _compose(self, size: int) -> Disk:
        sector_size = self._sector_size
        entries = tuple(
            replace(part.entry, first_lba=part.start // sector_size, last_lba=part.end // sector_size - 1)
            for part in self._parts
        )
        header = self._table.header
        if header is None:
            raise InputError("has no GPT header", subject=self._source.name)
        try:
            layout = GptLayout(header.disk_guid, sector_size, size, entries)
            written = serialise(layout)
        except ValueError as error:
            raise UsageError(f"these partitions cannot be put into a new GPT: {error}") from error
        (_, head), (tail_offset, tail) = written
        # A GPT needs no boot code, but who has some (for other firmware) keeps it, and what it loads from the gap.
        boot_code = self._source.read(0, _BOOT_CODE_BYTES)
        pieces: list[tuple[int, Disk]] = [
            (0, MemoryDisk(boot_code + head[_BOOT_CODE_BYTES:])),
            (tail_offset, MemoryDisk(tail)),
        ]
        gap_end = min([part.start for part in self._parts if part.content.size_bytes] or [0])
        if sector_size == self._source.sector_size and gap_end > len(head):
            gap = Slice(self._source, len(head), gap_end - len(head), name="what is before the first partition")
            pieces.append((len(head), gap))
        for part, entry in zip(self._parts, entries, strict=True):
            content = part.content
            if part.fat is not None:
                content = part.fat.plan(part.size, sector_size, entry.first_lba)
            pieces.append((part.start, content))
        return ComposedDisk(self._source.name, size, pieces, sector_size=sector_size)


def _is_fat(part: _Part) -> bool:
    return part.entry.is_esp or (part.found is not None and part.found.kind == "vfat")


def _sound_table(source: Disk) -> PartitionTable:
    table = read_partition_table(source)
    hint = f"armvm repair {source.name} can mend that; a conversion of the format alone copies the disk as it is"
    if table.kind is not TableKind.GPT:
        raise InputError(
            "only a disk with a GPT can be given other sectors or another size",
            subject=source.name,
            found={TableKind.NONE: "no partition table", TableKind.MBR_ONLY: "an MBR"}.get(table.kind, "a hybrid MBR"),
            hint=None if table.kind is TableKind.NONE else hint,
        )
    if not table.trusted or table.serious_problems:
        worst = table.serious_problems[0].message if table.serious_problems else "its table cannot be trusted"
        raise InputError("the GPT is not sound", subject=source.name, found=worst, hint=hint)
    return table
