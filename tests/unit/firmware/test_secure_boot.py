from __future__ import annotations

import base64
import struct
import sys
from pathlib import Path
from uuid import UUID

import pytest

from armvm.errors import InputError, UsageError
from armvm.firmware.certificates import describe_certificate, fingerprint, read_certificates
from armvm.firmware.secure_boot import (
    OWNER,
    SecureBoot,
    efi_time,
    enrol,
    find_database,
    read_keys,
    secure_boot,
)
from armvm.firmware.signatures import certificate_list, hash_list, parse_signatures, serialise_signatures
from armvm.firmware.values import format_time
from armvm.firmware.variable_names import SECURE_BOOT_ENABLE
from armvm.firmware.variables import CUSTOM_MODE, Variable, VariableStore, with_variables
from armvm.guid import EFI_GLOBAL_VARIABLE
from tools.keys import Key, make_key

OTHER = UUID("99999999-2222-3333-4444-555555555555")
THEN = 1_700_000_000
TIMEOUT = Variable("Timeout", EFI_GLOBAL_VARIABLE, b"\3\0")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"), "armvm test")


def test_a_certificate_in_words(key: Key) -> None:
    certificate = describe_certificate(key.der.read_bytes())
    assert certificate is not None
    assert (certificate.subject, certificate.issuer) == ("CN=armvm test", "CN=armvm test")
    assert certificate.serial > 1 << 64
    assert certificate.not_before < certificate.not_after
    assert describe_certificate(b"\x30\x03abc") is None


