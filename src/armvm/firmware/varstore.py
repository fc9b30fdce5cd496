"""The variable store of EDK2: the flash content that an ARM virtual machine keeps its UEFI variables in.

Three areas of equal size stand at the start of the flash; the rest of it is unused::

    0          EFI_FIRMWARE_VOLUME_HEADER, VARIABLE_STORE_HEADER, variables, then erased flash (0xFF)
    area       the working block: a journal of rewrites
    2 * area   the spare: what a rewrite puts here first, so that a power cut loses nothing

Layouts: PI 1.8 volume 3 §3.2.1 (firmware volume); edk2 MdeModulePkg/Include/Guid/VariableFormat.h (variables) and
SystemNvDataGuid.h (working block).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from armvm.errors import InputError
from armvm.firmware.first_boot import first_boot_variables
from armvm.firmware.variables import (
    AREA_BYTES,
    FLASH_SIZE_BYTES,
    Attributes,
    Variable,
    VariableStore,
    check_room,
    encode_name,
    new_instance_variables,
    with_variables,
)
from armvm.printable import printable
from armvm.spec.verdict import Evidence, Problem
from armvm.units import KIB, MIB, align_up

READ_BYTES = 4 * MIB
"""As much of the start of a flash as ``parse_store`` wants to see; what stands behind is padding."""

_MOST_PROBLEMS = 50

_NV_DATA_VOLUME = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_AUTHENTICATED_STORE = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_PLAIN_STORE = UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d")
_WORKING_BLOCK = UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95")

_VOLUME_HEADER = struct.Struct("<16s16sQ4sIHHHBB")
_BLOCK_MAP = struct.Struct("<IIII")
_STORE_HEADER = struct.Struct("<16sIBBHI")
_AUTHENTICATED_HEADER = struct.Struct("<HBBIQ16sIII16s")
_PLAIN_HEADER = struct.Struct("<HBBIII16s")
_WORKING_HEADER = struct.Struct("<16sIIQ")
_WRITE_HEADER = struct.Struct("<B3x16s4xQQ")
_WRITE_RECORD = struct.Struct("<B7xQQQq")

_VOLUME_HEADER_BYTES = _VOLUME_HEADER.size + _BLOCK_MAP.size
_MOST_VOLUME_HEADER_BYTES = 4 * KIB
_VOLUME_ATTRIBUTES = 0x00000E36
"""EFI_FVB2: read and write enabled, both ways, sticky write, memory mapped, erased bits are 1 (PI 1.8 v3 §3.2.1.1)."""
_BLOCK_BYTES = 256 * KIB
_FORMATTED = 0x5A
_HEALTHY = 0xFE
_START_ID = 0x55AA

# States of a variable: bits are only ever cleared, as flash wants it.
_ERASED = 0xFF
_HEADER_ONLY = 0x7F
_ADDED = 0x3F
_IN_DELETED_TRANSITION = 0x3E
_DELETED = (0x3D, 0x3C)


@dataclass(frozen=True, slots=True)
class _Region:
    """Where the variables stand: byte offsets of the first header and of the area's end, and their header's kind."""

    first: int
    end: int
    authenticated: bool
    volume_bytes: int


@dataclass(frozen=True, slots=True)
class _Record:
    """One variable as it stands in the flash, with its state and its place."""

    offset: int
    state: int
    variable: Variable


def parse_store(content: bytes, *, subject: str = "variable store") -> VariableStore:
    """Read the store at the start of a flash; ``content`` is the first READ_BYTES of it, or all of it.

    A flash that is blank (all zero, as Debian ships it, or all 0xFF) is an empty store. A rewrite that the firmware
    was interrupted in is read as it will be finished. What is wrong but does not hinder reading is in ``problems``.
    Raises InputError when this is no variable store or is truncated.
    """
    start = content[: 3 * AREA_BYTES]
    if len(start) == 3 * AREA_BYTES and (not start.strip(b"\0") or not start.strip(b"\xff")):
        return VariableStore(formatted=False)
    problems: list[Problem] = []
    region = _parse_headers(content, subject, problems)
    if len(content) < region.volume_bytes:
        expected = f"at least {region.volume_bytes} bytes"
        raise InputError("truncated", subject=subject, offset_bytes=len(content), expected=expected)
    three_equal = region.end * 3 == region.volume_bytes and region.end % _BLOCK_BYTES == 0
    area_bytes = region.end if three_equal else None
    if area_bytes is not None and _rewrite_is_pending(content[area_bytes : 2 * area_bytes], area_bytes):
        message = "the firmware was interrupted in a rewrite, and will finish it"
        problems.append(_problem("interrupted-rewrite", message, area_bytes, "a pending record", serious=False))
        content = content[2 * area_bytes : 3 * area_bytes]
        region = _parse_headers(content, f"{subject}, spare", problems)
        if region.end != area_bytes:
            raise InputError("the spare holds another layout than the store", subject=subject)
    variables = _live(_parse_records(content, region, problems), problems)
    return VariableStore(variables, area_bytes=area_bytes, problems=tuple(problems[:_MOST_PROBLEMS]))


def was_cut_off(before: bytes, now: bytes) -> bool:
    """Whether a machine that started with the store ``before`` and left ``now`` was cut off in erasing and writing it.

    In flash, bits are only cleared: a store grows, and what is there stays, until a block is erased. EDK2 does that in
    order (what is to be there is in the spare first, and it finishes that by itself), and also in place: then the store
    ends where the writing did. Raises InputError when ``before`` is no store.
    """
    area_bytes = parse_store(before).area_bytes or AREA_BYTES
    try:
        if not parse_store(now).formatted:
            return True
    except InputError:
        return True
    if now[area_bytes : 2 * area_bytes] != before[area_bytes : 2 * area_bytes]:
        return False
    had, has = (int.from_bytes(content[:area_bytes], "little") for content in (before, now))
    erased = has & ~had
    if not erased:
        return False
    first = ((erased & -erased).bit_length() - 1) // 8
    return not now[first:area_bytes].strip(b"\xff")


def is_store(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a variable store (a blank one cannot be told)."""
    return start[0x28:0x2C] == b"_FVH" and start[0x10:0x20] == _NV_DATA_VOLUME.bytes_le


