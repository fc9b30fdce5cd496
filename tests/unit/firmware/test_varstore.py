from __future__ import annotations

import time
import tracemalloc
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armvm.errors import InputError, UsageError
from armvm.firmware.variables import (
    AREAS_HEADER_BYTES,
    DEFAULT_ATTRIBUTES,
    Attributes,
    Variable,
    VariableStore,
    with_variable,
    without_variable,
)
from armvm.firmware.varstore import is_store, new_instance_store, parse_store, serialise_store, was_cut_off
from armvm.guid import EFI_GLOBAL_VARIABLE
from tools import varstores
from tools.varstores import AREA, OWN_VENDOR, Raw, flash, journal, variable_area

AAVMF_HEADERS = bytes.fromhex(
    "00000000000000000000000000000000 8d2bf1ff96768b4ca9852747075b4f50 00000c00000000005f465648360e0000"
    "4800f8f8000000020001000000000400 0000000000000000782cf3aa7b949a43 a1802e144ec37792b8ff03005afe0000 00000000"
)
"""What AAVMF and AAVMF32 (edk2 2022.11) write when they format a blank flash."""
AAVMF_JOURNAL = bytes.fromhex("2b29589e687c7d49a0ce6500fd9f1b955be7c686feffffffe0ff030000000000")


def names(content: bytes) -> list[str]:
    return [variable.name for variable in parse_store(content).variables]


def codes(content: bytes) -> list[str]:
    return [problem.code for problem in parse_store(content).problems]


class TestBlank:
    @pytest.mark.parametrize("content", [bytes(3 * AREA), b"\xff" * (3 * AREA), b"\xff" * (3 * AREA) + bytes(AREA)])
    def test_blank_flash_is_an_empty_store(self, content: bytes) -> None:
        store = parse_store(content)
        assert store == VariableStore(formatted=False)
        assert store.free_bytes == AREA - AREAS_HEADER_BYTES

    @pytest.mark.parametrize("content", [b"", bytes(1), bytes(0x64), bytes(3 * AREA - 1), bytes(3 * AREA - 1) + b"x"])
    def test_other_emptiness_is_no_store(self, content: bytes) -> None:
        with pytest.raises(InputError):
            parse_store(content)


class TestWriting:
    def test_headers_are_those_that_edk2_writes(self) -> None:
        content = serialise_store([])
        assert content[: len(AAVMF_HEADERS)] == AAVMF_HEADERS
        assert content[AREA : AREA + 32] == AAVMF_JOURNAL
        assert len(content) == 3 * AREA
        assert set(content[0x64:AREA] + content[AREA + 32 :]) == {0xFF}

    def test_a_record_is_what_the_layout_says(self) -> None:
        content = serialise_store([Variable("Own", OWN_VENDOR, b"12345")])
        assert content == flash(Raw("Own", b"12345"))

    def test_fields_of_authentication_are_kept(self) -> None:
        variable = Variable("db", OWN_VENDOR, b"x", Attributes(0x27), bytes(range(16)), 1 << 40, 77)
        assert parse_store(serialise_store([variable])).variables == (variable,)

    def test_unknown_attribute_bits_are_kept(self) -> None:
        variable = Variable("odd", OWN_VENDOR, b"x", Attributes(0x80000F07))
        assert parse_store(serialise_store([variable])).variables == (variable,)

    def test_new_instances_do_not_wait_for_the_boot_menu(self) -> None:
        timeout = parse_store(new_instance_store()).variables[-1]
        assert (timeout.name, timeout.vendor, timeout.data) == ("Timeout", EFI_GLOBAL_VARIABLE, b"\0\0")
        assert timeout.attributes == DEFAULT_ATTRIBUTES

    def test_new_instances_keep_what_the_template_holds(self) -> None:
        template = flash(Raw("PK", b"key"), Raw("Timeout", b"\x05\0", vendor=EFI_GLOBAL_VARIABLE))
        store = parse_store(new_instance_store(template))
        assert [(one.name, one.data) for one in store.variables] == [("PK", b"key"), ("Timeout", b"\0\0")]
        assert new_instance_store(bytes(3 * AREA)) == new_instance_store()

    def test_a_template_that_is_none(self) -> None:
        with pytest.raises(InputError, match="template"):
            new_instance_store(b"#!/bin/sh\n" * 100_000)

    @given(
        st.lists(
            st.builds(
                Variable,
                st.text(min_size=1, max_size=40).filter(lambda name: "\0" not in name),
                st.sampled_from([OWN_VENDOR, EFI_GLOBAL_VARIABLE]),
                st.binary(min_size=1, max_size=300),
                st.integers(0, 0xFFFFFFFF).map(Attributes),
                st.binary(min_size=16, max_size=16),
                st.integers(0, 2**64 - 1),
                st.integers(0, 2**32 - 1),
            ),
            max_size=20,
            unique_by=lambda variable: variable.key,
        )
    )
    def test_what_is_written_is_read_back(self, variables: list[Variable]) -> None:
        store = parse_store(serialise_store(variables))
        assert store == VariableStore(tuple(variables))
        assert store.used_bytes + store.free_bytes == store.capacity_bytes

    def test_lone_surrogates_survive(self) -> None:
        variable = Variable("a\ud800b", OWN_VENDOR, b"x")
        assert parse_store(serialise_store([variable])).variables == (variable,)


