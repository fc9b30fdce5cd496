from __future__ import annotations

from typing import Any

import pytest

from armvm.disk.storage import MemoryDisk
from armvm.execution import ExecutionState
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import parse_pe
from armvm.spec.verdict import Problem
from tools.pe_images import DATA, DEFAULT_SECTIONS, TEXT, Section, linux_kernel, make_pe, relocation_block

CODE, WRITABLE, RELOC = DEFAULT_SECTIONS


def problems(content: bytes, state: ExecutionState = ExecutionState.AARCH64) -> tuple[Problem, ...]:
    disk = MemoryDisk(content)
    return check_efi_application(parse_pe(disk), disk, state)


def only(content: bytes, state: ExecutionState = ExecutionState.AARCH64) -> Problem:
    found = problems(content, state)
    assert len(found) == 1, found
    return found[0]


def reloc(content: bytes) -> Section:
    return Section(".reloc", 0x3000, content, 0x42000040)


@pytest.mark.parametrize("state", ExecutionState)
def test_a_good_program_has_no_problems(state: ExecutionState) -> None:
    assert problems(make_pe(state), state) == ()


@pytest.mark.parametrize("state", ExecutionState)
def test_a_linux_kernel_has_no_problems(state: ExecutionState) -> None:
    assert problems(linux_kernel(state), state) == ()


@pytest.mark.parametrize(
    ("machine", "state", "said"),
    [
        (0x01C4, ExecutionState.AARCH32, "machine type is ARMNT"),
        (0x8664, ExecutionState.AARCH64, "x86-64"),
        (0x014C, ExecutionState.AARCH32, "x86 (32-bit)"),
        (0xAA64, ExecutionState.AARCH32, "for AArch64, not for AArch32"),
        (0x01C2, ExecutionState.AARCH64, "for AArch32, not for AArch64"),
        (0x5064, ExecutionState.AARCH64, "RISC-V 64"),
        (0x7777, ExecutionState.AARCH64, "0x7777 (unknown)"),
    ],
)
def test_a_wrong_machine(machine: int, state: ExecutionState, said: str) -> None:
    problem = only(make_pe(state, machine=machine), state)
    assert problem.code == "machine"
    assert problem.serious
    assert said in problem.message
    assert problem.evidence.found.startswith(f"{machine:#06x}")


@pytest.mark.parametrize(
    ("subsystem", "name"),
    [(11, "EFI boot service driver"), (12, "EFI runtime driver"), (3, "Windows console"), (77, "unknown")],
)
def test_a_wrong_subsystem(subsystem: int, name: str) -> None:
    problem = only(make_pe(subsystem=subsystem))
    assert (problem.code, problem.serious) == ("subsystem", True)
    assert problem.evidence.found == f"{subsystem} ({name})"


