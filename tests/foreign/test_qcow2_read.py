"""What QEMU wrote, read by us."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.disk.storage import Extent
from armvm.errors import InputError
from tools.containers import MIB, assert_reads_as, converted, patch, qemu_img, qemu_io, scattered_raw

_VARIANTS = [
    *(f"cluster_size={1 << bits}" for bits in range(9, 22)),
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "lazy_refcounts=on",
    "refcount_bits=1",
    "compression_type=zstd",
    "compression_type=zstd,cluster_size=512",
    "compression_type=zstd,cluster_size=2M",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M",
    "extended_l2=on,compression_type=zstd",
    "preallocation=metadata",
    "preallocation=full",
]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("options", _VARIANTS)
def test_every_variant_reads_as_the_raw_disk(tmp_path: Path, options: str, compressed: bool) -> None:
    if compressed and "preallocation" in options:
        options = "compat=1.1"  # QEMU compresses into new clusters only
    content = scattered_raw(tmp_path / "raw", 5 * MIB + 512, seed=len(options))
    switches = ("-c", "-o", options) if compressed else ("-o", options)
    image = converted(tmp_path / "raw", tmp_path / "image", "qcow2", *switches)
    with open_disk(image) as disk:
        assert (disk.format, disk.size_bytes) == ("qcow2", len(content))
        assert_reads_as(disk, content)


@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10", "extended_l2=on", "cluster_size=512"])
def test_writes_zeros_and_discards(tmp_path: Path, options: str) -> None:
    """A disk that was in use: overwritten, zeroed and discarded, in whole clusters and in parts of them."""
    image, raw = tmp_path / "image", tmp_path / "raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, "8M")
    commands = [
        "write -P 17 0 3M",
        "write -z 64k 128k",
        "write -z -u 512k 64k",
        "discard 1M 1M",
        "write -P 34 1100k 3k",
    ]
    commands += ["write -z 2k 2k", "write -P 51 5000k 512", "write -P 68 8191k 1k", "discard 70k 1k"]
    qemu_io(image, *commands)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    with open_disk(image) as disk:
        assert_reads_as(disk, raw.read_bytes())


def test_snapshots_are_ignored(tmp_path: Path) -> None:
    image, raw = tmp_path / "image", tmp_path / "raw"
    qemu_img("create", "-q", "-f", "qcow2", image, "4M")
    qemu_io(image, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "before", image)
    qemu_io(image, "write -P 2 512k 1M")
    qemu_img("snapshot", "-c", "after", image)
    qemu_io(image, "write -P 3 0 4k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    with open_disk(image) as disk:
        assert_reads_as(disk, raw.read_bytes())


@pytest.mark.parametrize("options", ["compat=1.1", "extended_l2=on"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_backing_files(tmp_path: Path, format: str, options: str) -> None:
    """A base, a shorter base, and an overlay that writes, zeroes and leaves out."""
    scattered_raw(tmp_path / "base.raw", 3 * MIB)
    base = converted(tmp_path / "base.raw", tmp_path / "base", format)
    middle, top, raw = tmp_path / "middle", tmp_path / "top", tmp_path / "raw"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", format, middle)
    qemu_io(middle, "write -P 7 1M 10k", "write -z 128k 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "-o", options, top, "6M")
    qemu_io(top, "write -P 8 3M 5k", "write -P 9 64k 512", "write -z 2M 70k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", top, raw)
    with open_disk(top, allow_backing_files=True) as disk:
        assert_reads_as(disk, raw.read_bytes())
    with pytest.raises(InputError, match="difference to a backing file"):
        open_disk(top)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "data_file={}/data"), "data in another file"),
        (("-o", "data_file={}/data,data_file_raw=on"), "data in another file"),
        (
            ("--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"),
            r"encrypted \(AES\)",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", *(option.format(tmp_path) for option in options), image, "1M")
    with pytest.raises(InputError, match=message):
        open_disk(image)


def test_corrupt_mark_and_unknown_feature(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "qcow2")
    patch(image, 79, b"\1")  # dirty: reference counts only
    with open_disk(image) as disk:
        assert_reads_as(disk, (tmp_path / "raw").read_bytes())
    patch(image, 79, b"\2")
    with pytest.raises(InputError, match="marked as corrupt") as caught:
        open_disk(image)
    assert "qemu-img check -r all" in (caught.value.hint or "")
    patch(image, 78, b"\1\0")
    with pytest.raises(InputError, match="does not know: bit 8"):
        open_disk(image)


def test_image_cut_short_is_found_out(tmp_path: Path) -> None:
    content = scattered_raw(tmp_path / "raw", 8 * MIB, pieces=200)
    image = converted(tmp_path / "raw", tmp_path / "image", "qcow2")
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size // 2)
    with pytest.raises(InputError, match="stands outside the file") as caught, open_disk(image) as disk:
        disk.read(0, len(content))
    assert "copied whole" in (caught.value.hint or "")


def test_great_sparse_image_costs_as_much_as_a_small_one(tmp_path: Path) -> None:
    costs = {}
    for size in ("100M", "20G"):
        for cluster_size in ("512", "64k"):
            image = tmp_path / f"{size}-{cluster_size}"
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", image, size)
            qemu_io(image, "write -P 1 1M 64k")
            start = time.process_time()
            with open_disk(image) as disk:
                assert [extent for extent in disk.extents() if extent.data] == [Extent(MIB, 65536, data=True)]
                assert disk.read(MIB, 3) == b"\1\1\1"
                assert disk.read(disk.size_bytes - 512, 512) == bytes(512)
            costs[size, cluster_size] = time.process_time() - start
    assert costs["20G", "64k"] < costs["100M", "64k"] + 0.05
    assert costs["20G", "512"] < costs["100M", "512"] + 0.2