class TestEditing:
    def test_replaces_in_place_and_appends(self) -> None:
        store = VariableStore((Variable("a", OWN_VENDOR, b"1"), Variable("b", OWN_VENDOR, b"2")))
        store = with_variable(store, Variable("a", OWN_VENDOR, b"3"))
        store = with_variable(store, Variable("a", EFI_GLOBAL_VARIABLE, b"4"))
        assert [(v.name, v.data) for v in store.variables] == [("a", b"3"), ("b", b"2"), ("a", b"4")]

    def test_deletes_only_its_own(self) -> None:
        store = VariableStore((Variable("a", OWN_VENDOR, b"1"), Variable("a", EFI_GLOBAL_VARIABLE, b"2")))
        assert without_variable(store, "a").variables == (Variable("a", OWN_VENDOR, b"1"),)
        with pytest.raises(UsageError, match="no variable b"):
            without_variable(store, "b")

    def test_room_is_used_to_the_last_byte_and_no_further(self) -> None:
        most = AREA - AREAS_HEADER_BYTES - 60 - 4
        store = with_variable(VariableStore(), Variable("a", OWN_VENDOR, bytes(most)))
        assert store.free_bytes == 0
        assert parse_store(serialise_store(store.variables)).variables == store.variables
        for variable in (Variable("a", OWN_VENDOR, bytes(most + 1)), Variable("b", OWN_VENDOR, b"x")):
            with pytest.raises(UsageError, match=f"holds {AREA - AREAS_HEADER_BYTES}"):
                with_variable(store, variable)
        with pytest.raises(UsageError):
            serialise_store([Variable("a", OWN_VENDOR, bytes(AREA))])

    @pytest.mark.parametrize(
        "variable",
        [
            Variable("", OWN_VENDOR, b"x"),
            Variable("a\0b", OWN_VENDOR, b"x"),
            Variable("a", OWN_VENDOR, b""),
            Variable("a", OWN_VENDOR, b"x", Attributes.BOOT_SERVICE),
            Variable("a", OWN_VENDOR, b"x", Attributes.NON_VOLATILE | Attributes.RUNTIME),
            Variable("a", OWN_VENDOR, b"x", DEFAULT_ATTRIBUTES | Attributes.APPEND_WRITE),
        ],
    )
    def test_refuses_what_uefi_refuses(self, variable: Variable) -> None:
        with pytest.raises(UsageError):
            with_variable(VariableStore(), variable)

    @pytest.mark.parametrize(
        "lies", [{"volume_bytes": 0x84000}, {"volume_bytes": 0x30000, "store_bytes": 0x10000 - 0x48}]
    )
    def test_a_store_of_another_machine_cannot_be_written(self, lies: dict[str, Any]) -> None:
        content = flash(Raw("a"), **lies)
        store = parse_store(content)
        assert (names(content), store.area_bytes, store.capacity_bytes) == (["a"], None, 0)
        with pytest.raises(UsageError, match="layout"):
            with_variable(store, Variable("b", OWN_VENDOR, b"x"))
        with pytest.raises(UsageError, match="layout"):
            without_variable(store, "a", OWN_VENDOR)


