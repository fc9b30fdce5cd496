from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
import zstandard

from armvm.disk.qcow2 import open_qcow2
from armvm.disk.storage import Extent
from armvm.errors import InputError
from tools.containers import CLUSTER, assert_sound_extents, handmade_qcow2, patch, qcow2_header

_COMPRESSED = 1 << 62
_L2 = 2 * CLUSTER  # where handmade_qcow2 puts the L2 table
_SUBCLUSTERS = 16


def _zlib(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-12)
    return packer.compress(content) + packer.flush()


def _descriptor(offset: int, length: int) -> int:
    """A compressed cluster's L2 entry for clusters of 64 KiB."""
    sectors = (offset + length - 1) // 512 - offset // 512
    return _COMPRESSED | sectors << 54 | offset


def test_every_kind_of_entry(tmp_path: Path) -> None:
    entries = [4 * CLUSTER | 1 << 63, 0, 3 * CLUSTER, 3 * CLUSTER | 1, 1, 4 * CLUSTER]
    path = handmade_qcow2(tmp_path / "x", qcow2_header(size_bytes=7 * CLUSTER), [_L2 | 1 << 63], entries)
    empty, three, four = (bytes([number]) * CLUSTER for number in (0, 3, 4))
    with open_qcow2(path) as disk:
        assert disk.read(0, 7 * CLUSTER) == four + empty + three + empty + empty + four + empty
        assert disk.read(3 * CLUSTER - 2, 4) == b"\3\3\0\0"
        assert [(extent.length // CLUSTER, extent.data) for extent in disk.extents()] == [
            (1, True),
            (1, False),
            (1, True),
            (2, False),
            (1, True),
            (1, False),
        ]


def test_subclusters(tmp_path: Path) -> None:
    entries = [3 * CLUSTER, 0x0000_00F0_8000_0001, 0, 1 << 32]
    header = qcow2_header(size_bytes=2 * CLUSTER, incompatible=_SUBCLUSTERS)
    path = handmade_qcow2(tmp_path / "x", header, [_L2], entries)
    size = CLUSTER // 32
    content = (b"\3" * size).ljust(31 * size, b"\0") + b"\3" * size
    with open_qcow2(path) as disk:
        assert disk.read(0, 2 * CLUSTER) == content + bytes(CLUSTER)
        assert disk.read(size - 1, 2) == b"\3\0"
        assert_sound_extents(list(disk.extents()), content + bytes(CLUSTER))


@pytest.mark.parametrize("bitmap", [0x0000_0001_0000_0001, 0x8000_0000_8000_0000])
def test_contradictory_subclusters(tmp_path: Path, bitmap: int) -> None:
    header = qcow2_header(size_bytes=CLUSTER, incompatible=_SUBCLUSTERS)
    path = handmade_qcow2(tmp_path / "x", header, [_L2], [3 * CLUSTER, bitmap])
    with open_qcow2(path) as disk, pytest.raises(InputError, match="contradictory subclusters"):
        disk.read(0, 1)


def test_allocated_subcluster_of_no_cluster(tmp_path: Path) -> None:
    header = qcow2_header(size_bytes=CLUSTER, incompatible=_SUBCLUSTERS)
    path = handmade_qcow2(tmp_path / "x", header, [_L2], [0, 1])
    with open_qcow2(path) as disk, pytest.raises(InputError, match="contradictory subclusters"):
        disk.read(0, 1)


def test_zero_cluster_in_version_2(tmp_path: Path) -> None:
    path = handmade_qcow2(tmp_path / "x", qcow2_header(version=2), [_L2], [1])
    with open_qcow2(path) as disk, pytest.raises(InputError, match="zero cluster in an image of version 2"):
        disk.read(0, 1)


@pytest.mark.parametrize("entry", [3 * CLUSTER + 512, 5 * CLUSTER, 0x00FF_FFFF_FFFF_0000])
def test_clusters_outside_the_file(tmp_path: Path, entry: int) -> None:
    path = handmade_qcow2(tmp_path / "x", qcow2_header(), [_L2], [entry])
    with open_qcow2(path) as disk:
        with pytest.raises(InputError, match="a cluster stands outside"):
            disk.read(0, 1)
        with pytest.raises(InputError, match="a cluster stands outside"):
            list(disk.extents())
        assert disk.read(CLUSTER, 1) == b"\0"


@pytest.mark.parametrize("entry", [_L2 + 512, 5 * CLUSTER, 0x00FF_FFFF_FFFF_0000])
def test_l2_tables_outside_the_file(tmp_path: Path, entry: int) -> None:
    path = handmade_qcow2(tmp_path / "x", qcow2_header(), [entry], [])
    with open_qcow2(path) as disk, pytest.raises(InputError, match="an L2 table stands outside"):
        disk.read(0, 1)


def test_last_cluster_of_the_file_may_be_short(tmp_path: Path) -> None:
    path = handmade_qcow2(tmp_path / "x", qcow2_header(size_bytes=CLUSTER), [_L2], [3 * CLUSTER], clusters=4)
    with path.open("r+b") as file:
        file.truncate(3 * CLUSTER + 1000)
    with open_qcow2(path) as disk:
        assert disk.read(0, CLUSTER) == (b"\3" * 1000).ljust(CLUSTER, b"\0")
        assert disk.read(2000, 10) == bytes(10)


def test_l1_tables_that_share_an_l2_table_come_to_an_end(tmp_path: Path) -> None:
    header = qcow2_header(size_bytes=8192 * 8192 * CLUSTER, l1=(8192, CLUSTER))
    path = handmade_qcow2(tmp_path / "x", header, [_L2] * 8192, [3 * CLUSTER] * 8192)
    with open_qcow2(path) as disk, pytest.raises(InputError, match="more L2 tables than room"):
        list(disk.extents())


@pytest.mark.parametrize("zstd", [False, True])
def test_compressed_clusters(tmp_path: Path, zstd: bool) -> None:
    content = b"compress me " * 5462
    content = content[:CLUSTER]
    packed = zstandard.compress(content) if zstd else _zlib(content)
    offset = 3 * CLUSTER + 77
    header = qcow2_header(incompatible=8, header_length=112, after=b"\1") if zstd else qcow2_header()
    path = handmade_qcow2(tmp_path / "x", header, [_L2], [0, _descriptor(offset, len(packed))])
    patch(path, offset, packed)
    with open_qcow2(path) as disk:
        assert disk.read(CLUSTER, CLUSTER) == content
        assert disk.read(CLUSTER + 100, 50) == content[100:150]
        assert list(disk.extents())[1] == Extent(CLUSTER, CLUSTER, data=True)


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"\xff" * 600, 3 * CLUSTER),  # no stream
        (b"", 3 * CLUSTER),  # zeros
        (b"short", 3 * CLUSTER),  # a stream that ends too early
        (b"", 1 << 50),  # outside the file
    ],
)
def test_hostile_compressed_clusters(tmp_path: Path, zstd: bool, content: bytes, offset: int) -> None:
    packed = content
    if content == b"short":
        packed = zstandard.compress(content) if zstd else _zlib(content)
    header = qcow2_header(incompatible=8, header_length=112, after=b"\1") if zstd else qcow2_header()
    path = handmade_qcow2(tmp_path / "x", header, [_L2], [_descriptor(offset, 600)])
    patch(path, 3 * CLUSTER, packed.ljust(1024, b"\0"))
    with open_qcow2(path) as disk, pytest.raises(InputError, match="compressed cluster"):
        disk.read(0, 1)


