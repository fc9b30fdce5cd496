"""Whatever is imported or enrolled, and whatever value is written: bytes of a variable, or a clear refusal."""

from __future__ import annotations

import json
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st

from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError, UsageError
from armvm.firmware.certificates import describe_certificate, read_certificates
from armvm.firmware.secure_boot import OWNER, enrol, read_keys
from armvm.firmware.signatures import (
    SHA256,
    X509,
    authenticated_payload,
    certificate_list,
    hash_list,
    is_authenticated_update,
    merge_signatures,
    parse_signatures,
    serialise_signatures,
)
from armvm.firmware.value_syntax import KINDS, parse_value
from armvm.firmware.variable_files import parse_json, read_import, serialise_json
from armvm.firmware.variable_names import IMAGE_SECURITY_DATABASE, find_key, parse_attributes
from armvm.firmware.variables import Variable, VariableStore
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.image.authenticode import authenticode_sha256
from tools.pe_images import make_pe

OWN = UUID("11111111-2222-3333-4444-555555555555")
ESL = serialise_signatures([certificate_list(b"\x30\x03abc", OWNER), hash_list([bytes(32), b"x" * 32], OWN)])
AUTH = bytes(16) + struct.pack("<IHH", 30, 0x200, 0xEF1) + UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le
PATCHES = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=6)), max_size=4)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=9).map(bytes.hex)
)
FIELDS = st.sampled_from(["name", "vendor", "guid", "attributes", "attr", "hex", "data", "time", "monotonic_count"])
GOOD = {"name": "a", "vendor": str(OWN), "attributes": 7, "hex": "00"}


def patched(base: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(base)
    for place, patch in patches:
        content[place : place + len(patch)] = patch
    return bytes(content)


def check_import(content: bytes) -> None:
    try:
        imported = parse_json(content, subject="x")
    except InputError as error:
        assert error.message.isprintable()
        return
    again = parse_json(serialise_json(imported.variables), subject="x")
    assert again.variables == imported.variables


@settings(max_examples=300, deadline=1000)
@given(st.lists(st.dictionaries(FIELDS, SCALARS).map(lambda odd: {**GOOD, **odd}), max_size=4), SCALARS)
def test_json_of_odd_fields(entries: list[object], version: object) -> None:
    check_import(json.dumps({"schema": "armvm.variables/1", "variables": entries}).encode())
    check_import(json.dumps({"version": version, "variables": entries}).encode())


@settings(max_examples=200, deadline=1000)
@given(PATCHES, st.binary(max_size=60))
def test_json_of_noise(patches: list[tuple[int, bytes]], noise: bytes) -> None:
    check_import(noise)
    check_import(patched(serialise_json([Variable("Timeout", EFI_GLOBAL_VARIABLE, b"\3\0")] * 2), patches))


@settings(max_examples=300, deadline=1000)
@given(st.sampled_from([ESL, AUTH + ESL, b""]), PATCHES, st.integers(0, 400))
@example(ESL, [(16, struct.pack("<I", 0xFFFFFFFF))], 400)
def test_signature_lists(base: bytes, patches: list[tuple[int, bytes]], length: int) -> None:
    content = patched(base, patches)[:length]
    try:
        if is_authenticated_update(content):
            content = authenticated_payload(content)
        lists = parse_signatures(content)
    except InputError as error:
        assert error.message.isprintable()
        return
    assert serialise_signatures(lists) == content
    merged, count = merge_signatures((), lists)
    assert sum(len(one.entries) for one in merged) == count
    assert parse_signatures(serialise_signatures(merged)) == merged


@settings(max_examples=150, deadline=2000)
@given(st.sampled_from([ESL, AUTH + ESL, b"-----BEGIN CERTIFICATE-----\nMAMx\n-----END CERTIFICATE-----\n"]), PATCHES)
def test_files_of_keys(base: bytes, patches: list[tuple[int, bytes]]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(patched(base, patches))
        file.flush()
        try:
            keys = read_keys(Path(file.name))
            enrol(VariableStore(), {"KEK": keys, "db": keys}, seconds=1)
        except (InputError, UsageError) as error:
            assert error.message.isprintable()


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=200))
def test_certificates(noise: bytes) -> None:
    describe_certificate(noise)
    der = b"\x30\x82" + len(noise).to_bytes(2, "big") + noise
    describe_certificate(der)
    for content in (noise, der):
        try:
            read_certificates(content, subject="x")
        except InputError as error:
            assert error.message.isprintable()
    assert X509 != SHA256


@settings(max_examples=300, deadline=1000)
@given(
    st.sampled_from(["Timeout", "BootNext", "BootOrder", "OsIndications", "PlatformLang", "Boot0001", "db", "Own"]),
    st.sampled_from([EFI_GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, OWN]),
    st.one_of(
        st.text(max_size=40),
        st.tuples(st.sampled_from(sorted(set(KINDS) - {"file"})), st.text(max_size=20)).map(":".join),
    ),
    st.binary(max_size=20),
)
def test_values(name: str, vendor: UUID, text: str, old: bytes) -> None:
    if text.startswith("file:"):
        return
    with suppress(UsageError, InputError):
        assert isinstance(parse_value(name, vendor, text, old=Variable(name, vendor, old)), bytes)


@settings(max_examples=200, deadline=1000)
@given(st.text(max_size=60))
def test_names_and_attributes(text: str) -> None:
    for attempt in (lambda: find_key(VariableStore(), text), lambda: parse_attributes(text)):
        with suppress(UsageError):
            attempt()


@settings(max_examples=60, deadline=2000)
@given(st.one_of(st.binary(max_size=30), st.just(f"Timeout-{EFI_GLOBAL_VARIABLE}".encode())), st.binary(max_size=20))
def test_folders(name: bytes, content: bytes) -> None:
    name = name.replace(b"/", b"_").replace(b"\0", b"_")
    if name in {b"", b".", b".."}:
        return
    with tempfile.TemporaryDirectory() as folder:
        with open(folder.encode() + b"/" + name, "wb") as file:
            file.write(content)
        with suppress(InputError):
            read_import(Path(folder))


@settings(max_examples=200, deadline=1000)
@given(PATCHES, st.integers(0, 0x1000))
def test_hashes_of_programs(patches: list[tuple[int, bytes]], length: int) -> None:
    with suppress(InputError):
        assert len(authenticode_sha256(MemoryDisk(patched(make_pe(), patches)[:length]))) == 32
