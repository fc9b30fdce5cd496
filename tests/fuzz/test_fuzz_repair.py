"""Repair of whatever stands on a disk: it ends, says what it does, and never makes anything worse."""

from __future__ import annotations

from functools import cache

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armvm.disk.patched import PatchedDisk
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.spec.verdict import Verdict
from armvm.units import MIB
from tools.disk_images import DISK_BYTES, disk_image, unified_kernel
from tools.repairs import mbr_disk, plan

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
TABLES = st.one_of(st.integers(0, 1280), st.integers(DISK_BYTES - 17 * 1024, DISK_BYTES - 1))
FAT_AREAS = st.one_of(
    *(st.integers(MIB + at, MIB + at + size) for at, size in ((0, 4096), (16896, 400), (561152, 4096)))
)


@cache
def good() -> bytes:
    files = {"EFI/debian/grubaa64.efi": unified_kernel(), "ubootefi.var": b"x" * 600}
    with disk_image(files) as disk:
        return disk.read(0, disk.size_bytes)


@cache
def mbr() -> bytes:
    return bytes(mbr_disk(logical=[(0x83, 70000 + 2048, 64)], size_bytes=40 * MIB))


def judge(content: bytes, damage: list[tuple[int, bytes]]) -> None:
    with PatchedDisk(MemoryDisk(content)) as disk:
        for offset, value in damage:
            disk.write(offset, value[: len(content) - offset])
        try:
            found, patched = plan(disk)
        except InputError as error:
            assert "would break" not in error.message
            return
        with patched:
            before = {f.requirement for f in found.before.findings if f.verdict is Verdict.PASS}
            after = {f.requirement for f in found.after.findings if f.verdict is Verdict.PASS}
            assert before <= after
            assert bool(found.edits) == bool(list(patched.changes()))


@given(st.lists(st.tuples(st.one_of(TABLES, FAT_AREAS), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
@QUICK
def test_a_damaged_image_is_never_made_worse(damage: list[tuple[int, bytes]]) -> None:
    judge(good(), damage)


@given(st.lists(st.tuples(st.integers(440, 511), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))
@QUICK
def test_a_damaged_mbr_is_never_made_worse(damage: list[tuple[int, bytes]]) -> None:
    judge(mbr(), damage)