@pytest.mark.parametrize("zstd", [False, True])
def test_decompression_is_bounded(tmp_path: Path, zstd: bool) -> None:
    bomb = zstandard.compress(bytes(512 << 20)) if zstd else _zlib(bytes(50 << 20))[:65000]
    header = qcow2_header(incompatible=8, header_length=112, after=b"\1") if zstd else qcow2_header()
    path = handmade_qcow2(tmp_path / "x", header, [_L2], [_descriptor(3 * CLUSTER, len(bomb))])
    patch(path, 3 * CLUSTER, bomb)
    tracemalloc.start()
    try:
        with open_qcow2(path) as disk:
            assert disk.read(0, CLUSTER) == bytes(CLUSTER)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_great_l1_table_is_read_in_pages(tmp_path: Path) -> None:
    entries = (32 << 20) // 8
    path = tmp_path / "x"
    path.write_bytes(qcow2_header(cluster_bits=21, l1=(entries, 2 << 20), size_bytes=entries << 39))
    with path.open("r+b") as file:
        file.truncate((2 << 20) + 8 * entries)
    tracemalloc.start()
    try:
        with open_qcow2(path) as disk:
            assert list(disk.extents()) == [Extent(0, entries << 39, data=False)]
            assert disk.read(disk.size_bytes - 5, 5) == bytes(5)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_closed_disk_cannot_be_read(tmp_path: Path) -> None:
    path = handmade_qcow2(tmp_path / "x", qcow2_header(), [_L2], [3 * CLUSTER])
    disk = open_qcow2(path)
    disk.close()
    disk.close()
    with pytest.raises(ValueError, match="closed"):
        disk.read(0, 1)


def test_entries_beyond_the_disk_are_not_looked_at(tmp_path: Path) -> None:
    """Behind the guest's disk stands the state of snapshots: not ours to judge."""
    entries = [3 * CLUSTER, 4 * CLUSTER + 512]
    header = qcow2_header(size_bytes=CLUSTER, l1=(2, CLUSTER))
    path = handmade_qcow2(tmp_path / "x", header, [_L2, 77 * CLUSTER], entries)
    with open_qcow2(path) as disk:
        assert disk.read(0, CLUSTER) == b"\3" * CLUSTER
        assert list(disk.extents()) == [Extent(0, CLUSTER, data=True)]


def test_unpacks_words_in_network_order(tmp_path: Path) -> None:
    path = handmade_qcow2(tmp_path / "x", qcow2_header(), [_L2], [3 * CLUSTER])
    assert struct.unpack_from(">Q", path.read_bytes(), CLUSTER) == (_L2,)
    with open_qcow2(path) as disk:
        assert disk.read(0, 1) == b"\3"
