from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from armvm.cli.main import main
from tools.boot_images import BOOT_FILES, esp_image

FAKE = """#!/bin/sh
case "$*" in *-sandbox*) {with_sandbox};; *) {without_sandbox};; esac
"""
DIE = 'echo "qemu: -device x: No \033[31m such thing" >&2; exit 1'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARMVM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return esp_image(tmp_path / "both.img", {f"EFI/BOOT/{name}": b"MZ" for name in BOOT_FILES.values()})


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts programs in QEMU's place that do this."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(with_sandbox: str, without_sandbox: str = DIE) -> None:
        for name in ("qemu-system-aarch64", "qemu-system-arm"):
            program = folder / name
            program.write_text(FAKE.format(with_sandbox=with_sandbox, without_sandbox=without_sandbox))
            program.chmod(0o755)

    return put


def test_the_command_is_printed_and_nothing_is_made(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", str(image), "--print-command"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert Path(command[0]).name == "qemu-system-aarch64"
    assert "-no-user-config" in command
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["run", str(image), "--print-command", "--writable"]) == 0
    assert "snapshot=on" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "aarch32"], ["qemu-system-arm", "cortex-a15", "1024M"]),
        (["--gic", "2", "--vcpus", "8"], ["gic-version=2", "-smp 8"]),
        (["--hardware-description", "acpi"], ["acpi=on"]),
        (["--console", "virtio", "--bus", "mmio"], ["virtio-serial-device", "virtio-blk-device", "-serial none"]),
        (["--memory", "1.5G"], ["-m 1536M"]),
        (["--net", "none"], ["-display none"]),
        (["--forward", "2222:22", "--forward", "tcp:8080:80"], ["127.0.0.1:2222-:22", "127.0.0.1:8080-:80"]),
        (["--sector-size", "512", "--cpu", "max,sve=off"], ["-cpu max,sve=off"]),
        (["--accel", "tcg"], ["-accel tcg"]),
    ],
)
def test_options_reach_the_machine(
    image: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(image), "--print-command", *arguments]) == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed
    assert ("netdev" in printed) == ("none" not in arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gic", "2", "--vcpus", "9"], "VM System Specification v1.0, VM Platform"),
        (["--gic", "4"], "EL1"),
        (["--vcpus", "0"], "0 vCPUs"),
        (["--memory", "64M"], "64 MiB of memory"),
        (["--arch", "aarch32", "--memory", "4G"], "4096 MiB"),
        (["--arch", "aarch32", "--hardware-description", "acpi"], "ACPI on an AArch32"),
        (["--net", "none", "--forward", "1:2"], "--forward needs a network"),
        (["--forward", "0:22"], "no TCP port: 0"),
        (["--forward", "1:2", "--forward", "1:3"], "forwarded twice"),
        (["--until", "("], "not a regular expression"),
        (["--name", "../x"], "not a name"),
    ],
)
def test_what_cannot_be_is_a_usage_error(
    image: Path, home: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(image), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert main(["run", str(image), "--name", "x", *arguments]) == 2
    assert not (home / "instances/x").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--memory", "much"],
        ["--forward", "22"],
        ["--forward", "a:b"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "-1"],
        ["--gic", "5"],
        ["--arch", "riscv"],
        ["--name", "x", "--writable"],
    ],
)
def test_what_argparse_refuses(image: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(image), *arguments])
    assert caught.value.code == 2


def test_no_image_and_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "no image to boot" in capsys.readouterr().err
    assert main(["run", "--name", "nobody"]) == 2
    assert "there is no instance nobody" in capsys.readouterr().err


