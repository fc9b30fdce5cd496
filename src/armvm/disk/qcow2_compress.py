"""Compresses the clusters of a new qcow2 image on every processor there is, and keeps their order.

zlib and zstd let go of Python's lock. The same input gives the same bytes, however many processors there are.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from armvm.disk.qcow2_header import Compression

_MOST_WORKERS = 16
_ZLIB_WINDOW_BITS = -12
"""Raw deflate with a window of 4 KiB: what QEMU writes and sets its decoder up for (block/qcow2-threads.c)."""
_ZLIB_MEMORY = 9
_ZSTD_LEVEL = 3

PackedRun = tuple[int, list[tuple[bytes, bytes | None]]]
"""A run's offset and its clusters: plain and compressed; None where compressing saves nothing."""


def packed_runs(runs: Iterator[tuple[int, bytes]], cluster_size: int, compression: Compression) -> Iterator[PackedRun]:
    """The clusters of ``runs`` (offset and bytes, from ``armvm.disk.write.data_runs``), compressed, in their order."""
    workers = min(_processors(), _MOST_WORKERS)
    make = _deflater if compression is Compression.ZLIB else _zstandard

    def pack(content: bytes) -> list[tuple[bytes, bytes | None]]:
        compress = make()
        clusters = []
        for start in range(0, len(content), cluster_size):
            plain = content[start : start + cluster_size].ljust(cluster_size, b"\0")
            packed = compress(plain)
            clusters.append((plain, packed if len(packed) < cluster_size else None))
        return clusters

    pending: deque[tuple[int, Future[list[tuple[bytes, bytes | None]]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="qcow2") as pool:
        try:
            for offset, content in runs:
                pending.append((offset, pool.submit(pack, content)))
                if len(pending) > 2 * workers:  # what is read ahead stays small
                    first, done = pending.popleft()
                    yield first, done.result()
            while pending:
                first, done = pending.popleft()
                yield first, done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _deflater() -> Callable[[bytes], bytes]:
    def compress(content: bytes) -> bytes:
        stream = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _ZLIB_WINDOW_BITS, _ZLIB_MEMORY)
        return stream.compress(content) + stream.flush()

    return compress


def _zstandard() -> Callable[[bytes], bytes]:
    import zstandard

    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress  # one for each thread: it is not made to be shared