def serialise_store(variables: Iterable[Variable], *, area_bytes: int = AREA_BYTES) -> bytes:
    """A freshly formatted store: the leading bytes of a flash of FLASH_SIZE_BYTES whose rest may be anything.

    EDK2's ArmVirtQemu builds (AAVMF, AAVMF32) take it without reformatting when ``area_bytes`` is the default; another
    size is for firmware whose stores were found to have it (``VariableStore.area_bytes``).
    Raises UsageError when the variables do not fit.
    """
    variables = tuple(variables)
    check_room(variables, area_bytes)
    headers = _volume_header(3 * area_bytes) + _STORE_HEADER.pack(
        _AUTHENTICATED_STORE.bytes_le, area_bytes - _VOLUME_HEADER_BYTES, _FORMATTED, _HEALTHY, 0, 0
    )
    records = headers + b"".join(map(_record, variables))
    working = _working_header(area_bytes)
    return records.ljust(area_bytes, b"\xff") + working.ljust(area_bytes, b"\xff") + b"\xff" * area_bytes


def new_instance_store(template: bytes | None = None) -> bytes:
    """The store that a new machine starts with: a boot menu that is not waited for, and what ``template`` holds.

    ``template`` is the start (READ_BYTES) of what the firmware's maker ships; without one, or when it is blank, the
    store is formatted as EDK2 does, with what EDK2 puts there first. Raises InputError when ``template`` is no variable
    store.
    """
    store = VariableStore() if template is None else parse_store(template, subject="variable store template")
    if template is None or not store.formatted:
        store = with_variables(store, first_boot_variables())
    store = with_variables(store, new_instance_variables())
    return serialise_store(store.variables, area_bytes=store.area_bytes or AREA_BYTES)


