"""The hash by which Secure Boot knows an EFI program (UEFI 2.10 §32.5.1; Microsoft, "Windows Authenticode PE")."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.image.pe import CERTIFICATE_DIRECTORY, DIRECTORY, parse_pe
from armvm.units import MIB

_CHECKSUM_AT = 64
"""Where the optional header has the image's checksum, four bytes which are left out."""


def authenticode_sha256(source: Disk) -> bytes:
    """The Authenticode SHA-256 hash of a PE image: all but its checksum and its signatures.

    As EDK2 takes it (SecurityPkg, DxeImageVerificationLib, HashPeImage). Raises InputError when it is no PE image, or
    its headers do not fit to it.
    """
    digest = hashlib.sha256()
    for offset, length in _hashed(source):
        for at in range(offset, offset + length, MIB):
            digest.update(source.read(at, min(MIB, offset + length - at)))
    return digest.digest()


def _hashed(source: Disk) -> Iterator[tuple[int, int]]:
    """The runs of bytes that count, in their order: offset and length."""
    image = parse_pe(source)
    checksum = image.optional_header_offset + _CHECKSUM_AT
    runs = [(0, checksum)]
    start, certificate_bytes = checksum + 4, 0
    if image.directory_count > CERTIFICATE_DIRECTORY:
        entry = image.directories_offset + CERTIFICATE_DIRECTORY * DIRECTORY.size
        runs.append((start, entry - start))
        start = entry + DIRECTORY.size
        certificate_bytes = image.certificates.size_bytes if image.certificates else 0
    runs.append((start, image.size_of_headers - start))
    sections = sorted((section for section in image.sections if section.raw_size), key=lambda one: one.raw_offset)
    runs += [(section.raw_offset, section.raw_size) for section in sections]
    end = image.size_of_headers + sum(section.raw_size for section in sections)
    runs.append((end, source.size_bytes - certificate_bytes - end))
    if any(length < 0 or offset + length > source.size_bytes for offset, length in runs):
        raise InputError("the headers do not fit to the file, which has no Authenticode hash", subject=source.name)
    yield from runs
