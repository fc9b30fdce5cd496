"""Nested KVM for real: images boot byte for byte the same in both states, the probe judges KVM, lacks are named.

The host is made once (minutes, under emulation) and kept apart from the user's own, in the user's cache: that makes the
next run of these tests short.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from armvm.errors import BusyError
from armvm.execution import ExecutionState
from armvm.lab.recipe import HostKind
from armvm.lab.store import holding, host_folder
from conftest import Armvm
from tools.guest_faults import SEEDED
from tools.guest_images import READY, copy_guest, good_guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

AARCH64, AARCH32 = ExecutionState
SECONDS = 3000.0
GUEST_SECONDS = "1800"


@pytest.fixture
def lab(armvm: Armvm, monkeypatch: pytest.MonkeyPatch) -> Armvm:
    """The command line, with the tests' own frozen hosts."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    monkeypatch.setenv("ARMVM_HOME", str(Path(base) / "armvm" / "test-lab"))
    return armvm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guests")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(lab: Armvm, image: Path, state: ExecutionState, until: str, *, code: int, seconds: str = GUEST_SECONDS) -> Any:
    options = ("--arch", state.value, "--until", until, "--timeout", seconds, "--json")
    done = lab("lab", "run", "kvm", image, *options, timeout_seconds=SECONDS)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_host_that_is_there_is_ready_in_seconds(lab: Armvm) -> None:
    assert lab("lab", "up", "kvm", timeout_seconds=SECONDS).returncode == 0
    began = time.monotonic()
    again = lab("lab", "up", "kvm", timeout_seconds=SECONDS)
    assert again.returncode == 0
    assert again.stderr == ""
    assert time.monotonic() - began < 15
    assert json.loads(lab("lab", "list", "--json").stdout)["hosts"]["kvm"]["current"]


@pytest.mark.parametrize(("state", "says"), [(AARCH64, "aarch64"), (AARCH32, "armv7l|armv8l")])
def test_a_debian_guest_boots_and_its_image_stays_as_it_was(
    lab: Armvm, folder: Path, state: ExecutionState, says: str
) -> None:
    image = good_guest(folder, state).path
    before = _sha256(image)
    value = _run(lab, image, state, f"{READY} debian ({says}) mounts=ok", code=0)
    assert value["booted"]
    assert value["unchanged"]
    assert value["sha256"] == before == _sha256(image)


def test_an_image_without_virtio_drivers_fails_and_the_result_says_why(
    lab: Armvm, folder: Path, tmp_path: Path
) -> None:
    guest = copy_guest(good_guest(folder), tmp_path / "no-virtio.img")
    SEEDED["no virtio-blk before the root"].edit(guest)
    value = _run(lab, guest.path, AARCH64, READY, code=1, seconds="400")
    assert not value["booted"]
    assert "Loading initial ramdisk" in value["console_tail"]
    assert [entry["requirement"] for entry in value["lacking"]] == ["guest.virtio-pci"]
    assert "virtio" in value["lacking"][0]["message"]


def test_a_killed_command_leaves_nothing_running(lab: Armvm, folder: Path) -> None:
    """The host's QEMU dies with it, however it dies: what it held is free at once, and the next command goes on."""
    assert lab("lab", "up", "kvm", timeout_seconds=SECONDS).returncode == 0
    image = good_guest(folder).path
    command = [sys.executable, "-m", "armvm", "lab", "run", "kvm", str(image), "--arch", "aarch64"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1), "the guest says nothing"
        with pytest.raises(BusyError), holding(host_folder(HostKind.KVM) / "in-use", wait=False):
            pass
        process.kill()
    deadline = time.monotonic() + 20
    while True:
        try:
            with holding(host_folder(HostKind.KVM) / "in-use", wait=False):
                break
        except BusyError:
            assert time.monotonic() < deadline, "QEMU has outlived the command"
            time.sleep(0.1)
    assert json.loads(lab("lab", "list", "--json").stdout)["hosts"]["kvm"]["current"]


@pytest.mark.parametrize("state", ExecutionState)
def test_kvm_is_judged_by_the_probe(lab: Armvm, tmp_path: Path, state: ExecutionState) -> None:
    report = tmp_path / "report.json"
    arguments = ("lab", "run", "kvm", "--probe", "--arch", state.value, "-o", f"json:{report}")
    done = lab(*arguments, timeout_seconds=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    (judged,) = json.loads(report.read_bytes())["reports"]
    assert judged["subject"]["name"].startswith("nested kvm host: ")
    verdicts = {finding["requirement"]: finding["verdict"] for finding in judged["findings"]}
    assert verdicts["firmware.uefi"] == verdicts["platform.gic"] == verdicts["platform.timer"] == "pass"
    assert "fail" not in verdicts.values()