def _parse_headers(content: bytes, subject: str, problems: list[Problem]) -> _Region:
    """Read the two headers. A volume is no store when a field that leads to the variables makes no sense."""
    if len(content) < _VOLUME_HEADER_BYTES + _STORE_HEADER.size:
        raise InputError(f"too short for a variable store: {len(content)} bytes", subject=subject)
    _, volume, volume_bytes, signature, _, header_bytes, _, _, _, revision = _VOLUME_HEADER.unpack_from(content)
    if signature != b"_FVH":
        raise InputError(
            "no variable store", subject=subject, offset_bytes=0x28, found=_hex(signature), expected="_FVH"
        )
    if volume != _NV_DATA_VOLUME.bytes_le:
        raise InputError(
            "a firmware volume, but not of variables",
            subject=subject,
            offset_bytes=0x10,
            found=str(UUID(bytes_le=volume)),
            expected=str(_NV_DATA_VOLUME),
            hint="this may be the firmware's code; the variables are in a file of their own",
        )
    if header_bytes % 2 or not _VOLUME_HEADER_BYTES <= header_bytes <= _MOST_VOLUME_HEADER_BYTES:
        raise InputError("impossible header length", subject=subject, offset_bytes=0x30, found=str(header_bytes))
    first = align_up(header_bytes + _STORE_HEADER.size, 4)
    if len(content) < first:
        raise InputError("truncated in its headers", subject=subject, offset_bytes=len(content))
    if _sum16(content[:header_bytes]):
        problems.append(_problem("volume-checksum", "the volume header's checksum is wrong", 0x32, "another sum", "0"))
    if revision != 2:
        problems.append(_problem("volume-revision", "unknown revision of the volume header", 0x37, str(revision), "2"))
    kind, size, form, state, _, _ = _STORE_HEADER.unpack_from(content, header_bytes)
    if kind not in {_AUTHENTICATED_STORE.bytes_le, _PLAIN_STORE.bytes_le}:
        raise InputError(
            "unknown format of the variables",
            subject=subject,
            offset_bytes=header_bytes,
            found=str(UUID(bytes_le=kind)),
            expected=f"{_AUTHENTICATED_STORE} or {_PLAIN_STORE}",
        )
    end = header_bytes + size
    if not first <= end <= volume_bytes <= READ_BYTES:
        raise InputError(
            "impossible sizes",
            subject=subject,
            offset_bytes=header_bytes + 16,
            found=f"{size:#x} bytes for variables in a volume of {volume_bytes:#x}",
        )
    if (form, state) != (_FORMATTED, _HEALTHY):
        found, expected = f"{form:#x}, {state:#x}", f"{_FORMATTED:#x}, {_HEALTHY:#x}"
        problems.append(_problem("store-state", "the store is not healthy", header_bytes + 20, found, expected))
    return _Region(first, end, kind == _AUTHENTICATED_STORE.bytes_le, volume_bytes)


def _parse_records(content: bytes, region: _Region, problems: list[Problem]) -> list[_Record]:
    """Walk the records as edk2's VirtNorFlashDxe does (ValidateFvHeader), up to the first that is none."""
    header_bytes = (_AUTHENTICATED_HEADER if region.authenticated else _PLAIN_HEADER).size
    records: list[_Record] = []
    offset = region.first
    while offset + header_bytes <= region.end:
        start_id, state = struct.unpack_from("<HB", content, offset)
        if start_id != _START_ID or state == _ERASED:
            break
        record, size, flaw = _parse_record(content, offset, region)
        if flaw:
            problems.append(_problem("variable-header", flaw, offset, "a broken variable", "a whole one"))
        if record is not None:
            if state not in {_HEADER_ONLY, _ADDED, _IN_DELETED_TRANSITION, *_DELETED}:
                problems.append(_problem("variable-state", "a variable is in no known state", offset, f"{state:#x}"))
            records.append(record)
        if size == 0:
            return records
        offset = align_up(offset + size, 4)
    rest = content[offset : region.end].strip(b"\xff")
    if rest:
        interrupted = rest.startswith(struct.pack("<H", _START_ID))
        message = "a write was interrupted" if interrupted else "there is data behind the last variable, which is lost"
        found = f"{len(rest)} bytes"
        problems.append(_problem("trailing-data", message, offset, found, "erased flash", serious=not interrupted))
    return records


def _parse_record(content: bytes, offset: int, region: _Region) -> tuple[_Record | None, int, str | None]:
    """One record, its size without padding, and its flaw. A flawed one is None; size 0 leads nowhere."""
    count, timestamp, key_index = 0, bytes(16), 0
    if region.authenticated:
        header = _AUTHENTICATED_HEADER
        fields = header.unpack_from(content, offset)
        _, state, _, attributes, count, timestamp, key_index, name_bytes, data_bytes, vendor = fields
    else:
        header = _PLAIN_HEADER
        _, state, _, attributes, name_bytes, data_bytes, vendor = header.unpack_from(content, offset)
    name_at = offset + header.size
    size = header.size + name_bytes + data_bytes
    if offset + size > region.end:
        return None, 0, f"a variable of {size} bytes reaches past the end of the store"
    raw_name = content[name_at : name_at + name_bytes]
    if name_bytes % 2 or name_bytes < 4 or raw_name[-2:] != b"\0\0":
        return None, size, None if state == _HEADER_ONLY else "a variable's name has no end"
    variable = Variable(
        name=raw_name[:-2].decode("utf-16-le", "surrogatepass"),
        vendor=UUID(bytes_le=vendor),
        data=content[name_at + name_bytes : offset + size],
        attributes=Attributes(attributes),
        timestamp=timestamp,
        monotonic_count=count,
        public_key_index=key_index,
    )
    return _Record(offset, state, variable), size, None


