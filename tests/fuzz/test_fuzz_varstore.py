"""Whatever a variable store, a variable or a firmware descriptor holds: a value or an InputError, and soon."""

from __future__ import annotations

import struct
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st

from armvm.errors import InputError
from armvm.firmware.values import describe
from armvm.firmware.variable_names import IMAGE_SECURITY_DATABASE
from armvm.firmware.variables import Variable
from armvm.firmware.varstore import parse_store, serialise_store
from armvm.guid import EFI_GLOBAL_VARIABLE
from tools import varstores
from tools.varstores import AREA, Raw, flash, journal, variable_area

BASES = (
    flash(
        Raw("a", bytes(100)), Raw("Gone", state=varstores.DELETED), Raw("Half", state=varstores.HEADER_ONLY), Raw("b")
    ),
    flash(Raw("a"), working=journal((0, 1), (0b100, 0b101)), spare=variable_area(Raw("a", b"new"), Raw("b"))),
    variable_area(Raw("a"), Raw("b"), store=varstores.PLAIN) + journal() + b"\xff" * AREA,
)
PLACES = st.one_of(st.integers(0, 0x200), st.integers(AREA, AREA + 0x100), st.integers(2 * AREA, 2 * AREA + 0x200))
PATCHES = st.lists(
    st.tuples(PLACES, st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 8, b"\xff" * 8]))),
    min_size=1,
    max_size=6,
)
NODES = st.tuples(st.integers(0, 5), st.integers(0, 33), st.binary(max_size=80))
NAMES = ["Boot0001", "BootOrder", "BootNext", "ConIn", "Timeout", "PK", "PlatformLang", "SecureBoot", "OsIndications"]


def check_store(content: bytes) -> None:
    try:
        store = parse_store(content)
    except InputError as error:
        assert error.message.isprintable()
        return
    for variable in store.variables:
        assert describe(variable).isprintable()
    if store.area_bytes is not None:
        # What could be read can be written, and reads back the same and without a problem.
        again = parse_store(serialise_store(store.variables, area_bytes=store.area_bytes))
        assert again.variables == store.variables
        assert again.problems == ()


@settings(max_examples=400, deadline=1000)
@given(st.sampled_from(BASES), PATCHES)
def test_patched_stores(base: bytes, patches: list[tuple[int, bytes]]) -> None:
    content = bytearray(base)
    for place, patch in patches:
        content[place : place + len(patch)] = patch
    check_store(bytes(content))


@settings(max_examples=100, deadline=1000)
@given(st.sampled_from(BASES), st.one_of(st.integers(0, 0x200), st.integers(0, 3 * AREA)))
def test_truncated_stores(base: bytes, length: int) -> None:
    check_store(base[:length])


@settings(max_examples=100, deadline=1000)
@given(st.binary(max_size=4000))
def test_stores_of_noise(noise: bytes) -> None:
    check_store(noise)
    check_store((variable_area()[:0x64] + noise).ljust(3 * AREA, b"\xff"))


@settings(max_examples=500, deadline=1000)
@given(st.sampled_from(NAMES), st.binary(max_size=300))
@example("Boot0001", struct.pack("<IH", 1, 0xFFFF) + b"\0\0")
def test_values(name: str, data: bytes) -> None:
    for vendor in (EFI_GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, UUID(int=0)):
        text = describe(Variable(name, vendor, data))
        assert text.isprintable()
        assert len(text) < 500


@settings(max_examples=500, deadline=1000)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 33), st.binary(max_size=80)), max_size=12),
    st.binary(max_size=4),
)
def test_device_paths(nodes: list[tuple[int, int, bytes]], tail: bytes) -> None:
    path = b"".join(struct.pack("<BBH", kind, subtype, len(data) + 4) + data for kind, subtype, data in nodes) + tail
    data = struct.pack("<IH", 1, len(path)) + b"x\0\0\0" + path
    assert describe(Variable("Boot0001", EFI_GLOBAL_VARIABLE, data)).isprintable()
