from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from armvm.cli import doctor
from armvm.cli.main import main
from armvm.firmware import discovery
from armvm.packages import components, families

CONTROL = re.compile(r"[^\x20-\x7e\n]")


@pytest.fixture
def empty_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system on which nothing is installed; the folder of its programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("armvm.process._SBIN", "")
    monkeypatch.setattr("armvm.process._LIBEXEC", "")
    monkeypatch.setattr(doctor, "_ROOT", tmp_path)
    monkeypatch.setattr(discovery, "descriptor_folders", lambda _shares: ())
    monkeypatch.setattr(doctor, "skipped_descriptors", lambda: ())
    monkeypatch.setattr(discovery, "_PLACES", dict.fromkeys(discovery._PLACES, ()))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_this_machine_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert not CONTROL.search(shown)
    for component in components():
        assert f"ok      {component.name}" in shown
        assert component.purpose in shown
    assert re.search(r"qemu-system-aarch64 +\d+\.\d+\.\d+", shown)
    assert re.search(r"mke2fs +1\.\d+", shown)
    assert "ok      tcg" in shown
    assert "To install" not in shown


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "armvm.doctor/1"
    assert document["ready"] is True
    assert document["install_missing"] is None
    by_name = {one["name"]: one for one in document["components"]}
    assert set(by_name) == {component.name for component in components()}
    keys = {"name", "purpose", "required", "present", "path", "version", "trouble", "install", "firmware"}
    assert all(set(one) == keys for one in by_name.values())
    firmware = by_name["firmware-aarch64"]["firmware"]
    assert (firmware["kind"], firmware["format"]) == ("pflash", "raw")
    assert Path(by_name["firmware-aarch64"]["path"]).is_file()
    assert [one["name"] for one in document["accelerators"]["aarch32"]] == ["kvm", "hvf", "tcg"]
    assert document["state_folder"]["free_bytes"] > 0


@pytest.mark.usefixtures("empty_system")
def test_nothing_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armvm.packages.distribution_family", lambda: "debian")
    assert main(["doctor"]) == 69
    shown = capsys.readouterr().out
    assert re.search(r"missing qemu-system-aarch64 +required", shown)
    assert re.search(r"missing mke2fs +optional", shown)
    assert shown.splitlines()[-1].startswith(
        "To install what is missing: apt-get install qemu-system-arm qemu-efi-aarch64 qemu-efi-arm qemu-utils "
        "e2fsprogs mmdebstrap debian-archive-keyring qemu-user-static uidmap"
    )
    assert main(["doctor", "--json"]) == 69
    document = json.loads(capsys.readouterr().out)
    assert document["ready"] is False
    assert not any(one["present"] for one in document["components"])


@pytest.mark.usefixtures("empty_system")
def test_an_unknown_distribution(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armvm.packages.distribution_family", lambda: None)
    monkeypatch.setattr(doctor, "distribution_family", lambda: None)
    assert main(["doctor"]) == 69
    shown = capsys.readouterr().out
    assert "unknown distribution" in shown
    assert "no package is known here" in shown
    assert main(["doctor", "--install-command"]) == 2
    assert "--family" in capsys.readouterr().err


def test_only_what_is_optional_is_missing(
    empty_system: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(empty_system, "qemu-system-aarch64", "echo 'QEMU emulator version 9.1.0 (x)'")
    code = empty_system / "code.fd"
    code.touch()
    pairs = {state: ((str(code), "/absent"),) for state in discovery._PLACES}
    monkeypatch.setattr(discovery, "_PLACES", pairs)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"ok +qemu-system-aarch64 +9\.1\.0\n", shown)
    assert "missing qemu-system-arm" in shown


def test_a_program_that_does_not_run_is_missing(empty_system: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(empty_system, "qemu-system-aarch64", "printf 'libx.so: \\033[2Jnot found\\n' >&2; exit 127")
    assert main(["doctor"]) == 69
    shown = capsys.readouterr().out
    assert r"libx.so: \x1b[2Jnot found" in shown
    assert not CONTROL.search(shown)


def test_a_program_that_is_no_program(empty_system: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty_system / "qemu-system-aarch64").write_bytes(b"\x7fELF garbage")
    (empty_system / "qemu-system-aarch64").chmod(0o755)
    assert main(["doctor"]) == 69
    assert "missing qemu-system-aarch64" in capsys.readouterr().out


@pytest.mark.parametrize("family", families())
def test_the_command_for_a_family(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--install-command", "--family", family]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    packages = {component.packages[family] for component in components() if family in component.packages}
    assert set(captured.out.split()) > packages
    unpackaged = [component.name for component in components() if family not in component.packages]
    assert all(name in captured.err for name in unpackaged)
    assert main(["doctor", "-q", "--install-command", "--family", family]) == 0
    assert capsys.readouterr().err == ""


def test_a_family_alone_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--family", "debian"]) == 2
    assert "--install-command" in capsys.readouterr().err


def test_descriptors_that_were_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "config/qemu/firmware"
    folder.mkdir(parents=True)
    (folder / "10-broken.json").write_text("{")
    assert main(["doctor", "-v"]) == 0
    assert "10-broken.json: Expecting" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert "10-broken.json" not in capsys.readouterr().out
