"""Kept instances with real virtual machines: variables and disk writes outlive the run, and belong to one instance."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from armvm.instance import store as instances
from tools.boot_images import READY, guest_image

Armvm = Callable[..., "subprocess.CompletedProcess[str]"]
UNTIL = ("--until", READY, "--timeout", "60")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return guest_image(tmp_path / "both.img", "aarch64", "aarch32", mode="q")


def exported(instance: instances.Instance) -> Path:
    """The raw variable store, as qemu-img makes it of the kept one."""
    raw = instance.folder.parent.parent / "vars.fd"
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(instance.variables), str(raw)], check=True, timeout=60
    )
    return raw


@pytest.mark.parametrize("state", ["aarch64", "aarch32"])
def test_variables_and_writes_are_kept(state: str, image: Path, armvm: Armvm) -> None:
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    first = armvm("run", image, "--name", "web", "--arch", state)
    assert "boots=1 disk=1" in first.stdout, first.stderr
    for count in (2, 3):
        again = armvm("run", "--name", "web")
        assert f"boots={count} disk={count}" in again.stdout, again.stderr
    same = armvm("run", image, "--name", "web", "--vcpus", "1")
    assert "boots=4 disk=4" in same.stdout, same.stderr
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before
    instance = instances.find("web")
    assert instance.log.read_text().count(READY) == 4
    for path in (instance.disk, instance.variables):
        subprocess.run(["qemu-img", "check", "-q", str(path)], check=True, timeout=60)


def test_two_instances_of_one_image_do_not_see_each_other(image: Path, armvm: Armvm) -> None:
    for name in ("one", "two", "one"):
        done = armvm("run", image, "--name", name)
        assert done.returncode == 0, done.stderr
    assert "boots=2 disk=2" in done.stdout
    assert "boots=2 disk=2" in armvm("run", "--name", "two").stdout
    assert "boots=1 disk=1" in armvm("run", image).stdout


def test_vars_list_shows_what_the_firmware_and_the_guest_wrote(image: Path, armvm: Armvm) -> None:
    armvm("run", image, "--name", "web")
    told = json.loads(armvm("vars", "list", "web", "--json").stdout)
    ours = {(variable["vendor"], variable["name"]): variable for variable in told["variables"]}
    assert ours["6d5cd3a1-29b5-4ae0-9b0e-518c5d2f3370", "ArmvmBoots"]["hex"] == "01"
    assert ours["8be4df61-93ca-11d2-aa0d-00e098032b8c", "Timeout"]["value"] == "0 s"
    judge = subprocess.run(
        [str(Path(sys.executable).with_name("virt-fw-vars")), "-i", str(exported(instances.find("web"))), "-p"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "ArmvmBoots" in judge.stdout
    assert {name for _, name in ours} >= {
        line.split()[0] for line in judge.stdout.splitlines() if line[:4] in {"Boot", "Time", "Armv"}
    }


def test_a_running_instance_is_busy_until_its_qemu_is_gone(tmp_path: Path, armvm: Armvm) -> None:
    image = guest_image(tmp_path / "wait.img", "aarch64")
    command = [sys.executable, "-m", "armvm", "run", str(image), "--name", "web"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            said = b""
            while READY.encode() not in said:
                chunk = os.read(process.stdout.fileno(), 4096)
                assert chunk
                said += chunk
            for arguments in (("run", "--name", "web"), ("vars", "list", "web")):
                busy = armvm(*arguments)
                assert busy.returncode == 69
                assert f"instance web is running, in use by process {process.pid}" in busy.stderr
        finally:
            process.send_signal(signal.SIGKILL)
    assert armvm("run", "--name", "web", *UNTIL).returncode == 0
    assert "boots=2 disk=2" in instances.find("web").log.read_text()


def test_the_power_button_is_pressed_before_a_kept_machine_is_ended(tmp_path: Path, armvm: Armvm) -> None:
    image = guest_image(tmp_path / "wait.img", "aarch64")
    done = armvm("run", image, "--name", "web", *UNTIL)
    assert done.returncode == 0
    assert "POWER-BUTTON" in instances.find("web").log.read_text()


def test_a_changed_image_is_refused(image: Path, armvm: Armvm) -> None:
    armvm("run", image, "--name", "web")
    os.utime(image)
    done = armvm("run", "--name", "web")
    assert done.returncode == 65
    assert "has changed since instance web was made" in done.stderr


def test_u_boot_keeps_no_variables_in_flash_and_boots_an_instance_all_the_same(image: Path, armvm: Armvm) -> None:
    firmware = "/usr/lib/u-boot/qemu_arm64/u-boot.bin"
    first = armvm("run", image, "--name", "web", "--firmware", firmware)
    assert "disk=1" in first.stdout, first.stderr
    again = armvm("run", "--name", "web")
    assert "U-Boot" in again.stdout
    assert "disk=2" in again.stdout
