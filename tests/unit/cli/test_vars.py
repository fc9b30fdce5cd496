from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from uuid import UUID

import pytest

from armvm.cli.main import main
from armvm.firmware.first_boot import first_boot_variables
from armvm.firmware.variables import Variable, new_instance_variables
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.instance.lock import HolderKind
from armvm.instance.store import Instance
from armvm.instance.variables import read_variables
from tools.kept import kept_instance, put_flash, put_variables
from tools.keys import make_key

VENDOR = UUID("11111111-2222-3333-4444-555555555555")


@pytest.fixture(autouse=True)
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """An instance whose store qemu-img wrote."""
    monkeypatch.setenv("ARMVM_HOME", str(tmp_path))
    instance = kept_instance(tmp_path)
    variables = [
        Variable("Timeout", EFI_GLOBAL_VARIABLE, b"\x05\x00"),
        Variable("Evil\x1b[31m", VENDOR, b"\xde\xad"),
    ]
    put_variables(instance, variables)
    return instance


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    """What ``armvm vars`` prints."""
    assert main(["vars", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_variables_are_shown_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vars", "list", "web"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        rf"{VENDOR} Evil\x1b[31m = dead (2 bytes)",
        f"{EFI_GLOBAL_VARIABLE} Timeout = 5 s",
    ]


def test_with_v_the_bytes_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vars", "list", "web", "-v"]) == 0
    assert "    non volatile, boot service, runtime; 0500" in capsys.readouterr().out.splitlines()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vars", "list", "web", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "armvm.variables/1"
    assert told["variables"][1] == {
        "name": "Timeout",
        "vendor": str(EFI_GLOBAL_VARIABLE),
        "attributes": 7,
        "value": "5 s",
        "hex": "0500",
    }


def test_a_store_that_is_still_blank(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    put_flash(web, b"\0")
    assert main(["vars", "list", "web"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"\xff" * 64 + b"x"])
def test_what_is_no_store(web: Instance, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    put_flash(web, content)
    assert main(["vars", "list", "web"]) == 65
    assert "vars.qcow2" in capsys.readouterr().err


def test_what_is_no_qcow2(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    web.variables.write_bytes(b"QFI\xfb" + bytes(3))
    assert main(["vars", "list", "web"]) == 65
    web.variables.unlink()
    assert main(["vars", "list", "web"]) == 65
    assert "Traceback" not in capsys.readouterr().err


def test_a_running_instance_is_left_alone(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    with web.locked(kind=HolderKind.MACHINE):
        for arguments in (["list", "web"], ["set", "web", "Timeout", "3"], ["reset", "web", "--yes"]):
            assert main(["vars", *arguments]) == 69
            assert "instance web is running, in use by process" in capsys.readouterr().err


def test_no_such_instance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vars", "list", "nobody"]) == 2
    assert "there is no instance nobody" in capsys.readouterr().err
    assert main(["vars", "list", "../web"]) == 2


def test_set_get_and_delete(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "set", "web", "Timeout", "never") == [
        f"~ {EFI_GLOBAL_VARIABLE} Timeout = 5 s -> waits for a key"
    ]
    assert told(capsys, "get", "web", "Timeout") == ["waits for a key"]
    assert told(capsys, "set", "web", "-q", "BootOrder=0001,0000", f"{VENDOR}:Own=u16:7") == []
    assert told(capsys, "get", "web", f"Own-{VENDOR}") == ["0700 (2 bytes)"]
    assert told(capsys, "set", "web", "Own", "8", "--u32") == [f"~ {VENDOR} Own = 0700 (2 bytes) -> 08000000 (4 bytes)"]
    assert told(capsys, "delete", "web", "Own", "BootOrder") == [
        f"- {VENDOR} Own = 08000000 (4 bytes)",
        f"- {EFI_GLOBAL_VARIABLE} BootOrder = 0001, 0000",
    ]
    assert [one.name for one in read_variables(web).variables[-2:]] == ["Timeout", "Evil\x1b[31m"]


def test_several_are_set_together_or_not_at_all(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_variables(web)
    for arguments in (
        ("Timeout=3", "BootNext=x"),
        ("Timeout=3", "Unknown=u8:1"),
        ("Timeout=3", "Timeout=4"),
        ("Timeout=3", "Timeout"),
        ("Timeout",),
        ("Timeout=3", "--attributes", "rt"),
        ("Timeout=3", "--vendor", "nobody"),
        ("Timeout=hex:",),
        ("=x",),
    ):
        told(capsys, "set", "web", *arguments, code=2)
    told(capsys, "delete", "web", "Timeout", "Gone", code=2)
    assert read_variables(web) == before


def test_a_dry_run_says_and_does_nothing(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_variables(web)
    assert told(capsys, "set", "web", "-n", "-q", "BootNext=0001") == [f"+ {EFI_GLOBAL_VARIABLE} BootNext = 0001"]
    assert told(capsys, "set", "web", "-n", "Timeout=5") == ["nothing changes"]
    assert told(capsys, "delete", "web", "-n", "Timeout") == [f"- {EFI_GLOBAL_VARIABLE} Timeout = 5 s"]
    assert told(capsys, "reset", "web", "-n")
    assert read_variables(web) == before


def test_attributes(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "attributes non volatile, boot service, runtime -> non volatile, boot service"
        in told(capsys, "set", "web", "Timeout=3", "--attributes", "nv,bs")[0]
    )
    told(capsys, "set", "web", "Timeout=4", "SecureBootEnable=on")
    kept = {one.name: int(one.attributes) for one in read_variables(web).variables}
    assert (kept["Timeout"], kept["SecureBootEnable"]) == (3, 3)


def test_get_raw(web: Instance, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["vars", "get", "web", "Evil\x1b[31m", "--raw"]) == 0
    assert capsysbinary.readouterr().out == b"\xde\xad"


def test_reset_asks(web: Instance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = read_variables(web)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    told(capsys, "reset", "web", code=2)
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    told(capsys, "reset", "web", code=2)
    assert read_variables(web) == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    told(capsys, "reset", "web")
    assert read_variables(web).variables == (*first_boot_variables(), *new_instance_variables())


@pytest.mark.parametrize("form", ["json", "list", "efivarfs"])
def test_what_is_exported_can_be_imported(
    form: str, web: Instance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_variables(web)
    target = tmp_path / "exported"
    if form == "efivarfs":
        told(capsys, "export", "web", "--efivarfs", str(target))
    elif form == "list":
        target.write_text("\n".join(told(capsys, "list", "web", "--json")), encoding="utf-8")
    else:
        told(capsys, "export", "web", "-o", str(target))
    told(capsys, "set", "web", "Timeout=9", "BootNext=0001")
    told(capsys, "delete", "web", "Evil\x1b[31m")
    assert len(told(capsys, "import", "web", str(target))) == 2
    assert read_variables(web).find("BootNext") is not None
    told(capsys, "import", "web", str(target), "--replace")
    assert sorted(read_variables(web).variables, key=str) == sorted(before.variables, key=str)


def test_some_are_exported_to_standard_output_and_imported_from_standard_input(
    web: Instance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(told(capsys, "export", "web", "Timeout"))
    assert [one["name"] for one in json.loads(text)["variables"]] == ["Timeout"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert told(capsys, "import", "web", "-", "--replace") == [f"- {VENDOR} Evil\\x1b[31m = dead (2 bytes)"]


def test_a_bad_import_changes_nothing(web: Instance, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_variables(web)
    export = json.loads("\n".join(told(capsys, "export", "web")))
    export["variables"][0]["hex"] = "09"
    export["variables"][1]["attributes"] = "all"
    source = tmp_path / "bad.json"
    source.write_text(json.dumps(export), encoding="utf-8")
    assert main(["vars", "import", "web", str(source)]) == 65
    assert "variable 2 (Evil\\x1b[31m): attributes is no number" in capsys.readouterr().err
    assert read_variables(web) == before


def test_enrolled_keys_are_shown(web: Instance, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = make_key(tmp_path, "mine")
    lines = told(capsys, "enroll", "web", "--pk", str(key.pem), "--kek", str(key.der), "--dbx", "sha256:" + "ab" * 32)
    assert lines[-1] == "Secure Boot is on: only what db allows boots"
    assert f"+ {EFI_GLOBAL_VARIABLE} PK = X.509 certificates: 1" in lines
    shown = told(capsys, "get", "web", "PK")
    assert shown[1].startswith("    CN=mine; issued by itself, serial 0x")
    assert shown[2].startswith("    written ")
    entry = json.loads("\n".join(told(capsys, "get", "web", "dbx", "--json")))["variables"][0]
    assert entry["signatures"][0]["sha256"] == "ab" * 32
    assert entry["attributes"] == 39
    assert len(bytes.fromhex(entry["time"])) == 16
    told(capsys, "enroll", "web", code=2)
    told(capsys, "enroll", "web", "--db", str(tmp_path / "gone"), code=65)
    told(capsys, "enroll", "web", "--db", str(key.pem), "--owner", "me", code=2)
    told(capsys, "enroll", "web", "--template", str(web.variables), "--replace", "--db", str(key.pem))


def test_where_no_keys_are_shipped_it_says_so(
    web: Instance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armvm.firmware.discovery.read_descriptors", lambda _folders: ())
    assert main(["vars", "enroll", "web", "--microsoft"]) == 69
    assert "no firmware whose variable store comes with Microsoft's keys" in capsys.readouterr().err