@pytest.mark.parametrize("state", ExecutionState)
def test_the_wrong_width(state: ExecutionState) -> None:
    plus = state is not ExecutionState.AARCH64
    problem = only(make_pe(state, plus=plus, optional_size=(112 if plus else 96) + 128), state)
    assert (problem.code, problem.serious) == ("format", True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"directory_count": 15}, "directories"),
        ({"directory_count": 0xFFFFFFFF}, "directories"),
        ({"directory_count": 17, "optional_size": 112 + 17 * 8}, "directories"),
        ({"size_of_headers": 0x100}, "headers-size"),
        ({"section_alignment": 0}, "alignment"),
        ({"section_alignment": 0x1001}, "alignment"),
        ({"file_alignment": 0}, "alignment"),
        ({"directories": {4: (0x100000, 8)}}, "certificates"),
        ({"directories": {4: (0xFFFFFFFF, 0xFFFFFFFF)}}, "certificates"),
        ({"size_of_image": 0x3008}, "section-memory"),
        ({"entry": 0}, "entry-point"),
        ({"entry": 0x1100}, "entry-point"),
        ({"entry": 0xFFFFFFFF}, "entry-point"),
        ({"characteristics": 0x23}, "relocations-stripped"),
        ({"characteristics": 0x23, "image_base": 0x140000000}, "relocations-stripped"),
        ({"directories": {5: (0x3000, 0x400)}}, "relocations"),
        ({"directories": {5: (0x9000, 12)}}, "relocations"),
        ({"directories": {5: (0xFFFFFFF0, 0x20)}}, "relocations"),
        ({"sections": (*DEFAULT_SECTIONS, Section(".x", 0xFFFFF000, b"x")), "size_of_image": 0x5000}, "section-memory"),
        ({"sections": (*DEFAULT_SECTIONS, Section(".x", 0x4000, b"x", raw_offset=0xFFFFFFFF))}, "section-file"),
        ({"sections": (*DEFAULT_SECTIONS, Section(".x", 0x4000, b"x", raw_size=0xFFFFFFFF))}, "section-file"),
        ({"sections": (*DEFAULT_SECTIONS, Section(".x", 0x4000, b"x", raw_offset=0x100))}, "section-headers"),
        ({"sections": (*DEFAULT_SECTIONS, Section(".x", 0x2000, b"x"))}, "section-overlap"),
        ({"sections": (CODE, Section(".data", 0x2000, b"", DATA, virtual_size=0x1001), RELOC)}, "section-overlap"),
        ({"sections": (CODE, WRITABLE, reloc(relocation_block(0x2000, size=0)))}, "relocations"),
        ({"sections": (CODE, WRITABLE, reloc(relocation_block(0x2000, (10, 0), size=0x80)))}, "relocations"),
        ({"sections": (CODE, WRITABLE, reloc(relocation_block(0x9000, (10, 0), (0, 0))))}, "relocations"),
        ({"sections": (CODE, WRITABLE, reloc(relocation_block(0x2000, (7, 0), (0, 0))))}, "relocation-type"),
        ({"sections": (CODE, WRITABLE, reloc(relocation_block(0x2000, (10, 0), (15, 0))))}, "relocation-type"),
    ],
)
def test_each_serious_problem_alone(changes: dict[str, Any], code: str) -> None:
    found = problems(make_pe(**changes))
    assert [problem.code for problem in found if problem.serious] == [code], found


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"characteristics": 0x20}, "not-executable"),
        ({"section_alignment": 0x200}, "page-alignment"),
        ({"section_alignment": 0x4000}, "section-alignment"),
        ({"entry": 0x2000}, "entry-not-executable"),
        ({"sections": (CODE, Section(".data", 0x2000, b"data", 0xE0000040), RELOC)}, "writable-executable"),
        ({"image_base": 0x140000000, "sections": (CODE, WRITABLE)}, "no-relocations"),
        ({"directories": {5: (0x3000, 2 << 20)}}, "relocations-unread"),
    ],
)
def test_what_deserves_a_mention_and_breaks_nothing(changes: dict[str, Any], code: str) -> None:
    found = problems(make_pe(**changes))
    assert {problem.code for problem in found} == {code}
    assert not any(problem.serious for problem in found)


def test_the_relocations_of_movw_and_movt_keep_uboot_away() -> None:
    sections = (CODE, WRITABLE, reloc(relocation_block(0x2000, (7, 0), (3, 8))))
    problem = only(make_pe(ExecutionState.AARCH32, sections=sections), ExecutionState.AARCH32)
    assert (problem.code, problem.serious) == ("relocation-thumb-mov32", False)


def test_a_cut_off_file_says_which_section() -> None:
    problem = only(make_pe()[:-1])
    assert (problem.code, problem.evidence.where) == ("section-file", "section .reloc")


def test_no_sections_at_all() -> None:
    assert "no-sections" in [problem.code for problem in problems(make_pe(sections=(), size_of_image=0x2000))]


def test_an_overlap_is_found_across_a_section_between() -> None:
    sections = (
        Section(".text", 0x1000, b"c" * 16, TEXT, virtual_size=0x5000),
        Section(".a", 0x2000, b"a"),
        Section(".b", 0x4000, b"b"),
    )
    overlaps = [problem.evidence.where for problem in problems(make_pe(sections=sections))]
    assert overlaps == ["sections .text and .a", "sections .text and .b"]


def test_hostile_names_are_not_shown_raw() -> None:
    sections = (*DEFAULT_SECTIONS, Section("\x1b[2J", 0x4000, b"x", raw_size=0xFFFFFFFF))
    assert only(make_pe(sections=sections)).evidence.where == "section \\x1b[2J"
