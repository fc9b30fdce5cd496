"""No bytes whatever make the PE reader, its judge or the UKI builder fail in any way but by InputError."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from armvm.disk.storage import MemoryDisk
from armvm.errors import ArmvmError, InputError
from armvm.execution import ExecutionState
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import parse_pe
from armvm.image.uki import build_uki
from tools.pe_images import linux_kernel, make_pe

SEEDS = {state: make_pe(state) for state in ExecutionState}
KERNELS = {state: linux_kernel(state, 0x400) for state in ExecutionState}
HEADERS = 0x300
INTERESTING = st.sampled_from((0, 1, 7, 0x7FFF, 0xFFFF, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF))
OFFSETS = st.one_of(st.integers(0, HEADERS - 4), st.integers(0, HEADERS // 4 - 1).map(lambda index: index * 4))
CHANGES = st.lists(st.tuples(OFFSETS, st.one_of(INTERESTING, st.integers(0, 0xFFFFFFFF))), min_size=1, max_size=6)


def changed(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    result = bytearray(content)
    for offset, value in changes:
        struct.pack_into("<I", result, offset, value)
    return bytes(result)


def judge(content: bytes, state: ExecutionState) -> None:
    disk = MemoryDisk(content)
    with suppress(InputError):
        for problem in check_efi_application(parse_pe(disk), disk, state):
            assert problem.message
            assert problem.evidence.found.isprintable()


@given(st.binary(max_size=2048), st.sampled_from(ExecutionState))
@example(b"MZ".ljust(64, b"\xff"), ExecutionState.AARCH64)
def test_any_bytes(content: bytes, state: ExecutionState) -> None:
    judge(content, state)
    judge(b"MZ" + content, state)


@pytest.mark.parametrize("state", ExecutionState)
@settings(max_examples=400)
@given(CHANGES)
def test_headers_that_lie(state: ExecutionState, changes: list[tuple[int, int]]) -> None:
    judge(changed(SEEDS[state], changes), state)


@pytest.mark.parametrize("state", ExecutionState)
@settings(max_examples=200)
@given(CHANGES, st.booleans())
def test_lying_parts_of_a_unified_kernel_image(
    state: ExecutionState, changes: list[tuple[int, int]], lying_stub: bool
) -> None:
    stub, kernel = SEEDS[state], KERNELS[state]
    if lying_stub:
        stub = changed(stub, changes)
    else:
        kernel = changed(kernel, changes)
    with suppress(ArmvmError):
        uki = build_uki(stub, linux=MemoryDisk(kernel), initrd=[MemoryDisk(b"initrd")], cmdline="quiet")
        serious = [p for p in check_efi_application(parse_pe(uki), uki, state) if p.serious]
        assert serious == [], "what is built from parts that pass must pass"


def test_a_hostile_relocation_table_is_judged_at_once() -> None:
    blocks = struct.pack("<II", 0x1000, 8) * (1 << 17)
    content = bytearray(make_pe(directories={5: (0x3000, len(blocks))}, size_of_image=0x3000 + len(blocks)))
    table = 0x80 + 24 + 240 + 2 * 40
    struct.pack_into("<IIII", content, table + 8, len(blocks), 0x3000, len(blocks), len(content))
    judge(bytes(content) + blocks, ExecutionState.AARCH64)