@pytest.mark.parametrize(("only", "program"), [("aarch64", "qemu-system-aarch64"), ("aarch32", "qemu-system-arm")])
def test_the_state_follows_the_boot_program(
    tmp_path: Path, only: str, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = esp_image(tmp_path / "one.img", {f"efi/boot/{BOOT_FILES[only].lower()}": b"MZ"})
    assert main(["run", str(image), "--print-command"]) == 0
    assert program in capsys.readouterr().out


def test_an_image_without_a_boot_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = esp_image(tmp_path / "none.img", {"EFI/debian/grubaa64.efi": b"MZ"})
    assert main(["run", str(image), "--print-command"]) == 65
    said = capsys.readouterr().err
    assert "BOOTAA64.EFI" in said
    assert "BOOTARM.EFI" in said
    assert "armvm check" in said
    assert main(["run", str(image), "--print-command", "--arch", "aarch64"]) == 0


@pytest.mark.parametrize("content", [b"", b"text", bytes(4 << 20), b"\x1f\x8b\x08" + bytes(2 << 20)])
def test_what_is_no_image(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(content)
    assert main(["run", str(path)]) == 65
    assert main(["run", str(tmp_path / "absent")]) == 65
    assert "Traceback" not in capsys.readouterr().err


def test_a_qcow2_image_is_given_with_its_format(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import subprocess

    converted = tmp_path / "disk.whatever"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(image), str(converted)], check=True, timeout=60)
    assert main(["run", str(converted), "--print-command"]) == 0
    assert "driver=qcow2,file.filename=" in capsys.readouterr().out


def test_qemu_that_fails_is_quoted(image: Path, fake_qemu: Any, capfd: pytest.CaptureFixture[str]) -> None:
    fake_qemu(DIE)
    assert main(["run", str(image), "--until", "x"]) == 69
    said = capfd.readouterr().err
    assert "QEMU did not start" in said
    assert r"\x1b[31m such thing" in said
    assert "\x1b" not in said


def test_qemu_that_says_nothing(image: Path, fake_qemu: Any, capfd: pytest.CaptureFixture[str]) -> None:
    fake_qemu("exit 0")
    assert main(["run", str(image), "--until", "x"]) == 69
    assert "QEMU did not start" in capfd.readouterr().err


def test_a_qemu_without_a_sandbox_is_started_without_it(
    image: Path, fake_qemu: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal = "echo \"qemu: -sandbox on: There is no option group 'sandbox'\" >&2; exit 1"
    fake_qemu(refusal, 'echo "reached" >&2; exit 1')
    assert main(["run", str(image), "--until", "x"]) == 69
    assert "reached" in capfd.readouterr().err


def test_a_qemu_that_speaks_nonsense(image: Path, fake_qemu: Any, capfd: pytest.CaptureFixture[str]) -> None:
    # The control channel is the second descriptor that it inherits.
    script = (
        "import re,sys,os; fd = int(re.search(r'id=control,fd=(\\d+)', ' '.join(sys.argv))[1]); os.write(fd, b'moo\\n')"
    )
    fake_qemu(f'exec {sys.executable} -c "{script}" "$@"')
    assert main(["run", str(image), "--until", "x"]) == 69
    assert "QEMU did not start" in capfd.readouterr().err


def test_missing_programs(image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("armvm.process.find_program", lambda _name: None)
    assert main(["run", str(image), "--until", "x"]) == 69
    said = capsys.readouterr().err
    assert "qemu-system-aarch64 is not installed" in said
    assert "install" in said


def test_an_accelerator_that_is_not_there(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = "hvf" if sys.platform == "linux" else "kvm"
    assert main(["run", str(image), "--accel", missing]) == 69
    assert f"{missing.upper()} is not available" in capsys.readouterr().err


def test_a_log_that_cannot_be_written(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(image), "--until", "x", "--log", str(tmp_path / "no/such/folder")]) == 69
    assert "cannot write" in capsys.readouterr().err


def test_the_image_is_no_log(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = image.read_bytes()
    assert main(["run", str(image), "--until", "x", "--log", str(image)]) == 2
    assert "is the image itself" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_an_image_that_is_being_written_to(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    with image.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["run", str(image), "--writable", "--until", "x"]) == 69
    assert "being written to" in capsys.readouterr().err


def test_an_instance_stands_on_one_image(
    image: Path, tmp_path: Path, home: Path, fake_qemu: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_qemu(DIE)
    assert main(["run", str(image), "--name", "web", "--print-command"]) == 2
    assert not home.exists()
    assert main(["run", str(image), "--name", "web", "--vcpus", "3", "--until", "x"]) == 69
    capfd.readouterr()
    assert main(["run", "--name", "web", "--print-command"]) == 0
    kept = capfd.readouterr().out
    assert "-smp 3" in kept
    assert str(home / "instances/web/disk.qcow2") in kept
    assert main(["run", str(image), "--name", "web", "--print-command", "--vcpus", "1"]) == 0
    assert "-smp 1" in capfd.readouterr().out
    other = tmp_path / "other.img"
    other.write_bytes(image.read_bytes())
    assert main(["run", str(other), "--name", "web"]) == 2
    assert f"stands on {image}, not on {other}" in capfd.readouterr().err
    assert main(["run", "--name", "web", "--arch", "aarch32"]) == 2
    assert main(["run", "--name", "web", "--sector-size", "4096"]) == 2


def test_an_instance_that_runs_names_who_runs_it(
    image: Path, fake_qemu: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from armvm.instance import store as instances
    from armvm.instance.lock import HolderKind

    fake_qemu(DIE)
    assert main(["run", str(image), "--name", "web", "--until", "x"]) == 69
    with instances.find("web").locked(kind=HolderKind.MACHINE):
        assert main(["run", "--name", "web"]) == 69
        assert f"in use by process {os.getpid()}" in capfd.readouterr().err
