"""Keeps what was fetched from afar in aligned blocks, and fetches ahead where somebody reads on: for remote disks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from armvm.units import KIB, MIB

BLOCK_BYTES = 64 * KIB
"""The least that is fetched: what a round trip costs makes less not worth while."""
MOST_FETCHED_BYTES = 4 * MIB
"""The most that is fetched at once, reading ahead included."""
KEPT_BYTES = 32 * MIB
_STREAMS_KEPT = 8
"""How many places are remembered at which somebody may read on (both tables of a FAT are compared in step)."""


class ReadAhead:
    """A cache of blocks of a file of ``size_bytes`` before ``fetch(offset, length)``, which gives exactly that much.

    A read that goes on where the last one of its stream ended fetches ahead: one block first, then twice as much each
    time, up to MOST_FETCHED_BYTES. A read elsewhere fetches the blocks that it needs and no more.
    """

    def __init__(self, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size_bytes = size_bytes
        self._fetch = fetch
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._ahead: OrderedDict[int, int] = OrderedDict()  # the block where a stream ended -> blocks it fetched ahead
        self._block_count = -(-size_bytes // BLOCK_BYTES)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``, which all exist."""
        pieces: list[bytes] = []
        position, end = offset, offset + length
        while position < end:
            number, within = divmod(position, BLOCK_BYTES)
            block = self._block(number, (end - 1) // BLOCK_BYTES)
            piece = block[within : within + end - position]
            pieces.append(piece)
            position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def put(self, offset: int, content: bytes) -> None:
        """Keep what is known already, from ``offset``, a multiple of BLOCK_BYTES; blocks that are not whole are not."""
        for start in range(0, len(content), BLOCK_BYTES):
            block = content[start : start + BLOCK_BYTES]
            if len(block) == BLOCK_BYTES or offset + start + len(block) == self._size_bytes:
                self._kept[(offset + start) // BLOCK_BYTES] = block
        while len(self._kept) * BLOCK_BYTES > KEPT_BYTES:
            self._kept.popitem(last=False)

    def _block(self, number: int, last: int) -> bytes:
        """A block; when it has to be fetched, those that follow up to ``last`` come with it."""
        block = self._kept.get(number)
        if block is None:
            start, stop = number * BLOCK_BYTES, self._stop(number, last) * BLOCK_BYTES
            self.put(start, self._fetch(start, min(stop, self._size_bytes) - start))
            block = self._kept[number]
        self._kept.move_to_end(number)
        return block

    def _stop(self, number: int, last: int) -> int:
        """The block before which a fetch that starts with ``number`` and needs up to ``last`` ends."""
        most = MOST_FETCHED_BYTES // BLOCK_BYTES
        before = self._ahead.pop(number, None)
        ahead = 0 if before is None else min(max(2 * before, 1), most)
        wanted = min(max(last + 1, number + ahead), number + most, self._block_count)
        stop = number + 1
        while stop < wanted and stop not in self._kept:
            stop += 1
        self._ahead[stop] = ahead
        if len(self._ahead) > _STREAMS_KEPT:
            self._ahead.popitem(last=False)
        return stop