class TestStates:
    """Which records count (edk2 VariableParsing.c)."""

    @pytest.mark.parametrize(
        ("states", "expected"),
        [
            ([varstores.ADDED], 0),
            ([varstores.DELETED], None),
            ([varstores.DELETED_AFTER_TRANSITION], None),
            ([varstores.HEADER_ONLY], None),
            ([varstores.IN_TRANSITION], 0),
            ([varstores.IN_TRANSITION, varstores.ADDED], 1),
            ([varstores.IN_TRANSITION, varstores.HEADER_ONLY], 0),
            ([varstores.ADDED, varstores.IN_TRANSITION], 0),
            ([varstores.DELETED_AFTER_TRANSITION, varstores.ADDED], 1),
            ([varstores.IN_TRANSITION, varstores.IN_TRANSITION], 1),
        ],
    )
    def test_the_record_that_edk2_would_find(self, states: list[int], expected: int | None) -> None:
        content = flash(*(Raw("a", bytes([index]), state) for index, state in enumerate(states)), Raw("z"))
        store = parse_store(content)
        found = store.find("a", OWN_VENDOR)
        assert (None if found is None else found.data[0]) == expected
        assert store.find("z", OWN_VENDOR) is not None
        assert not store.problems

    def test_twice_the_same_is_a_problem_and_the_first_counts(self) -> None:
        content = flash(Raw("a", b"1"), Raw("a", b"2"))
        assert [one.data for one in parse_store(content).variables] == [b"1"]
        assert codes(content) == ["duplicate"]

    def test_the_same_name_of_two_vendors_is_two_variables(self) -> None:
        content = flash(Raw("a"), Raw("a", vendor=EFI_GLOBAL_VARIABLE))
        assert (names(content), codes(content)) == (["a", "a"], [])

    def test_unknown_state(self) -> None:
        content = flash(Raw("a", state=0x15), Raw("b"))
        assert (names(content), codes(content)) == (["b"], ["variable-state"])

    def test_a_write_that_was_cut_off_in_its_header(self) -> None:
        content = flash(Raw("a"), Raw("b", state=varstores.ERASED))
        (problem,) = parse_store(content).problems
        assert (names(content), problem.code, problem.serious) == (["a"], "trailing-data", False)

    def test_plain_variables(self) -> None:
        content = variable_area(Raw("a", b"1"), Raw("b", b"22"), store=varstores.PLAIN) + bytes(2 * AREA)
        assert [(one.name, one.data) for one in parse_store(content).variables] == [("a", b"1"), ("b", b"22")]


