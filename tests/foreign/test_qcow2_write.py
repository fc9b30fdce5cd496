"""What we wrote, judged by QEMU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armvm.disk.composed import ComposedDisk
from armvm.disk.qcow2 import open_qcow2
from armvm.disk.qcow2_header import Compression
from armvm.disk.qcow2_write import write_overlay, write_qcow2
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError, UsageError
from tools.containers import MIB, qemu_img, scattered_raw


def _written(path: Path, source: Disk, cluster_size: int = 65536) -> Path:
    with path.open("w+b") as file:
        write_qcow2(file, source, cluster_size=cluster_size)
        assert file.tell() == 0
    return path


def _assert_sound(path: Path) -> None:
    """No errors, no leaks, and a clean end: every cluster of the file is counted."""
    found = json.loads(qemu_img("check", "-f", "qcow2", "--output=json", path))
    assert not found.get("corruptions")
    assert not found.get("leaks")
    assert found["check-errors"] == 0
    assert found["image-end-offset"] == path.stat().st_size


@pytest.mark.parametrize("cluster_size", [1 << bits for bits in range(9, 22)])
def test_copy_is_sound_and_equal(tmp_path: Path, cluster_size: int) -> None:
    scattered_raw(tmp_path / "raw", 9 * MIB + 512)
    with RawDisk(tmp_path / "raw") as source:
        image = _written(tmp_path / "image", source, cluster_size)
    _assert_sound(image)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "raw", image)
    info = json.loads(qemu_img("info", "--output=json", image))
    assert (info["cluster-size"], info["virtual-size"]) == (cluster_size, 9 * MIB + 512)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 65535, 65536, 65537, 32 * 1024, 32 * 1024 + 1])
@pytest.mark.parametrize("cluster_size", [512, 65536])
@pytest.mark.parametrize("content", [b"\0", b"x"])
def test_sizes_at_the_edges(tmp_path: Path, size: int, cluster_size: int, content: bytes) -> None:
    image = _written(tmp_path / "image", MemoryDisk(content * size), cluster_size)
    _assert_sound(image)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, tmp_path / "back")
    padded = -(-size // 512) * 512
    assert (tmp_path / "back").read_bytes() == (content * size).ljust(padded, b"\0")


def test_many_refcount_blocks(tmp_path: Path) -> None:
    """With clusters of 512 bytes, a refcount block counts 256 of them and a table page names 64 blocks."""
    (tmp_path / "raw").write_bytes(bytes(range(1, 256)) * (12 * MIB // 255))
    with RawDisk(tmp_path / "raw") as source:
        image = _written(tmp_path / "image", source, 512)
    _assert_sound(image)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "raw", image)


@pytest.mark.parametrize("clusters", [*range(249, 256), *range(1, 6)])
def test_counts_that_just_fit(tmp_path: Path, clusters: int) -> None:
    """Around the number of clusters at which the counts themselves need one more cluster."""
    _assert_sound(_written(tmp_path / "image", MemoryDisk(b"x" * 512 * clusters), 512))


def test_great_disk_with_little_on_it(tmp_path: Path) -> None:
    """Data in the first and the last cluster of 2 TiB: one L2 table each."""
    size = 2 << 40
    pieces = [(0, MemoryDisk(b"first")), (size - 4, MemoryDisk(b"last")), (1 << 40, MemoryDisk(bytes(MIB)))]
    image = _written(tmp_path / "image", ComposedDisk("great", size, pieces))
    _assert_sound(image)
    assert image.stat().st_size < 3 * MIB
    mapped = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", image))
    assert [(run["start"], run["length"]) for run in mapped if run["data"]] == [(0, 65536), (size - 65536, 65536)]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", 4 * MIB)
    content = (tmp_path / "raw").read_bytes()
    (tmp_path / "second").write_bytes(b"left over" * 1_000_000)
    with RawDisk(tmp_path / "raw") as source:
        first = _written(tmp_path / "first", source).read_bytes()
    with (tmp_path / "second").open("r+b") as file:
        write_qcow2(file, MemoryDisk(content))  # without holes in the source
    assert (tmp_path / "second").read_bytes() == first


def test_progress(tmp_path: Path) -> None:
    told: list[int] = []
    with (tmp_path / "image").open("w+b") as file:
        write_qcow2(file, MemoryDisk(b"x" * 5 * MIB), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 5 * MIB


@pytest.mark.parametrize("cluster_size", [0, -512, 256, 513, 65537, 4 * MIB])
def test_bad_cluster_sizes(tmp_path: Path, cluster_size: int) -> None:
    with (tmp_path / "image").open("w+b") as file, pytest.raises(UsageError, match="not a cluster size"):
        write_qcow2(file, MemoryDisk(b""), cluster_size=cluster_size)


def test_disk_too_great_for_its_clusters(tmp_path: Path) -> None:
    with (tmp_path / "image").open("w+b") as file, pytest.raises(UsageError, match="too small for a disk"):
        write_qcow2(file, ComposedDisk("great", 1 << 40, []), cluster_size=512)


@pytest.mark.parametrize("cluster_size", [512, 65536, 2 * MIB])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_overlay(tmp_path: Path, format: str, cluster_size: int) -> None:
    scattered_raw(tmp_path / "raw", 3 * MIB)
    qemu_img("convert", "-f", "raw", "-O", format, tmp_path / "raw", tmp_path / "base: 1.img")
    overlay = tmp_path / "overlay"
    with overlay.open("w+b") as file:
        write_overlay(
            file,
            backing_path="base: 1.img",
            backing_format=format,
            size_bytes=5 * MIB,
            cluster_size=cluster_size,
        )
    _assert_sound(overlay)
    info = json.loads(qemu_img("info", "--output=json", overlay))
    assert (info["virtual-size"], info["backing-filename-format"]) == (5 * MIB, format)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "raw", overlay)


def test_overlay_takes_writes(tmp_path: Path) -> None:
    """QEMU writes into what we made: its counts and tables are good enough to grow on."""
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    scattered_raw(base, 3 * MIB)
    with overlay.open("w+b") as file:
        write_overlay(file, backing_path=str(base), backing_format="raw", size_bytes=3 * MIB)
    qemu_img("bench", "-q", "-w", "-c", "200", "-S", "8192", "-f", "qcow2", overlay)
    found = json.loads(qemu_img("check", "-f", "qcow2", "--output=json", overlay))
    assert (found["check-errors"], found.get("leaks", 0), found.get("corruptions", 0)) == (0, 0, 0)


@pytest.mark.parametrize(("length", "cluster_size"), [(500, 512), (1024, 65536)])
def test_backing_path_that_does_not_fit(tmp_path: Path, length: int, cluster_size: int) -> None:
    with (tmp_path / "image").open("w+b") as file, pytest.raises(UsageError, match="cannot name"):
        write_overlay(file, backing_path="x" * length, backing_format="raw", size_bytes=MIB, cluster_size=cluster_size)


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 * MIB])
@pytest.mark.parametrize("compression", Compression)
def test_compressed_copy_is_sound_and_equal(tmp_path: Path, compression: Compression, cluster_size: int) -> None:
    """Pieces that compress and pieces that do not, in turn: plain clusters stand between the compressed ones."""
    scattered_raw(tmp_path / "raw", 24 * MIB, pieces=120)
    image, plain = tmp_path / "image", tmp_path / "plain"
    with RawDisk(tmp_path / "raw") as source:
        with image.open("w+b") as file:
            write_qcow2(file, source, cluster_size=cluster_size, compression=compression)
        _written(plain, source, cluster_size)
    _assert_sound(image)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "raw", image)
    assert image.stat().st_size < plain.stat().st_size
    info = json.loads(qemu_img("info", "--output=json", image))
    assert info["format-specific"]["data"]["compression-type"] == compression.name.lower()
    mapped = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", image))
    assert any(run["data"] and run.get("compressed", "offset" not in run) for run in mapped)
    with open_qcow2(image) as back, RawDisk(tmp_path / "raw") as source:
        assert back.read(0, 24 * MIB) == source.read(0, 24 * MIB)


@pytest.mark.parametrize("compression", Compression)
def test_compressed_image_takes_writes(tmp_path: Path, compression: Compression) -> None:
    """QEMU frees compressed clusters as it writes over them: every count must be right to the last sharer."""
    image = tmp_path / "image"
    with image.open("w+b") as file:
        write_qcow2(file, MemoryDisk(b"armvm" * (8 * MIB // 5)), compression=compression)
    qemu_img("bench", "-q", "-w", "-c", "300", "-S", "20480", "-f", "qcow2", image)
    found = json.loads(qemu_img("check", "-f", "qcow2", "--output=json", image))
    assert (found["check-errors"], found.get("leaks", 0), found.get("corruptions", 0)) == (0, 0, 0)


@pytest.mark.parametrize("compression", Compression)
def test_compressed_bytes_are_the_same_on_any_number_of_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: Compression
) -> None:
    scattered_raw(tmp_path / "raw", 24 * MIB, pieces=120)
    images = []
    for processors in (1, 7):
        monkeypatch.setattr("armvm.disk.qcow2_compress._processors", lambda count=processors: count)
        images.append(tmp_path / str(processors))
        with RawDisk(tmp_path / "raw") as source, images[-1].open("w+b") as file:
            write_qcow2(file, source, compression=compression)
    assert images[0].read_bytes() == images[1].read_bytes()


def test_a_source_that_breaks_while_it_is_compressed(tmp_path: Path) -> None:
    class Broken(MemoryDisk):
        def _read(self, offset: int, length: int) -> bytes:
            if offset >= 6 * MIB:
                raise InputError("cannot be read", subject=self.name)
            return super()._read(offset, length)

    with (tmp_path / "image").open("w+b") as file, pytest.raises(InputError, match="cannot be read"):
        write_qcow2(file, Broken(b"x" * 12 * MIB), compression=Compression.ZLIB)
