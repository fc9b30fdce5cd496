"""What the stages of a repair work on: the disk with the edits so far, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from armvm.disk.gpt_format import Partition
from armvm.disk.patched import PatchedDisk, WritableSlice
from armvm.image.contents import ImageContents


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing that a repair does: for which requirement, where, what, and why."""

    requirement: str
    where: str
    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unrepairable:
    """One thing that a repair cannot do: for which requirement, where, why, and what a human can do about it."""

    requirement: str
    where: str
    why: str
    remedy: str | None


def every_requirement(_requirement: str) -> bool:
    """The choice that leaves nothing out."""
    return True


@dataclass(slots=True)
class Workbench:
    """An image under repair.

    ``timestamp`` (seconds since 1970) goes into what is written, ``wants`` chooses requirements by their ids.
    """

    disk: PatchedDisk
    timestamp: int
    wants: Callable[[str], bool] = every_requirement
    edits: list[Edit] = field(default_factory=list)
    unrepairable: list[Unrepairable] = field(default_factory=list)
    partuuids: dict[str, str] = field(default_factory=dict)
    """PARTUUIDs that partitions had before the table was converted, and what they have now."""

    def contents(self) -> ImageContents:
        """The image as the edits so far leave it, read anew."""
        return ImageContents(self.disk)

    def volume(self, partition: Partition) -> WritableSlice:
        """A partition that can be written."""
        size = self.disk.sector_size
        return self.disk.window(
            partition.offset_bytes(size), partition.size_bytes(size), name=f"partition {partition.number}"
        )

    def did(self, requirement: str, where: str, action: str, reason: str) -> None:
        """Note an edit."""
        self.edits.append(Edit(requirement, where, action, reason))

    def cannot(self, requirement: str, where: str, why: str, remedy: str | None) -> None:
        """Note what cannot be repaired."""
        entry = Unrepairable(requirement, where, why, remedy)
        if entry not in self.unrepairable:
            self.unrepairable.append(entry)


Stage = Callable[[Workbench], None]