def test_without_the_library_there_are_no_words(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert describe_certificate(key.der.read_bytes()) is None
    assert len(fingerprint(key.der.read_bytes())) == 64


def test_pem_and_der_are_the_same(key: Key, tmp_path: Path) -> None:
    wanted = (certificate_list(key.der.read_bytes(), OWNER),)
    assert read_keys(key.pem) == read_keys(key.der) == wanted
    both = tmp_path / "both.pem"
    both.write_bytes(key.private.read_bytes() + key.pem.read_bytes() + key.pem.read_bytes())
    assert read_keys(both, OTHER) == (certificate_list(key.der.read_bytes(), OTHER),) * 2
    esl = tmp_path / "db.esl"
    esl.write_bytes(serialise_signatures([*wanted, hash_list([bytes(32)], OTHER)]))
    assert read_keys(esl) == (*wanted, hash_list([bytes(32)], OTHER))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither a certificate"),
        (b"hello", "neither a certificate"),
        (b"\x30\x03abc", "no X.509 certificate"),
        (b"\x30\x82\xff", "neither a certificate"),
        (b"x" * 100, "signature list"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "a private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "without a certificate"),
        (b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", "no base64"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no X.509 certificate"),
        (serialise_signatures([certificate_list(b"\x30\x03abc", OWNER)]), "no X.509 certificate"),
        (bytes((1 << 20) + 1), "larger than"),
    ],
)
def test_files_that_hold_no_keys(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        read_keys(path)


def test_a_huge_certificate_is_refused(tmp_path: Path) -> None:
    der = b"\x30\x83" + (70_000).to_bytes(3, "big") + bytes(70_000)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(InputError, match="70005 bytes"):
        read_certificates(pem, subject="x")


def test_enrolment_makes_what_edk2_makes(key: Key) -> None:
    keys = {name: read_keys(key.pem) for name in ("PK", "KEK", "db")}
    done = enrol(VariableStore((TIMEOUT,)), keys, seconds=THEN)
    assert done.added == {"PK": 1, "KEK": 1, "db": 1}
    assert secure_boot(done.store) is SecureBoot.ON
    assert done.store.find("Timeout") == TIMEOUT
    for name in ("PK", "KEK", "db"):
        database = find_database(done.store, name)
        assert database is not None
        assert int(database.attributes) == 0x27
        assert format_time(database.timestamp) == "2023-11-14 22:13:20"
    for name, vendor, data in (("SecureBootEnable", SECURE_BOOT_ENABLE, b"\1"), ("CustomMode", CUSTOM_MODE, b"\0")):
        assert done.store.find(name, vendor) == Variable(name, vendor, data, done.store.variables[-1].attributes)
    assert int(done.store.variables[-1].attributes) == 3


def test_keys_are_added_and_the_platform_key_is_replaced(key: Key) -> None:
    old = enrol(VariableStore(), {"PK": read_keys(key.pem), "db": (hash_list([bytes(32)], OTHER),)}, seconds=THEN).store
    newer = certificate_list(key.der.read_bytes(), OTHER)
    done = enrol(old, {"PK": (newer,), "db": (hash_list([bytes(32), b"x" * 32], OWNER),)}, seconds=THEN + 60)
    assert done.added["db"] == 1
    platform, allowed = find_database(done.store, "PK"), find_database(done.store, "db")
    assert platform is not None
    assert allowed is not None
    assert parse_signatures(platform.data) == (newer,)
    assert [entry.data for entry in parse_signatures(allowed.data)[0].entries] == [bytes(32), b"x" * 32]
    # What is there already is not written again, and no time goes back.
    again = enrol(done.store, {"db": (hash_list([bytes(32)], OWNER),)}, seconds=THEN + 99)
    assert again.store == done.store
    earlier = enrol(done.store, {"db": (hash_list([b"y" * 32], OWNER),)}, seconds=5).store
    database = find_database(earlier, "db")
    assert database is not None
    assert database.timestamp == allowed.timestamp


def test_replacing_forgets_the_old_keys(key: Key) -> None:
    old = enrol(
        VariableStore(), {"PK": read_keys(key.pem), "dbx": (hash_list([bytes(32)], OWNER),)}, seconds=THEN
    ).store
    done = enrol(old, {"db": (hash_list([bytes(32)], OWNER),)}, replace=True, seconds=THEN).store
    assert [find_database(done, name) is not None for name in ("PK", "KEK", "db", "dbx")] == [False, False, True, False]
    assert secure_boot(done) is SecureBoot.SETUP


def test_a_template_brings_its_databases_as_they_are(key: Key) -> None:
    template = enrol(VariableStore((TIMEOUT,)), {"PK": read_keys(key.pem)}, seconds=THEN).store
    done = enrol(VariableStore(), {"db": (hash_list([bytes(32)], OWNER),)}, template=template, seconds=THEN + 60).store
    assert find_database(done, "PK") == find_database(template, "PK")
    assert done.find("Timeout") is None
    assert secure_boot(done) is SecureBoot.ON


def test_there_is_one_platform_key(key: Key) -> None:
    other = certificate_list(b"\x30\x01x", OWNER)
    for lists in ((*read_keys(key.pem), other), (hash_list([bytes(32)], OWNER),)):
        with pytest.raises(UsageError, match="one platform key"):
            enrol(VariableStore(), {"PK": lists}, seconds=THEN)


def test_a_broken_database_is_not_added_to() -> None:
    store = with_variables(VariableStore(), [Variable("KEK", EFI_GLOBAL_VARIABLE, b"garbage")])
    with pytest.raises(InputError, match="the store's KEK"):
        enrol(store, {"KEK": (hash_list([bytes(32)], OWNER),)}, seconds=THEN)


def test_secure_boot_can_be_off(key: Key) -> None:
    store = enrol(VariableStore(), {"PK": read_keys(key.pem)}, seconds=THEN).store
    off = with_variables(store, [Variable("SecureBootEnable", SECURE_BOOT_ENABLE, b"\0")])
    assert secure_boot(off) is SecureBoot.OFF


def test_time() -> None:
    assert efi_time(0) == struct.pack("<HBBBBBxIhBx", 1970, 1, 1, 0, 0, 0, 0, 0, 0)
