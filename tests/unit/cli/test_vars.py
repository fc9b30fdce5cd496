from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from armvm.cli.main import main
from armvm.firmware.variables import FLASH_SIZE_BYTES, Variable
from armvm.firmware.varstore import serialise_store
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.instance import store as instances

VENDOR = UUID("11111111-2222-3333-4444-555555555555")


@pytest.fixture(autouse=True)
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> instances.Instance:
    """An instance, as far as its variables go, whose store qemu-img wrote."""
    monkeypatch.setenv("ARMVM_HOME", str(tmp_path))
    instance = instances.find("web")
    instance.folder.mkdir(parents=True)
    instance.description.touch()
    variables = [
        Variable("Timeout", EFI_GLOBAL_VARIABLE, b"\x05\x00"),
        Variable("Evil\x1b[31m", VENDOR, b"\xde\xad"),
    ]
    write(instance, serialise_store(variables))
    return instance


def write(instance: instances.Instance, content: bytes) -> None:
    raw = instance.folder / "raw"
    raw.write_bytes(content)
    os.truncate(raw, FLASH_SIZE_BYTES)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(instance.variables)], check=True, timeout=60)


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


def test_a_store_that_is_still_blank(web: instances.Instance, capsys: pytest.CaptureFixture[str]) -> None:
    write(web, b"\0")
    assert main(["vars", "list", "web"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"\xff" * 64 + b"x"])
def test_what_is_no_store(web: instances.Instance, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    write(web, content)
    assert main(["vars", "list", "web"]) == 65
    assert "vars.qcow2" in capsys.readouterr().err


def test_what_is_no_qcow2(web: instances.Instance, capsys: pytest.CaptureFixture[str]) -> None:
    web.variables.write_bytes(b"QFI\xfb" + bytes(3))
    assert main(["vars", "list", "web"]) == 65
    web.variables.unlink()
    assert main(["vars", "list", "web"]) == 65
    assert "Traceback" not in capsys.readouterr().err


def test_a_running_instance_is_left_alone(web: instances.Instance, capsys: pytest.CaptureFixture[str]) -> None:
    with web.locked():
        assert main(["vars", "list", "web"]) == 69
    assert "in use by process" in capsys.readouterr().err


def test_no_such_instance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vars", "list", "nobody"]) == 2
    assert "there is no instance nobody" in capsys.readouterr().err
    assert main(["vars", "list", "../web"]) == 2
