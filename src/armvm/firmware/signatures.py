"""Signature databases: what PK, KEK, db and dbx hold (UEFI 2.10 §32.4.1, EFI_SIGNATURE_LIST)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from armvm.errors import InputError

X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
"""EFI_CERT_X509_GUID: one DER certificate a list, since all signatures of a list are of one size."""
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
"""EFI_CERT_SHA256_GUID: the Authenticode hash of an EFI program."""

KIND_NAMES = {
    X509: "X.509 certificates",
    UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed"): "hashes of X.509 certificates",
    SHA256: "SHA-256 hashes",
    UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6"): "RSA-2048 keys",
}
"""What a list of each type holds, in words (UEFI 2.10 §32.4.1); other types are shown as their GUID."""

_LIST = struct.Struct("<16sIII")
_OWNER_BYTES = 16
_SHA256_BYTES = 32

_AUTHENTICATION = struct.Struct("<16sIHH16s")
_CERTIFICATE_AT = 16
_REVISION = 0x0200
_UEFI_GUID = 0x0EF1
_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")


@dataclass(frozen=True, slots=True)
class Signature:
    """One entry: who put it there, and the certificate, hash or key itself (EFI_SIGNATURE_DATA)."""

    owner: UUID
    data: bytes


@dataclass(frozen=True, slots=True)
class SignatureList:
    """Entries of one type and size, as they stand. ``entry_bytes`` counts the owner's GUID, too."""

    kind: UUID
    entry_bytes: int
    entries: tuple[Signature, ...]
    header: bytes = b""

    @property
    def kind_name(self) -> str:
        """What it holds, in words."""
        return KIND_NAMES.get(self.kind, f"signatures of type {self.kind}")


def parse_signatures(data: bytes, *, subject: str | None = None) -> tuple[SignatureList, ...]:
    """Read a signature database: lists one behind the other. Raises InputError when it is none."""
    return tuple(_lists(data, subject))


def _lists(data: bytes, subject: str | None) -> Iterator[SignatureList]:
    offset = 0
    while offset < len(data):
        if offset + _LIST.size > len(data):
            raise InputError("a signature list is truncated", subject=subject, offset_bytes=offset)
        kind, list_bytes, header_bytes, entry_bytes = _LIST.unpack_from(data, offset)
        content_bytes = list_bytes - _LIST.size - header_bytes
        if (
            content_bytes < 0
            or offset + list_bytes > len(data)
            or entry_bytes <= _OWNER_BYTES
            or content_bytes % entry_bytes
        ):
            raise InputError(
                "a broken signature list",
                subject=subject,
                offset_bytes=offset,
                found=f"{list_bytes} bytes with a header of {header_bytes} and signatures of {entry_bytes}",
                expected=f"whole signatures within {len(data) - offset} bytes",
            )
        first = offset + _LIST.size + header_bytes
        end = offset + list_bytes
        entries = tuple(
            Signature(UUID(bytes_le=data[at : at + _OWNER_BYTES]), data[at + _OWNER_BYTES : at + entry_bytes])
            for at in range(first, end, entry_bytes)
        )
        yield SignatureList(UUID(bytes_le=kind), entry_bytes, entries, data[offset + _LIST.size : first])
        offset = end


def serialise_signatures(lists: Iterable[SignatureList]) -> bytes:
    """A signature database's bytes: what a variable holds, and what an .esl file is."""
    return b"".join(map(_serialise_list, lists))


def _serialise_list(one: SignatureList) -> bytes:
    content = b"".join(entry.owner.bytes_le + entry.data for entry in one.entries)
    list_bytes = _LIST.size + len(one.header) + len(content)
    return _LIST.pack(one.kind.bytes_le, list_bytes, len(one.header), one.entry_bytes) + one.header + content


def certificate_list(certificate: bytes, owner: UUID) -> SignatureList:
    """A list of one X.509 certificate in DER."""
    return SignatureList(X509, _OWNER_BYTES + len(certificate), (Signature(owner, certificate),))


def hash_list(digests: Iterable[bytes], owner: UUID) -> SignatureList:
    """A list of Authenticode SHA-256 hashes (32 bytes each)."""
    return SignatureList(SHA256, _OWNER_BYTES + _SHA256_BYTES, tuple(Signature(owner, one) for one in digests))


def merge_signatures(
    present: Iterable[SignatureList], added: Iterable[SignatureList]
) -> tuple[tuple[SignatureList, ...], int]:
    """``present`` with what of ``added`` it does not hold yet, and how many signatures that were.

    Hashes join the first list of their type, as virt-firmware has it; a certificate gets a list of its own.
    """
    result = list(present)
    known = {(one.kind, entry.data) for one in result for entry in one.entries}
    count = 0
    for one in added:
        fresh = []
        for entry in one.entries:
            if (one.kind, entry.data) not in known:
                known.add((one.kind, entry.data))
                fresh.append(entry)
        if not fresh:
            continue
        count += len(fresh)
        shape = (one.kind, one.entry_bytes, one.header)
        at = next(
            (
                index
                for index, old in enumerate(result)
                if one.kind != X509 and (old.kind, old.entry_bytes, old.header) == shape
            ),
            None,
        )
        if at is None:
            result.append(replace(one, entries=tuple(fresh)))
        else:
            result[at] = replace(result[at], entries=(*result[at].entries, *fresh))
    return tuple(result), count


def is_authenticated_update(content: bytes) -> bool:
    """Whether ``content`` begins as an .auth file does: a time and a signature in front of a signature database."""
    if len(content) < _AUTHENTICATION.size:
        return False
    _, length, revision, kind, guid = _AUTHENTICATION.unpack_from(content)
    return (revision, kind, guid) == (_REVISION, _UEFI_GUID, _PKCS7.bytes_le) and int(length) >= 24


def authenticated_payload(content: bytes, *, subject: str | None = None) -> bytes:
    """What an .auth file signs (EFI_VARIABLE_AUTHENTICATION_2, UEFI 2.10 §8.2.2): its content without the signature.

    The signature is not verified: whoever can write the store needs none. Raises InputError when it is truncated.
    """
    _, length, _, _, _ = _AUTHENTICATION.unpack_from(content)
    payload_at = _CERTIFICATE_AT + int(length)
    if payload_at > len(content):
        raise InputError(
            "the signature of this update is truncated",
            subject=subject,
            offset_bytes=_CERTIFICATE_AT,
            found=f"{length} bytes",
            expected=f"at most {len(content) - _CERTIFICATE_AT}",
        )
    return content[payload_at:]
