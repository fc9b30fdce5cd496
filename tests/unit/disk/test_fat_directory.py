from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armvm.disk.fat_directory import FatEntry, Listing, fold_name, long_name_checksum, parse_directory


def short_slot(name: bytes, attributes: int = 0x20, case: int = 0) -> bytes:
    return struct.pack("<11sBB7xHHHHI", name, attributes, case, 1, 0x6A2B, 0x5821, 7, 99)


def long_slots(name: str, short_name: bytes) -> list[bytes]:
    units = name.encode("utf-16-le")
    parts = [units[start : start + 26] for start in range(0, len(units), 26)]
    if len(parts[-1]) < 26:
        parts[-1] = (parts[-1] + b"\0\0").ljust(26, b"\xff")
    checksum = 0
    for byte in short_name:
        checksum = (((checksum & 1) << 7) + (checksum >> 1) + byte) % 256
    slots = []
    for ordinal, part in enumerate(parts, 1):
        mark = ordinal | (0x40 if ordinal == len(parts) else 0)
        slots.append(bytes([mark]) + part[:10] + bytes([0x0F, 0, checksum]) + part[10:22] + bytes(2) + part[22:])
    return slots[::-1]


def parse(*slots: bytes) -> Listing:
    return parse_directory(b"".join(slots), wide_clusters=True)


def only(listing: Listing) -> FatEntry:
    assert len(listing.entries) == 1
    return listing.entries[0]


def test_an_entry_is_read_field_by_field() -> None:
    entry = only(parse(short_slot(b"KERNEL  IMG")))
    assert (entry.name, entry.short_name, entry.size_bytes) == ("KERNEL.IMG", "KERNEL.IMG", 99)
    assert entry.first_cluster == 0x10007
    assert str(entry.modified) == "2024-01-01 13:17:22"
    assert parse_directory(short_slot(b"A          "), wide_clusters=False).entries[0].first_cluster == 7


@pytest.mark.parametrize(
    ("raw", "case", "name"),
    [
        (b"KERNEL  IMG", 0x08, "kernel.IMG"),
        (b"KERNEL  IMG", 0x10, "KERNEL.img"),
        (b"KERNEL  IMG", 0x18, "kernel.img"),
        (b"NOEXT      ", 0x18, "noext"),
        (b"\x05BC        ", 0, "\u03c3BC"),
        (b"\x8eBC        ", 0, "ÄBC"),
    ],
)
def test_short_names(raw: bytes, case: int, name: str) -> None:
    assert only(parse(short_slot(raw, case=case))).name == name


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=100))
def test_long_names_come_back(name: str) -> None:
    listing = parse(*long_slots(name, b"ALIAS~1 TXT"), short_slot(b"ALIAS~1 TXT"))
    assert only(listing).name == name
    assert only(listing).short_name == "ALIAS~1.TXT"
    assert listing.orphans == 0


def test_lone_surrogates_are_kept() -> None:
    slot = bytearray(long_slots("ab", b"A          ")[0])
    slot[1:3] = b"\x00\xd8"
    assert only(parse(bytes(slot), short_slot(b"A          "))).name == "\ud800b"


def test_orphans_are_counted_and_ignored() -> None:
    name = "a name of three slots and more"
    slots = long_slots(name, b"ALIAS~1    ")
    short = short_slot(b"ALIAS~1    ")
    other = short_slot(b"OTHER      ")
    assert len(slots) == 3
    for broken, orphans in (
        ([*slots, other], 3),  # the checksum of another name
        ([*slots[1:], short], 2),  # the first one lost
        ([slots[0], slots[2], short], 2),  # one in the middle lost
        ([slots[0], *slots, short], 1),  # one too many
        (slots, 3),  # nothing follows
        ([*slots, b"\xe5" + short[1:], other], 3),  # its entry was deleted
        ([*slots, bytes(32), short], 3),  # the end mark
    ):
        listing = parse(*broken)
        assert listing.orphans == orphans
        assert all(entry.name in ("ALIAS~1", "OTHER", name) for entry in listing.entries)


def test_a_name_of_more_than_255_units_is_an_orphan() -> None:
    alias = b"ALIAS~1    "
    assert only(parse(*long_slots("x" * 255, alias), short_slot(alias))).name == "x" * 255
    assert only(parse(*long_slots("x" * 256, alias), short_slot(alias))).name == "ALIAS~1"


def test_labels_dots_and_deleted_entries_are_no_entries() -> None:
    listing = parse(
        short_slot(b".          ", 0x10),
        short_slot(b"..         ", 0x10),
        short_slot(b"MY LABEL   ", 0x08),
        short_slot(b"\xe5ONE       "),
        short_slot(b"HERE       "),
        bytes(32),
        short_slot(b"BEYOND     "),
    )
    assert only(listing).name == "HERE"
    assert listing.label == "MY LABEL"


def test_an_impossible_time_is_none() -> None:
    slot = bytearray(short_slot(b"A          "))
    slot[22:26] = b"\xff\xff\xff\xff"
    assert only(parse(bytes(slot))).modified is None


def test_folding_never_changes_the_length() -> None:
    assert fold_name("straße") == "STRAßE"
    assert fold_name("éÉ") == "ÉÉ"


def test_the_checksum_is_the_documented_one() -> None:
    assert long_name_checksum(b"ALIAS~1 TXT") == long_slots("x", b"ALIAS~1 TXT")[0][13]
