"""A disk made of runs of other disks, one after the other or in stripes: what LVM2 and RAID make of their members."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from armvm.disk.storage import BaseDisk, Disk
from armvm.errors import InputError


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere on a disk, in bytes."""

    disk: Disk
    offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """``length`` bytes dealt out over ``places`` in turns of ``stripe_bytes``; with one place that is a plain run."""

    length: int
    places: Sequence[Place]
    stripe_bytes: int = 0


class MappedDisk(BaseDisk):
    """Segments in a row. Raises InputError when one of them reaches outside its disk."""

    def __init__(self, segments: Iterable[Segment], *, name: str, sector_size: int = 512) -> None:
        self._segments = tuple(segments)
        for segment in self._segments:
            share = _share(segment)
            if segment.length <= 0 or (len(segment.places) > 1 and segment.stripe_bytes <= 0):
                raise InputError("has an impossible segment", subject=name)
            for place in segment.places:
                if place.offset < 0 or place.offset + share > place.disk.size_bytes:
                    raise InputError(f"reaches outside {place.disk.name}", subject=name)
        *self._starts, size_bytes = accumulate((segment.length for segment in self._segments), initial=0)
        super().__init__(name, "raw", size_bytes, sector_size)

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            index = bisect_right(self._starts, offset) - 1
            segment, inside = self._segments[index], offset - self._starts[index]
            step = min(length, segment.length - inside)
            if len(segment.places) == 1:
                place = segment.places[0]
                parts.append(place.disk.read(place.offset + inside, step))
            else:
                stripe, within = divmod(inside, segment.stripe_bytes)
                turn, member = divmod(stripe, len(segment.places))
                place = segment.places[member]
                step = min(step, segment.stripe_bytes - within)
                parts.append(place.disk.read(place.offset + turn * segment.stripe_bytes + within, step))
            offset += step
            length -= step
        return b"".join(parts)


def _share(segment: Segment) -> int:
    """How many bytes of a segment are on each of its disks, at most."""
    if len(segment.places) <= 1 or segment.stripe_bytes <= 0:
        return segment.length
    turns = -(-segment.length // (segment.stripe_bytes * len(segment.places)))
    return turns * segment.stripe_bytes
