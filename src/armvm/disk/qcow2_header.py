"""The header of a qcow2 image: bytes to a frozen value and back (docs/interop/qcow2.txt, "Header")."""

from __future__ import annotations

import enum
import os
import struct
from dataclasses import dataclass

from armvm.errors import InputError
from armvm.printable import printable

MAGIC = b"QFI\xfb"
MAX_CLUSTER_SIZE = 2 << 20
"""The greatest cluster, in bytes: QEMU's limit, for the format itself has none."""
MAX_L1_BYTES = 32 << 20
"""The greatest L1 table, in bytes: QEMU's limit."""
MAX_BACKING_NAME = 1023

_BASE = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_FEATURE_NAMES = 0x6803F857
_REFCOUNT_ORDER = 4  # 16-bit reference counts: the only width of version 2, the usual one of version 3
_FEATURE_NAME_SIZE = 48

_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION_TYPE, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION_TYPE | _EXTENDED_L2


class Compression(enum.Enum):
    """How compressed clusters are compressed ("Additional fields")."""

    ZLIB = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """What of a header matters for reading the guest's bytes, and for writing a new image."""

    version: int
    cluster_bits: int
    size_bytes: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    extended_l2: bool = False
    compression: Compression = Compression.ZLIB
    backing_file: str | None = None
    backing_format: str | None = None

    @property
    def cluster_size(self) -> int:
        """The unit of allocation, in bytes."""
        return 1 << self.cluster_bits

    @property
    def l2_entries(self) -> int:
        """How many clusters one L2 table maps; an extended entry takes twice the room."""
        return self.cluster_size // (16 if self.extended_l2 else 8)

    @property
    def l1_entries_needed(self) -> int:
        """How many L1 entries the disk's size asks for; what stands behind them is the state of snapshots."""
        return -(-self.size_bytes // (self.cluster_size * self.l2_entries))

    def serialise(self) -> bytes:
        """The header of a new version 3 image with its extensions, no longer than a cluster.

        Raises ValueError when the backing file's name leaves no room for that.
        """
        extensions = b""
        if self.backing_format is not None:
            text = self.backing_format.encode()
            extensions += _EXTENSION.pack(_BACKING_FORMAT, len(text)) + text.ljust(-(-len(text) // 8) * 8, b"\0")
        extensions += _EXTENSION.pack(0, 0)
        # The compression type is an additional field, and there only where it is not the type of old.
        kind = b"" if self.compression is Compression.ZLIB else bytes([self.compression.value]).ljust(8, b"\0")
        features = _COMPRESSION_TYPE if kind else 0
        header_length = _BASE.size + _VERSION_3.size + len(kind)
        backing = os.fsencode(self.backing_file) if self.backing_file is not None else b""
        backing_offset = header_length + len(extensions) if backing else 0
        if len(backing) > MAX_BACKING_NAME or backing_offset + len(backing) > self.cluster_size:
            raise ValueError("the backing file's name does not fit into the header")
        base = _BASE.pack(
            MAGIC,
            3,
            backing_offset,
            len(backing),
            self.cluster_bits,
            self.size_bytes,
            0,
            self.l1_entries,
            self.l1_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            0,
            0,
        )
        wide = _VERSION_3.pack(features, 0, 0, _REFCOUNT_ORDER, header_length) + kind
        return base + wide + extensions + backing


def parse_header(content: bytes, *, name: str, file_size: int) -> Qcow2Header:
    """Read the header from ``content``, the first bytes of a file of ``file_size`` (a cluster of them or all).

    Raises InputError when it is no header, contradicts itself or the file, or asks for what is not supported.
    """
    if len(content) < _BASE.size or content[:4] != MAGIC:
        raise InputError("is no qcow2 image", subject=name, found=f"{len(content)} bytes, {content[:4].hex()}")
    (
        _,
        version,
        backing_offset,
        backing_size,
        cluster_bits,
        size_bytes,
        encryption,
        l1_entries,
        l1_offset,
        refcount_table_offset,
        refcount_table_clusters,
        _,
        _,
    ) = _BASE.unpack_from(content)
    if version not in (2, 3):
        raise InputError("unknown qcow version", subject=name, offset_bytes=4, found=str(version), expected="2 or 3")
    if not 9 <= cluster_bits <= MAX_CLUSTER_SIZE.bit_length() - 1:
        raise InputError(
            "bad cluster size", subject=name, offset_bytes=20, found=f"2^{cluster_bits}", expected="≤ 2^21"
        )
    if encryption:
        how = {1: "AES", 2: "LUKS"}.get(encryption, f"method {encryption}")
        raise InputError(
            f"is encrypted ({how})", subject=name, hint="make a plain copy first, with qemu-img convert and the key"
        )
    content = content[: 1 << cluster_bits]
    header_length, features, compression = _BASE.size, 0, Compression.ZLIB
    if version == 3:
        header_length, features, compression = _parse_version_3(content, name)
    extensions_end = backing_offset if 0 < backing_offset < len(content) else len(content)
    extensions = _parse_extensions(content[:extensions_end], header_length, name)
    _refuse_features(features, extensions.get(_FEATURE_NAMES, b""), name)
    backing_format = extensions.get(_BACKING_FORMAT)
    header = Qcow2Header(
        version=version,
        cluster_bits=cluster_bits,
        # QEMU shows a guest whole sectors of 512 bytes.
        size_bytes=size_bytes // 512 * 512,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        refcount_table_offset=refcount_table_offset,
        refcount_table_clusters=refcount_table_clusters,
        extended_l2=bool(features & _EXTENDED_L2),
        compression=compression,
        backing_file=_parse_backing_file(content, backing_offset, backing_size, name),
        backing_format=None if backing_format is None else backing_format.decode(errors="backslashreplace"),
    )
    _check_l1(header, name, file_size)
    return header


def _parse_version_3(content: bytes, name: str) -> tuple[int, int, Compression]:
    """Header length, incompatible features and compression type."""
    if len(content) < _BASE.size + _VERSION_3.size:
        raise InputError("ends inside its header", subject=name, found=f"{len(content)} bytes")
    features, _, _, _, length = _VERSION_3.unpack_from(content, _BASE.size)
    if length % 8 or not _BASE.size + _VERSION_3.size <= length <= len(content):
        raise InputError("bad header length", subject=name, offset_bytes=100, found=str(length))
    kind = content[104] if length > 104 else 0
    if bool(kind) != bool(features & _COMPRESSION_TYPE):
        raise InputError("compression type and its feature bit disagree", subject=name, offset_bytes=104)
    try:
        return length, features, Compression(kind)
    except ValueError:
        raise InputError("unknown compression type", subject=name, offset_bytes=104, found=str(kind)) from None


def _parse_extensions(content: bytes, offset: int, name: str) -> dict[int, bytes]:
    """The header extensions that matter here, by type ("Header extensions")."""
    found: dict[int, bytes] = {}
    while offset + _EXTENSION.size <= len(content):
        kind, length = _EXTENSION.unpack_from(content, offset)
        if kind == 0:
            break
        start = offset + _EXTENSION.size
        if length > len(content) - start:
            raise InputError(f"header extension {kind:#x} reaches past its area", subject=name, offset_bytes=offset)
        if kind in (_BACKING_FORMAT, _FEATURE_NAMES):
            found[kind] = content[start : start + length]
        offset = start + -(-length // 8) * 8
    return found


def _refuse_features(features: int, names: bytes, name: str) -> None:
    unknown = [bit for bit in range(64) if (features & ~_KNOWN) >> bit & 1]
    if unknown:
        table = {
            names[start + 1]: names[start + 2 : start + _FEATURE_NAME_SIZE].rstrip(b"\0").decode(errors="replace")
            for start in range(0, len(names) - _FEATURE_NAME_SIZE + 1, _FEATURE_NAME_SIZE)
            if names[start] == 0
        }
        wanted = ", ".join(printable(table.get(bit) or f"bit {bit}") for bit in unknown)
        raise InputError(f"needs features that armvm does not know: {wanted}", subject=name, offset_bytes=72)
    if features & _CORRUPT:
        raise InputError("is marked as corrupt", subject=name, hint="repair a copy of it: qemu-img check -r all IMAGE")
    if features & _EXTERNAL_DATA:
        hint = "put both into one file: qemu-img convert -O qcow2 IMAGE ONE.qcow2"
        raise InputError("keeps its data in another file", subject=name, hint=hint)


def _parse_backing_file(content: bytes, offset: int, length: int, name: str) -> str | None:
    if not offset:
        return None
    raw = content[offset : offset + length]
    if not 0 < length <= MAX_BACKING_NAME or len(raw) < length or b"\0" in raw:
        raise InputError(
            "bad name of a backing file", subject=name, offset_bytes=8, found=f"{length} bytes at {offset}"
        )
    return os.fsdecode(raw)


def _check_l1(header: Qcow2Header, name: str, file_size: int) -> None:
    if header.extended_l2 and header.cluster_bits < 14:  # 32 subclusters of 512 bytes
        raise InputError("clusters too small for subclusters", subject=name, offset_bytes=20)
    if header.l1_entries > MAX_L1_BYTES // 8 or header.l1_entries < header.l1_entries_needed:
        raise InputError(
            f"the L1 table does not fit a disk of {header.size_bytes} bytes",
            subject=name,
            offset_bytes=36,
            found=f"{header.l1_entries} entries",
            expected=f"{header.l1_entries_needed} to {MAX_L1_BYTES // 8}",
        )
    if header.l1_offset % header.cluster_size or header.l1_offset + 8 * header.l1_entries_needed > file_size:
        raise InputError(
            "the L1 table stands outside the file or on no cluster boundary",
            subject=name,
            offset_bytes=40,
            found=f"{header.l1_entries_needed} entries at {header.l1_offset:#x}, {file_size} bytes of file",
            hint="was the image copied whole?",
        )
