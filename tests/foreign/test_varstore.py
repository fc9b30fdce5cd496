"""virt-fw-vars and the stores that Debian ships judge our reader and our writer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from armvm.firmware.values import describe
from armvm.firmware.variables import FLASH_SIZE_BYTES, Attributes, Variable, VariableStore, with_variable
from armvm.firmware.varstore import READ_BYTES, parse_store, serialise_store
from armvm.guid import EFI_GLOBAL_VARIABLE
from tools.varstores import OWN_VENDOR, Raw, flash

VARIABLES = (
    Variable("Timeout", EFI_GLOBAL_VARIABLE, b"\x07\0"),
    Variable("Own", OWN_VENDOR, b"\x01\x02\x03"),
    Variable("BootOrder", EFI_GLOBAL_VARIABLE, b"\x01\0\0\0"),
    Variable("Grüße", OWN_VENDOR, bytes(range(256)), Attributes.NON_VOLATILE | Attributes.BOOT_SERVICE),
)


def virt_fw_vars(*arguments: str | Path) -> str:
    program = Path(sys.executable).with_name("virt-fw-vars")
    argv = [str(program), *map(str, arguments)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def as_flash(path: Path, content: bytes) -> Path:
    with path.open("wb") as file:
        file.write(content)
        file.truncate(FLASH_SIZE_BYTES)
    return path


def as_json(path: Path) -> list[tuple[str, UUID, int, bytes]]:
    """What virt-fw-vars reads in a store."""
    listing = path.with_suffix(".json")
    virt_fw_vars("-i", path, "--output-json", listing)
    entries = json.loads(listing.read_text(encoding="utf-8"))["variables"]
    return [(one["name"], UUID(one["guid"]), one["attr"], bytes.fromhex(one["data"])) for one in entries]


def as_tuples(store: VariableStore) -> list[tuple[str, UUID, int, bytes]]:
    return [(one.name, one.vendor, int(one.attributes), one.data) for one in store.variables]


def test_virt_fw_vars_reads_what_we_write(tmp_path: Path) -> None:
    path = as_flash(tmp_path / "vars.fd", serialise_store(VARIABLES))
    assert as_json(path) == as_tuples(VariableStore(VARIABLES))


def test_we_read_what_virt_fw_vars_writes(tmp_path: Path) -> None:
    empty = as_flash(tmp_path / "empty.fd", serialise_store([]))
    wanted = tmp_path / "wanted.json"
    entries = [
        {"name": one.name, "guid": str(one.vendor), "attr": int(one.attributes), "data": one.data.hex()}
        for one in VARIABLES
    ]
    wanted.write_text(json.dumps({"version": 2, "variables": entries}), encoding="utf-8")
    result = tmp_path / "result.fd"
    virt_fw_vars("-i", empty, "-o", result, "--set-json", wanted)
    store = parse_store(result.read_bytes()[:READ_BYTES])
    assert store.problems == ()
    assert sorted(as_tuples(store)) == sorted(as_tuples(VariableStore(VARIABLES)))


def test_enrolled_keys_survive_our_editing(tmp_path: Path) -> None:
    """The signature databases, with their time stamps, that virt-fw-vars reads before and after."""
    shipped = Path("/usr/share/AAVMF/AAVMF_VARS.ms.fd")
    store = parse_store(shipped.read_bytes()[:READ_BYTES])
    assert store.problems == ()
    edited = with_variable(store, Variable("Own", OWN_VENDOR, b"x"))
    path = as_flash(tmp_path / "vars.fd", serialise_store(edited.variables))
    original = as_flash(tmp_path / "original.fd", shipped.read_bytes())
    own = ("Own", OWN_VENDOR, 7, b"x")
    assert as_json(path) == [*as_json(original), own]
    before, after = virt_fw_vars("-i", original, "-p", "-v"), virt_fw_vars("-i", path, "-p", "-v")
    added = [line for line in after.splitlines() if line not in before.splitlines()]
    assert added == [f"name=Own guid={OWN_VENDOR} size=1", "  byte: 0x78"]


def test_we_understand_the_enrolled_keys_that_debian_ships() -> None:
    store = parse_store(Path("/usr/share/AAVMF/AAVMF_VARS.ms.fd").read_bytes()[:READ_BYTES])
    words = {one.name: describe(one) for one in store.variables}
    assert words["PK"] == "X.509 certificates: 1"
    assert words["SecureBootEnable"] == "on"
    assert "UiApp: Fv(64074afe-340a-4be6-94ba-91b5b4d0f71e)" in words["Boot0000"]


@pytest.mark.parametrize("name", ["AAVMF_VARS.fd", "AAVMF32_VARS.fd"])
def test_the_blank_store_that_debian_ships(name: str) -> None:
    with Path("/usr/share/AAVMF", name).open("rb") as file:
        assert parse_store(file.read(READ_BYTES)) == VariableStore(formatted=False)


def test_our_fixtures_are_stores_to_others_too(tmp_path: Path) -> None:
    path = as_flash(tmp_path / "vars.fd", flash(Raw("a", b"1"), Raw("gone", state=0x3D), Raw("b", b"2")))
    assert [one[0] for one in as_json(path)] == ["a", "b"]
    assert as_json(path) == as_tuples(parse_store(path.read_bytes()[:READ_BYTES]))