def _live(records: list[_Record], problems: list[Problem]) -> tuple[Variable, ...]:
    """The variables that edk2's variable driver would find (VariableParsing.c, FindVariableEx).

    One whose successor was being written counts only as long as that successor is not complete.
    """
    found: dict[tuple[str, UUID], _Record] = {}
    for record in records:
        if record.state not in {_ADDED, _IN_DELETED_TRANSITION}:
            continue
        key = record.variable.key
        before = found.get(key)
        if before is not None and before.state == _ADDED:
            if record.state == _ADDED:
                name = printable(record.variable.name)
                problems.append(
                    _problem("duplicate", "a variable is there twice; the first counts", record.offset, name)
                )
            continue
        found[key] = record
    return tuple(record.variable for record in sorted(found.values(), key=lambda record: record.offset))


def _rewrite_is_pending(working: bytes, area_bytes: int) -> bool:
    """Whether the journal says that the spare holds the area of the variables, complete but not yet copied back.

    That is what edk2's FtwMisc.c (InitFtwProtocol) finishes at the next start.
    """
    if working[: _WORKING_HEADER.size] != _working_header(area_bytes):
        return False
    offset = _WORKING_HEADER.size
    while offset + _WRITE_HEADER.size <= area_bytes:
        state, _, writes, private_bytes = _WRITE_HEADER.unpack_from(working, offset)
        record_bytes = _WRITE_RECORD.size + private_bytes
        records_at = offset + _WRITE_HEADER.size
        offset = records_at + writes * record_bytes
        if offset > area_bytes:
            return False
        if state & 0x04:  # not complete: this is the last write
            return _spare_is_ahead(working, records_at, writes, record_bytes, area_bytes)
    return False


def _spare_is_ahead(working: bytes, records_at: int, writes: int, record_bytes: int, area_bytes: int) -> bool:
    for at in range(records_at, records_at + writes * record_bytes, record_bytes):
        state, _, _, _, to_spare = _WRITE_RECORD.unpack_from(working, at)
        if state & 0x04:  # the destination is not complete: the spare must be, and this be no boot block
            return (state & 0x03, to_spare) == (0x01, -2 * area_bytes)
    return False


def _volume_header(volume_bytes: int) -> bytes:
    def pack(checksum: int) -> bytes:
        return _VOLUME_HEADER.pack(
            bytes(16),
            _NV_DATA_VOLUME.bytes_le,
            volume_bytes,
            b"_FVH",
            _VOLUME_ATTRIBUTES,
            _VOLUME_HEADER_BYTES,
            checksum,
            0,
            0,
            2,
        ) + _BLOCK_MAP.pack(FLASH_SIZE_BYTES // _BLOCK_BYTES, _BLOCK_BYTES, 0, 0)

    return pack(-_sum16(pack(0)) & 0xFFFF)


def _working_header(area_bytes: int) -> bytes:
    """The journal's header. Its CRC is taken with the CRC itself and the state still erased (edk2 FtwMisc.c)."""

    def pack(crc: int, state: int) -> bytes:
        return _WORKING_HEADER.pack(_WORKING_BLOCK.bytes_le, crc, state, area_bytes - _WORKING_HEADER.size)

    return pack(zlib.crc32(pack(0xFFFFFFFF, 0xFFFFFFFF)), 0xFFFFFFFE)


def _record(variable: Variable) -> bytes:
    name = encode_name(variable.name)
    header = _AUTHENTICATED_HEADER.pack(
        _START_ID,
        _ADDED,
        0,
        variable.attributes,
        variable.monotonic_count,
        variable.timestamp,
        variable.public_key_index,
        len(name),
        len(variable.data),
        variable.vendor.bytes_le,
    )
    return (header + name + variable.data).ljust(variable.stored_bytes, b"\xff")


def _sum16(content: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f"<{len(content) // 2}H", content)
    return sum(words) & 0xFFFF


def _hex(raw: bytes) -> str:
    return raw.hex(" ")


def _problem(
    code: str, message: str, offset: int, found: str, expected: str | None = None, *, serious: bool = True
) -> Problem:
    return Problem(code, message, Evidence(f"offset {offset:#x}", found, expected), serious=serious)
