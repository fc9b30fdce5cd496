from __future__ import annotations

import struct

import pytest

from armvm.disk.qcow2_header import Compression, Qcow2Header, parse_header
from armvm.errors import InputError
from tools.containers import CLUSTER, MIB, qcow2_extension, qcow2_header

_BACKING_FORMAT, _FEATURE_NAMES = 0xE2792ACA, 0x6803F857
_END = bytes(8)


def _parse(header: bytes, *, file_size: int = 4 * CLUSTER) -> Qcow2Header:
    return parse_header(header.ljust(file_size, b"\0")[:file_size], name="x.qcow2", file_size=file_size)


def test_plain_header() -> None:
    header = _parse(qcow2_header(size_bytes=3 * MIB + 700))
    assert (header.version, header.cluster_size, header.l2_entries, header.l1_entries_needed) == (3, CLUSTER, 8192, 1)
    assert header.size_bytes == 3 * MIB + 512  # whole sectors only, as QEMU has it
    assert (header.compression, header.extended_l2, header.backing_file) == (Compression.ZLIB, False, None)


def test_version_2_ends_after_72_bytes() -> None:
    assert _parse(qcow2_header(version=2)).version == 2


def test_dirty_image_can_be_read() -> None:
    assert _parse(qcow2_header(incompatible=1)).size_bytes == MIB


def test_zstd_and_subclusters() -> None:
    header = _parse(qcow2_header(incompatible=0b11000, header_length=112, after=b"\1" + bytes(7)))
    assert (header.compression, header.extended_l2, header.l2_entries) == (Compression.ZSTD, True, 4096)


def test_backing_file_and_format() -> None:
    extension = qcow2_extension(0x12345678, b"unknown") + qcow2_extension(_BACKING_FORMAT, b"raw") + _END
    offset = 104 + len(extension)
    header = _parse(qcow2_header(backing=(offset, 8), after=extension + b"base.img"))
    assert (header.backing_file, header.backing_format) == ("base.img", "raw")


def test_what_is_serialised_is_parsed_again() -> None:
    header = Qcow2Header(3, 12, 5 * MIB, 3, 4096, 8192, 1, backing_file="./a b", backing_format="qcow2")
    assert _parse(header.serialise()) == header
    assert len(header.serialise()) <= 4096


def test_long_backing_name_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Qcow2Header(3, 9, MIB, 1, 512, backing_file="x" * 500, backing_format="raw").serialise()


_FEATURES = b"\0\x07" + b"time travel\x1b[31m".ljust(46, b"\0") + b"\1\x08" + b"not this".ljust(46, b"\0")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "is no qcow2 image"),
        (b"QFI\xfb", "is no qcow2 image"),
        (b"nothing" * 100, "is no qcow2 image"),
        (qcow2_header(version=1), "unknown qcow version"),
        (qcow2_header(version=4), "unknown qcow version"),
        (qcow2_header(cluster_bits=8), "bad cluster size"),
        (qcow2_header(cluster_bits=22), "bad cluster size"),
        (qcow2_header(cluster_bits=0xFFFFFFFF), "bad cluster size"),
        (qcow2_header(encryption=1), r"is encrypted \(AES\)"),
        (qcow2_header(encryption=2), r"is encrypted \(LUKS\)"),
        (qcow2_header(encryption=77), r"is encrypted \(method 77\)"),
        (qcow2_header(incompatible=2), "marked as corrupt"),
        (qcow2_header(incompatible=4), "data in another file"),
        (qcow2_header(incompatible=1 << 63), "armvm does not know: bit 63"),
        (qcow2_header(incompatible=3 << 7, after=qcow2_extension(_FEATURE_NAMES, _FEATURES)), "time travel.*, bit 8"),
        (qcow2_header(incompatible=8), "compression type and its feature bit disagree"),
        (qcow2_header(header_length=112, after=b"\1"), "compression type and its feature bit disagree"),
        (qcow2_header(incompatible=8, header_length=112, after=b"\2"), "unknown compression type"),
        (qcow2_header(incompatible=16, cluster_bits=13, l1=(1, 8192)), "too small for subclusters"),
        (qcow2_header(header_length=103), "bad header length"),
        (qcow2_header(header_length=96), "bad header length"),
        (qcow2_header(header_length=1 << 31), "bad header length"),
        (qcow2_header(after=struct.pack(">II", 0x1234, CLUSTER)), "reaches past its area"),
        (qcow2_header(backing=(112, 0), after=_END), "bad name of a backing file"),
        (qcow2_header(backing=(112, 1024), after=_END), "bad name of a backing file"),
        (qcow2_header(backing=(CLUSTER - 3, 4)), "bad name of a backing file"),
        (qcow2_header(backing=(1 << 63, 4)), "bad name of a backing file"),
        (qcow2_header(backing=(112, 4), after=_END + b"a\0bc"), "bad name of a backing file"),
        (qcow2_header(size_bytes=1 << 63), "does not fit a disk"),
        (qcow2_header(size_bytes=(1 << 64) - 1), "does not fit a disk"),
        (qcow2_header(size_bytes=(1 << 29) + 512), "does not fit a disk"),
        (qcow2_header(l1=(0, CLUSTER)), "does not fit a disk"),
        (qcow2_header(l1=((32 << 20) // 8 + 1, CLUSTER)), "does not fit a disk"),
        (qcow2_header(l1=(1, CLUSTER + 8)), "the L1 table stands outside"),
        (qcow2_header(l1=(1, 4 * CLUSTER)), "the L1 table stands outside"),
        (qcow2_header(l1=(1, (1 << 64) - CLUSTER)), "the L1 table stands outside"),
        (qcow2_header(l1=(1 << 22, CLUSTER), size_bytes=1 << 51), "the L1 table stands outside"),
    ],
)
def test_hostile_headers(header: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _parse(header, file_size=4 * CLUSTER if header.startswith(b"QFI\xfb\0") else len(header))
    assert "\x1b" not in str(caught.value)


def test_headers_cut_short() -> None:
    whole = qcow2_header()
    for length in range(len(whole)):
        with pytest.raises(InputError):
            _parse(whole[:length], file_size=length)


def test_many_empty_extensions_are_no_hang() -> None:
    after = struct.pack(">II", 0x1234, 0) * ((2 << 20) // 8 - 13)
    header = qcow2_header(cluster_bits=21, l1=(1, 2 << 20), after=after)
    assert _parse(header, file_size=4 << 20).cluster_bits == 21
