"""virt-fw-vars, efitools, sbsigntool and openssl judge ``armvm vars``: what it writes they read, and the other way."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from armvm.cli.main import main
from armvm.disk.raw import RawDisk
from armvm.firmware.secure_boot import find_database, read_keys
from armvm.firmware.signatures import certificate_list, parse_signatures, serialise_signatures
from armvm.firmware.variables import VariableStore
from armvm.image.authenticode import authenticode_sha256
from armvm.instance.store import Instance
from armvm.instance.variables import read_store_file, read_variables
from tools.boot_images import efi_guest
from tools.kept import kept_instance, put_flash, raw_flash, virt_fw_vars
from tools.keys import Key, make_key, sign

OWNER = UUID("11111111-2222-3333-4444-555555555555")
MICROSOFT = Path("/usr/share/AAVMF/AAVMF_VARS.ms.fd")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder, "first"), make_key(folder, "second")


@pytest.fixture
def web(tmp_path: Path) -> Instance:
    return kept_instance(tmp_path)


def armvm_vars(*arguments: str | Path) -> None:
    assert main(["vars", *map(str, arguments)]) == 0


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def databases(store: VariableStore) -> dict[str, bytes]:
    found = ((name, find_database(store, name)) for name in ("PK", "KEK", "db", "dbx"))
    return {name: variable.data for name, variable in found if variable is not None}


def test_enrolment_is_byte_for_byte_that_of_virt_fw_vars(web: Instance, keys: tuple[Key, Key], tmp_path: Path) -> None:
    first, second = keys
    blank = raw_flash(web, tmp_path)
    theirs = tmp_path / "theirs.fd"
    hashes = ["aa" * 32, "bb" * 32]
    virt_fw_vars(
        "-i", blank, "-o", theirs, "--set-pk", str(OWNER), first.pem, "--add-kek", str(OWNER), first.pem,
        "--add-kek", str(OWNER), second.pem, "--add-db", str(OWNER), second.pem, "--add-db-hash", str(OWNER), hashes[0],
        "--add-db-hash", str(OWNER), hashes[1], "--add-dbx-hash", str(OWNER), hashes[0], "--sb",
    )  # fmt: skip
    armvm_vars(
        "enroll", "web", "--owner", str(OWNER), "--pk", first.pem, "--kek", first.pem, "--kek", second.der,
        "--db", second.pem, "--db", f"sha256:{hashes[0]}", "--db", f"sha256:{hashes[1]}",
        "--dbx", f"sha256:{hashes[0]}",
    )  # fmt: skip
    ours = read_variables(web)
    wanted = read_store_file(theirs)
    assert databases(ours) == databases(wanted)
    assert {one.key: one.attributes for one in ours.variables} == {one.key: one.attributes for one in wanted.variables}
    assert {one.key: one.data for one in ours.variables} == {one.key: one.data for one in wanted.variables}
    # And they read ours as they read theirs, but for the time.
    shown = [
        [line.partition(" time=")[0] for line in virt_fw_vars("-i", path, "-p", "-v", "--hashes").splitlines()]
        for path in (raw_flash(web, tmp_path), theirs)
    ]
    assert shown[0] == shown[1]
    assert "    subject CN=first" in shown[0]


def test_microsofts_keys_are_the_shipped_ones(web: Instance) -> None:
    armvm_vars("enroll", "web", "--microsoft")
    shipped = read_store_file(MICROSOFT)
    ours = read_variables(web)
    assert databases(ours) == databases(shipped)
    for name in ("PK", "KEK", "db", "dbx"):
        assert find_database(ours, name) == find_database(shipped, name)


@pytest.mark.slow
def test_what_red_hats_keys_make_of_a_store_we_list(web: Instance, tmp_path: Path) -> None:
    """virt-fw-vars enrols, we read; we edit, virt-fw-vars reads the same keys."""
    enrolled = tmp_path / "enrolled.fd"
    virt_fw_vars("-i", raw_flash(web, tmp_path), "-o", enrolled, "--enroll-redhat", "--microsoft-db", "all", "--sb")
    put_flash(web, enrolled.read_bytes())
    before = virt_fw_vars("-i", enrolled, "-p", "-v")
    armvm_vars("set", "web", "Timeout=9")
    after = virt_fw_vars("-i", raw_flash(web, tmp_path), "-p", "-v")
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert changed == ["  word: 0x0009"]
    for data in databases(read_variables(web)).values():
        assert serialise_signatures(parse_signatures(data)) == data


def test_json_goes_both_ways(web: Instance, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.json"
    virt_fw_vars("-i", MICROSOFT, "--output-json", theirs)
    armvm_vars("import", "web", theirs, "--replace")
    shipped = read_store_file(MICROSOFT)
    assert read_variables(web).variables == shipped.variables
    back = tmp_path / "back.json"
    virt_fw_vars("-i", raw_flash(web, tmp_path), "--output-json", back)
    assert json.loads(back.read_text()) == json.loads(theirs.read_text())


def test_certificates_are_read_as_openssl_reads_them(
    web: Instance, keys: tuple[Key, Key], capsys: pytest.CaptureFixture[str]
) -> None:
    armvm_vars("enroll", "web", "--db", keys[0].pem)
    capsys.readouterr()
    armvm_vars("get", "web", "db", "--json")
    (signature,) = json.loads(capsys.readouterr().out)["variables"][0]["signatures"]
    told = subprocess.run(
        ["openssl", "x509", "-in", keys[0].pem, "-noout", "-serial", "-enddate", "-dateopt", "iso_8601",
         "-fingerprint", "-sha256"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.splitlines()  # fmt: skip
    facts = dict(line.split("=", 1) for line in told)
    assert int(signature["serial"], 16) == int(facts["serial"], 16)
    assert signature["not_after"] == facts["notAfter"].replace(" ", "T")
    assert signature["sha256"] == facts["sha256 Fingerprint"].replace(":", "").lower()
    assert signature["subject"] == "CN=first"


def test_efitools_signature_lists_and_signed_updates(keys: tuple[Key, Key], tmp_path: Path) -> None:
    first, second = keys
    listed, signed = tmp_path / "db.esl", tmp_path / "db.auth"
    run("cert-to-efi-sig-list", "-g", str(OWNER), second.pem, listed)
    wanted = (certificate_list(second.der.read_bytes(), OWNER),)
    assert listed.read_bytes() == serialise_signatures(wanted)
    run("sign-efi-sig-list", "-k", first.private, "-c", first.pem, "db", listed, signed)
    assert read_keys(listed) == read_keys(signed) == wanted


@pytest.mark.parametrize("state", ["aarch64", "aarch32"])
def test_the_hash_of_a_program(state: str, keys: tuple[Key, Key], tmp_path: Path) -> None:
    program = efi_guest(tmp_path, state)
    listed = tmp_path / "hash.esl"
    run("hash-to-efi-sig-list", program, listed)
    (theirs,) = parse_signatures(listed.read_bytes())
    for path in (program, sign(program, keys[0])):
        with RawDisk(path) as disk:
            assert authenticode_sha256(disk) == theirs.entries[0].data


def test_efivarfs_files_are_what_virt_firmware_reads_in_sys(web: Instance, tmp_path: Path) -> None:
    from virt.firmware.varstore.linux import LinuxVarStore  # type: ignore[import-untyped] # a judge without types

    armvm_vars("enroll", "web", "--microsoft")
    armvm_vars("export", "web", "--efivarfs", tmp_path / "efivars")
    theirs = LinuxVarStore(str(tmp_path / "efivars")).get_varlist()
    assert {str(one.name): (one.guid, one.attr, one.data) for one in theirs.values()} == {
        one.name: (one.vendor, int(one.attributes), one.data) for one in read_variables(web).variables
    }