class TestInterruptedRewrite:
    OLD = (Raw("a", b"old"),)
    NEW = variable_area(Raw("a", b"new"), Raw("b"))

    def data(self, working: bytes, spare: bytes = NEW) -> tuple[bytes, list[str]]:
        store = parse_store(flash(*self.OLD, working=working, spare=spare))
        return store.variables[0].data, [problem.code for problem in store.problems]

    def test_pending_rewrite_is_read_from_the_spare(self) -> None:
        assert self.data(journal((0b100, 0b101))) == (b"new", ["interrupted-rewrite"])
        assert self.data(journal((0, 0b001), (0b100, 0b101))) == (b"new", ["interrupted-rewrite"])

    @pytest.mark.parametrize(
        "working",
        [
            journal(),
            journal((0, 0b001)),  # complete
            journal((0b100, 0b001)),  # copied back, only the flag of the whole write is missing
            journal((0b100, 0b111)),  # the spare is not complete
            journal((0b111, 0b111)),
            journal((0b100, 0b100)),  # said to be a boot block
            journal((0b100, 0b101), relative_offset=-AREA),  # the rewrite of the working block itself
            bytes(AREA),
            b"\xff" * AREA,
        ],
    )
    def test_everything_else_is_read_as_it_stands(self, working: bytes) -> None:
        assert self.data(working) == (b"old", [])

    def test_a_journal_that_lies_about_its_sizes(self) -> None:
        for writes, private in [(2**64 - 1, 0), (1, 2**64 - 1), (0, 2**64 - 1), (2**63, 2**63)]:
            working = bytearray(journal((0b100, 0b101)))
            working[32 + 24 : 32 + 40] = writes.to_bytes(8, "little") + private.to_bytes(8, "little")
            assert self.data(bytes(working)) == (b"old", [])

    def test_a_spare_that_is_no_store(self) -> None:
        with pytest.raises(InputError, match="spare"):
            self.data(journal((0b100, 0b101)), b"\xff" * AREA)


