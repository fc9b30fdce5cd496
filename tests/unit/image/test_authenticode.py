from __future__ import annotations

import hashlib
import struct

import pytest

from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.image.authenticode import authenticode_sha256
from armvm.image.pe import parse_pe
from tools.pe_images import make_pe


def digest(raw: bytes | bytearray) -> bytes:
    return authenticode_sha256(MemoryDisk(bytes(raw)))


@pytest.mark.parametrize("state", ExecutionState)
def test_checksum_and_signature_do_not_count_and_all_else_does(state: ExecutionState) -> None:
    raw = bytearray(make_pe(state))
    image = parse_pe(MemoryDisk(bytes(raw)))
    checksum, entry = image.optional_header_offset + 64, image.directories_offset + 4 * 8
    signed = bytearray(raw + b"signature" * 8)
    struct.pack_into("<I", signed, checksum, 0x12345678)
    struct.pack_into("<II", signed, entry, len(raw), 72)
    assert digest(signed) == digest(raw)
    version = image.optional_header_offset + 44
    for at in (2, version, checksum + 4, entry - 1, entry + 8, image.sections[0].raw_offset, len(raw) - 1):
        other = bytearray(raw)
        other[at] ^= 0x80
        assert digest(other) != digest(raw), hex(at)


def test_bytes_behind_the_last_section_count() -> None:
    raw = make_pe()
    assert digest(raw + b"more") != digest(raw)


def test_without_a_certificate_directory_only_the_checksum_is_left_out() -> None:
    raw = make_pe(directory_count=4)
    checksum = parse_pe(MemoryDisk(raw)).optional_header_offset + 64
    assert digest(raw) == hashlib.sha256(raw[:checksum] + raw[checksum + 4 :]).digest()


@pytest.mark.parametrize(
    "raw",
    [
        make_pe(size_of_headers=0x10),
        make_pe(size_of_headers=0xFFFFFF),
        make_pe(directories={4: (0, 0xFFFFFF)}),
        make_pe()[:0x300],
    ],
)
def test_headers_that_do_not_fit(raw: bytes) -> None:
    with pytest.raises(InputError):
        digest(raw)
