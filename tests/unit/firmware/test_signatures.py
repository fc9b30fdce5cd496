from __future__ import annotations

import struct
from uuid import UUID

import pytest

from armvm.errors import InputError
from armvm.firmware.signatures import (
    SHA256,
    X509,
    Signature,
    SignatureList,
    authenticated_payload,
    certificate_list,
    hash_list,
    is_authenticated_update,
    merge_signatures,
    parse_signatures,
    serialise_signatures,
)

OWNER = UUID("11111111-2222-3333-4444-555555555555")
OTHER = UUID("99999999-2222-3333-4444-555555555555")
ONE, TWO, THREE = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")


def test_the_layout_is_that_of_the_specification() -> None:
    content = serialise_signatures([hash_list([ONE, TWO], OWNER)])
    assert content == SHA256.bytes_le + struct.pack("<III", 28 + 2 * 48, 0, 48) + b"".join(
        OWNER.bytes_le + digest for digest in (ONE, TWO)
    )


def test_lists_of_every_kind_come_back_the_same() -> None:
    unknown = SignatureList(OTHER, 20, (Signature(OWNER, b"abcd"),), header=b"head")
    lists = (certificate_list(b"\x30\x01x", OWNER), hash_list([ONE], OTHER), unknown, SignatureList(SHA256, 48, ()))
    assert parse_signatures(serialise_signatures(lists)) == lists
    assert parse_signatures(b"") == ()
    assert unknown.kind_name == f"signatures of type {OTHER}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda raw: raw[:-1], "broken"),
        (lambda raw: raw[:20], "truncated"),
        (lambda raw: raw[:16] + struct.pack("<III", 27, 0, 48) + raw[28:], "broken"),
        (lambda raw: raw[:16] + struct.pack("<III", 76, 0, 16) + raw[28:], "broken"),
        (lambda raw: raw[:16] + struct.pack("<III", 76, 0xFFFFFFFF, 48) + raw[28:], "broken"),
        (lambda raw: raw[:16] + struct.pack("<III", 76, 0, 47) + raw[28:], "broken"),
        (lambda raw: raw[:16] + struct.pack("<III", 76, 0, 0) + raw[28:], "broken"),
    ],
)
def test_lies_are_found(change: object, what: str) -> None:
    raw = serialise_signatures([hash_list([ONE], OWNER)])
    with pytest.raises(InputError, match=what):
        parse_signatures(change(raw))  # type: ignore[operator]


def test_merging_adds_what_is_new_and_nothing_twice() -> None:
    present = (certificate_list(b"\x30\x01a", OWNER), hash_list([ONE], OWNER))
    lists, count = merge_signatures(
        present, [hash_list([ONE, TWO, TWO], OTHER), certificate_list(b"\x30\x01a", OTHER), hash_list([THREE], OWNER)]
    )
    assert count == 2
    assert lists == (
        present[0],
        SignatureList(SHA256, 48, (Signature(OWNER, ONE), Signature(OTHER, TWO), Signature(OWNER, THREE))),
    )
    # Two certificates of one size still are two lists.
    lists, count = merge_signatures(present, [certificate_list(b"\x30\x01b", OWNER)])
    assert [one.kind for one in lists] == [X509, SHA256, X509]


def auth(payload: bytes, length: int = 24 + 10, guid: UUID = PKCS7) -> bytes:
    return bytes(16) + struct.pack("<IHH", length, 0x0200, 0x0EF1) + guid.bytes_le + bytes(10) + payload


def test_a_signed_update_is_unwrapped() -> None:
    assert is_authenticated_update(auth(b"payload"))
    assert authenticated_payload(auth(b"payload")) == b"payload"
    assert not is_authenticated_update(auth(b"", guid=OWNER))
    assert not is_authenticated_update(b"short")
    with pytest.raises(InputError, match="truncated"):
        authenticated_payload(auth(b"", length=1000))
