"""The life of a kept Debian as a user scripts it; every step is also cut off by a kill -9 of QEMU in its middle."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import armvm
from armvm.errors import MachineError
from tools.debian_images import cloud_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

VARIABLE = "ArmvmLife-6d5cd3a1-29b5-4ae0-9b0e-518c5d2f3370"
EFIVAR = f"/sys/firmware/efi/efivars/{VARIABLE}"
_ATTRIBUTES = r"\007\000\000\000"  # non-volatile, boot service, runtime; then the value


@dataclass(frozen=True)
class Machine:
    """An instance, by the commands that a user types."""

    name: str
    key: Path

    def vm(self, verb: str, *arguments: str, timeout: float = 300, code: int | None = 0) -> str:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "armvm", "vm", verb, self.name, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        print(f"{time.monotonic() - began:6.1f} s  vm {verb} {self.name} {' '.join(arguments)[-60:]}")  # noqa: T201
        assert code is None or done.returncode == code, f"{verb} {arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def ssh(self, command: str, *, timeout: float = 900, code: int | None = 0) -> str:
        return self.vm("ssh", "--identity", str(self.key), "--", command, timeout=timeout, code=code).strip()

    def state(self) -> str:
        return str(json.loads(self.vm("show", "--json"))["status"])

    def qemu(self) -> int:
        from armvm.instance import control
        from armvm.instance.store import find

        return int(control.details(find(self.name))["qemu_pid"])

    def kill_qemu(self) -> None:
        """Kill -9, and wait until its supervisor has noticed."""
        from armvm.instance import control
        from armvm.instance.store import find

        os.kill(self.qemu(), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while control.status(find(self.name)).state not in {control.State.STOPPED, control.State.CRASHED}:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def cut_off(self, verb: str, *arguments: str, after_seconds: float) -> None:
        """Begin a step, kill QEMU in its middle; the command must end by itself, whatever it says."""
        pid = self.qemu()
        command = [sys.executable, "-m", "armvm", "vm", verb, self.name, *arguments]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            time.sleep(after_seconds)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            said, _ = process.communicate(timeout=120)
        assert b"Traceback" not in said, said
        started = time.monotonic()
        while self.state() not in {"stopped", "crashed"}:
            assert time.monotonic() < started + 20
            time.sleep(0.1)
            if time.monotonic() > started + 2:  # a restore has started another QEMU: that one is killed too
                with suppress(MachineError):
                    self.kill_qemu()

    def back(self, snapshot: str = "booted") -> float:
        """Go on from a snapshot of the booted machine; how long the command took."""
        started = time.monotonic()
        self.vm("start", "--from", snapshot)
        return time.monotonic() - started


def setting(value: str) -> str:
    """The command that sets the variable in the guest."""
    return f"sudo sh -c 'printf \"{_ATTRIBUTES}{value}\" > {EFIVAR}'"


def vars_of(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "armvm", "vars", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
    return path


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Whatever becomes of the test, no machine outlives it."""
    yield
    for machine in armvm.Machine.every():
        machine.delete()


@pytest.fixture
def image() -> Iterator[Path]:
    path = cloud_image()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    yield path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_the_whole_life_of_a_machine(image: Path, key: Path) -> None:
    started = time.monotonic()
    web = Machine("web", key)
    web.vm("create", str(image), "--user", "ada", "--ssh-key", f"{key}.pub")
    web.vm("start")
    web.kill_qemu()
    assert web.state() in {"crashed", "stopped"}
    web.vm("start")
    assert web.ssh("id -un") == "ada"
    web.vm("snapshot", "booted")

    # Logged in
    login = subprocess.Popen(
        [sys.executable, "-m", "armvm", "vm", "ssh", "web", "--identity", str(key), "--", "sleep 60"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1)
    web.kill_qemu()
    login.kill()
    login.wait()
    resumed = web.back()
    assert web.ssh("id -un") == "ada"

    _devices(web)
    _snapshots(web)
    _clones(web)
    took = time.monotonic() - started
    print(f"resumed in {resumed:.2f} s, all in {took:.0f} s")  # noqa: T201 - what the proof is about
    left = subprocess.run(["pgrep", "-f", os.environ["ARMVM_HOME"]], capture_output=True, check=False).stdout
    assert not left.strip(), "processes were left"


def _devices(web: Machine) -> None:
    # What was attached without --persist is gone after a crash; the image that was made for it is kept, under its name.
    web.cut_off("attach", "--new-disk", "64M", "--name", "first", after_seconds=0.7)
    web.back()
    web.vm("attach", "--new-disk", "64M", "--name", "data")
    web.cut_off("attach", "--nic", "user", "--name", "lan", after_seconds=0.7)
    web.back()
    web.vm("attach", "--new-disk", "64M", "--name", "more")
    web.vm("attach", "--nic", "user", "--name", "lan")
    disks = web.ssh("lsblk -bdno NAME,SIZE | awk '$2 == 67108864 {print $1}'")
    assert len(disks.split()) == 1, disks
    assert web.ssh("ls -d /sys/class/net/e* | wc -l") == "2"
    written = web.ssh(
        f"echo kept for now | sudo dd of=/dev/{disks} conv=sync,fsync status=none &&"
        f" sudo dd if=/dev/{disks} bs=512 count=1 status=none iflag=direct | head -n 1"
    )
    assert written == "kept for now"
    web.vm("detach", "lan")
    web.cut_off("detach", "more", after_seconds=0.6)
    web.back()
    web.vm("attach", "--new-disk", "64M", "--name", "last")
    web.vm("detach", "last", "--delete")
    assert web.ssh("lsblk -bdno NAME,SIZE | awk '$2 == 67108864 {print $1}'") == ""


def _snapshots(web: Machine) -> None:
    web.cut_off("snapshot", "clean", after_seconds=0.8)
    names = {one["name"] for one in _snapshots_of(web)}
    web.back()
    if "clean" in names:  # it was acknowledged before QEMU died
        web.vm("snapshot", "--delete", "clean")
    web.vm("snapshot", "clean")
    web.ssh(f"touch after-the-snapshot && sync && {setting('set')} && test -e {EFIVAR}")
    web.cut_off("restore", "clean", "--yes", after_seconds=0.8)
    web.back("clean")
    assert web.ssh("test -e after-the-snapshot || echo gone") == "gone"
    web.ssh(f"touch after-the-snapshot && sync && {setting('set')} && test -e {EFIVAR}")
    web.vm("restore", "clean", "--yes")
    assert web.ssh("test -e after-the-snapshot || echo gone") == "gone"
    assert web.ssh(f"test -e {EFIVAR} || echo gone") == "gone"


def _snapshots_of(web: Machine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(web.vm("snapshot", "--list", "--json"))["snapshots"]
    return found


def _clones(web: Machine) -> None:
    db = Machine("db", web.key)
    web.vm("kill")
    web.vm("clone", "db", "--from", "clean")
    web.back("clean")
    db.back("clean")
    for machine in (web, db):
        machine.ssh(setting(machine.name))
    web.kill_qemu()
    db.vm("kill")
    values = {machine.name: json.loads(vars_of("get", machine.name, VARIABLE, "--json")) for machine in (web, db)}
    assert {name: value["variables"][0]["hex"] for name, value in values.items()} == {
        "web": b"web".hex(),
        "db": b"db".hex(),
    }
    web.back("clean")
    db.back("clean")
    for machine in (web, db):
        machine.vm("delete", "--yes", "--kill")
    done = subprocess.run(
        [sys.executable, "-m", "armvm", "vm", "list", "--json"], capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(done.stdout)["instances"] == []
