"""Instances in the background with real virtual machines, through the command line alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.boot_images import READY, guest_image
from tools.instances import alive

Armvm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(armvm: Armvm) -> Iterator[Callable[..., str]]:
    """Runs `armvm vm …`, which must end well, and says what came out. What runs at the end is killed."""

    def vm(*arguments: str | Path, code: int = 0) -> str:
        done = armvm("vm", *arguments, timeout_seconds=120)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    yield vm
    for name in ("web", "deaf"):
        armvm("vm", "kill", name)


def started(run: Callable[..., str], name: str) -> dict[str, int]:
    ((facts),) = json.loads(run("start", name, "-q", "--json", "--wait-for", READY, "--wait-timeout", "60"))
    return dict(facts)


def test_a_machine_lives_on_is_talked_to_and_powers_off(tmp_path: Path, run: Callable[..., str]) -> None:
    image = guest_image(tmp_path / "wait.img", "aarch64")
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    run("create", "web", image, "--memory", "256M", "--net", "none")
    first = started(run, "web")
    said = run("console", "web", "--send", "a", "--expect", "KEY 97", "--send", r"\n", "--expect", "KEY 13")
    assert "KEY 97" in said
    run("stop", "web")
    assert not alive(first["qemu_pid"])
    log = run("log", "web", "--raw").splitlines()
    assert [line for line in log if line in {READY, "KEY 97", "KEY 13", "POWER-BUTTON"}] == [
        READY,
        "KEY 97",
        "KEY 13",
        "POWER-BUTTON",
    ]
    assert "the guest powered off" in run("log", "web", "--events")

    # Every way of dying; the guest counts its boots in its variables and on its disk.
    for count, victim in enumerate(("qemu_pid", "pid"), start=2):
        pids = started(run, "web")
        assert f"boots={count} disk={count}" in run("log", "web", "-n", "3")
        os.kill(pids[victim], signal.SIGKILL)
        run("stop", "web")
        assert not alive(pids["qemu_pid"])
        happened = [json.loads(line)["event"] for line in run("log", "web", "--events", "--json").splitlines()]
        assert happened[-1] == "crashed"
    started(run, "web")
    assert "boots=4 disk=4" in run("log", "web", "-n", "3")
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before


def test_a_deaf_guest_is_killed(tmp_path: Path, run: Callable[..., str]) -> None:
    run("create", "deaf", guest_image(tmp_path / "deaf.img", "aarch64", mode="h"), "--memory", "256M", "--net", "none")
    started(run, "deaf")
    said = run("stop", "deaf", "--timeout", "1", code=1)
    assert READY in said
    assert "armvm vm kill deaf" in said
    assert "it is killed" in run("stop", "deaf", "--timeout", "1", "--kill")