class TestBroken:
    @pytest.mark.parametrize(
        "content",
        [
            flash(Raw("a"), signature=b"_FVX"),
            flash(volume=UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")),
            flash(store=UUID(int=5)),
            flash(header_bytes=0x47),
            flash(header_bytes=0x46),
            flash(header_bytes=0xFFFE),
            flash(store_bytes=0),
            flash(store_bytes=0xFFFFFFFF),
            flash(store_bytes=3 * AREA),
            flash(volume_bytes=2**64 - 1),
            flash(volume_bytes=0),
            flash(volume_bytes=3 * AREA + 1),
            flash(Raw("a"))[:-1],
            flash(Raw("a"))[:0x64],
            flash(Raw("a"))[:0x63],
            flash(Raw("a"))[:0x20],
        ],
    )
    def test_no_store(self, content: bytes) -> None:
        with pytest.raises(InputError) as caught:
            parse_store(content, subject="vars.fd")
        assert "vars.fd" in caught.value.message

    @pytest.mark.parametrize(
        ("lies", "code"),
        [
            ({"checksum_error": 1}, "volume-checksum"),
            ({"revision": 1}, "volume-revision"),
            ({"form": 0xFF}, "store-state"),
            ({"health": 0xFF}, "store-state"),
        ],
    )
    def test_headers_that_edk2_would_not_accept(self, lies: dict[str, Any], code: str) -> None:
        store = parse_store(flash(Raw("a"), **lies))
        assert [one.name for one in store.variables] == ["a"]
        assert [(problem.code, problem.serious) for problem in store.problems] == [(code, True)]

    @pytest.mark.parametrize(
        ("record", "found"),
        [
            (Raw("b", raw_name=b"b\0x"), ["a", "z"]),
            (Raw("b", raw_name=b"b\0c\0"), ["a", "z"]),
            (Raw("b", raw_name=b"\0\0"), ["a", "z"]),
            (Raw("b", raw_name=b""), ["a", "z"]),
            (Raw("b", name_bytes=0xFFFFFFFF), ["a"]),
            (Raw("b", data_bytes=0xFFFFFFFF), ["a"]),
            (Raw("b", data_bytes=AREA), ["a"]),
            (Raw("b", name_bytes=0x80000000, data_bytes=0x80000000), ["a"]),
        ],
    )
    def test_records_that_edk2_would_not_accept(self, record: Raw, found: list[str]) -> None:
        content = flash(Raw("a"), record, Raw("z"))
        assert (names(content), codes(content)[0]) == (found, "variable-header")

    def test_lost_variables_are_noticed(self) -> None:
        content = flash(Raw("a"), b"\0\0\0\0", Raw("b"))
        (problem,) = parse_store(content).problems
        assert (names(content), problem.code, problem.serious) == (["a"], "trailing-data", True)

    def test_a_record_that_ends_with_the_area(self) -> None:
        room = AREA - AREAS_HEADER_BYTES
        content = flash(Raw("a", bytes(room - 64)))
        assert (names(content), codes(content)) == (["a"], [])
        content = flash(Raw("a", bytes(room - 64 - 56)), b"\xaa\x55" + b"\xff" * 54)
        assert names(content) == ["a"]

    def test_the_worst_store_is_read_in_little_time_and_memory(self) -> None:
        area = 0x140000
        least = Raw("a", b"", varstores.ADDED).stored(plain=True)
        header = variable_area(store=varstores.PLAIN, volume_bytes=3 * area, store_bytes=area - 0x48)[:0x64]
        content = (header + least * ((area - 0x64) // len(least))).ljust(3 * area, b"\xff")
        began = time.process_time()
        store = parse_store(content)
        seconds = time.process_time() - began
        tracemalloc.start()  # apart from the clock: it makes everything about five times slower
        parse_store(content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(store.variables) == 1
        assert len(store.problems) <= 50
        assert seconds < 4  # about one on an idle machine
        assert peak < 150 * 2**20


def test_a_store_is_told_by_its_first_bytes() -> None:
    assert is_store(serialise_store([])[:64])
    assert not is_store(flash(volume=UUID(int=1))[:64])
    assert not is_store(b"")


KEPT = flash(Raw("One", b"1" * 300), Raw("Two", b"2" * 300), Raw("Three", b"3" * 300))
"""What a machine starts with: three records of 0x184 bytes behind headers of 0x64."""


def left(first_area: bytes, working: bytes | None = None) -> bytes:
    """What it leaves."""
    return first_area.ljust(AREA, b"\xff") + (working or KEPT[AREA : 2 * AREA]) + KEPT[2 * AREA :]


def test_a_store_that_only_grew_was_not_cut_off() -> None:
    assert not was_cut_off(KEPT, KEPT)
    assert not was_cut_off(KEPT, KEPT.ljust(1 << 20, b"\0")), "what stands behind is none of it"
    replaced = (Raw("One", b"1" * 300, varstores.DELETED), Raw("Two", b"2" * 300), Raw("Three", b"3" * 300))
    assert not was_cut_off(KEPT, flash(*replaced, Raw("One", b"another"), Raw("Four", b"4" * 3000)))


@pytest.mark.parametrize("written", [0, 1, 0x28, 0x30, 0x47, 0x48, 0x63, 0x64, 0x80, 0x1E7, 0x1E8, 0x200, 0x300, 0x480])
def test_a_store_that_ends_where_the_writing_did_was_cut_off(written: int) -> None:
    assert was_cut_off(KEPT, left(KEPT[:written]))
    grown = flash(Raw("One", b"1" * 300, varstores.DELETED), Raw("Two", b"2" * 300), Raw("Three", b"3" * 300))
    assert was_cut_off(KEPT, left(grown[:written]))


def test_all_that_was_kept_is_there_again() -> None:
    used = len(KEPT[:AREA].rstrip(b"\xff"))
    assert was_cut_off(KEPT, left(KEPT[: used - 1]))
    assert not was_cut_off(KEPT, left(KEPT[:used]))


def test_a_store_that_was_swept_in_order_was_not_cut_off() -> None:
    """A record is gone and the rest moved up: EDK2 has done that through the spare, and said so in its journal."""
    swept = variable_area(Raw("Two", b"2" * 300))
    assert not was_cut_off(KEPT, left(swept, journal((7, 7))))
    assert not was_cut_off(KEPT, left(swept)), "others stand where the writing would have stopped"
    assert not was_cut_off(KEPT, left(variable_area(Raw("One", b"1" * 300)), journal((7, 7))))


def test_a_store_that_is_none_was_cut_off() -> None:
    for now in (b"", bytes(3 * AREA), b"\xff" * 3 * AREA, KEPT[:1000]):
        assert was_cut_off(KEPT, now)
    with pytest.raises(InputError):
        was_cut_off(b"nothing", KEPT)
