"""X.509 certificates of signature databases, in words where the ``secureboot`` extra (cryptography) is installed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from armvm.errors import InputError
from armvm.printable import printable

EXTRA = "pip install 'armvm[secureboot]'"
"""What makes subjects and dates readable."""

_MOST_NAME = 300
_MOST_BYTES = 65536
_PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END (?:X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL
)
_SEQUENCE = 0x30


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says of itself. Names are RFC 4514 text, printable; times are UTC, RFC 3339."""

    subject: str
    issuer: str
    serial: int
    not_before: str
    not_after: str


def fingerprint(der: bytes) -> str:
    """The SHA-256 fingerprint, in hex."""
    return hashlib.sha256(der).hexdigest()


def can_describe() -> bool:
    """Whether the library that reads certificates is installed."""
    from importlib.util import find_spec

    return find_spec("cryptography") is not None


def describe_certificate(der: bytes) -> Certificate | None:
    """What the certificate says; None when it is none, or the library that reads certificates is not installed."""
    import warnings

    try:
        from cryptography import x509
    except ImportError:
        return None
    names = {x509.OID_EMAIL_ADDRESS: "emailAddress"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's opinions on how a certificate should be made
        try:
            read = x509.load_der_x509_certificate(der)
            return Certificate(
                subject=_name(read.subject.rfc4514_string(names)),
                issuer=_name(read.issuer.rfc4514_string(names)),
                serial=read.serial_number,
                not_before=f"{read.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
                not_after=f"{read.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
            )
        except Exception:  # noqa: BLE001 - foreign bytes; the library raises many kinds, some of them its own
            return None


def read_certificates(content: bytes, *, subject: str) -> tuple[bytes, ...]:
    """The DER certificates of a file: one in DER, or any number in PEM.

    Raises InputError when it holds none, or something that is no certificate.
    """
    if b"-----BEGIN" not in content:
        _require_certificate(content, subject)
        return (content,)
    if b"PRIVATE KEY-----" in content and not _PEM.search(content):
        raise InputError("a private key, no certificate", subject=subject, hint="the store holds public certificates")
    found = []
    for number, match in enumerate(_PEM.finditer(content), 1):
        where = f"{subject}, certificate {number}"
        try:
            der = base64.b64decode(b"".join(match.group(1).split()), validate=True)
        except binascii.Error as error:
            raise InputError(f"no base64: {error}", subject=where, offset_bytes=match.start()) from None
        _require_certificate(der, where)
        found.append(der)
    if not found:
        raise InputError("PEM without a certificate", subject=subject)
    return tuple(found)


def looks_like_certificate(content: bytes) -> bool:
    """Whether ``content`` is PEM, or one DER SEQUENCE from end to end."""
    return b"-----BEGIN" in content[:_MOST_BYTES] or _der_length(content) == len(content)


def _require_certificate(der: bytes, subject: str) -> None:
    length = _der_length(der)
    if length != len(der):
        found = f"{len(der)} bytes that begin with {der[:4].hex(' ') or 'nothing'}"
        raise InputError("no X.509 certificate", subject=subject, found=found, expected="one DER SEQUENCE")
    if len(der) > _MOST_BYTES:
        raise InputError(f"a certificate of {len(der)} bytes", subject=subject, expected=f"at most {_MOST_BYTES}")
    if can_describe() and describe_certificate(der) is None:
        raise InputError("no X.509 certificate", subject=subject, hint="openssl x509 -in FILE -text says more")


def _der_length(content: bytes) -> int | None:
    """How long the DER SEQUENCE at the start is, its header included (X.690 §8.1.3); None when there is none."""
    if len(content) < 2 or content[0] != _SEQUENCE:
        return None
    if content[1] < 0x80:
        return 2 + content[1]
    count = content[1] & 0x7F
    if not 1 <= count <= 4 or len(content) < 2 + count:
        return None
    return 2 + count + int.from_bytes(content[2 : 2 + count], "big")


def _name(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _MOST_NAME else shown[:_MOST_NAME] + "..."
