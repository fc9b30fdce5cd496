"""The library's machines and the pytest plugin, on real virtual machines."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import armvm
from armvm.errors import GuestError, MachineError
from tools.boot_images import READY, guest_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A guest that says that it is ready, and powers off when its button is pressed."""
    return guest_image(tmp_path / "wait.img", "aarch64")


def state_of(machine: armvm.Machine) -> str:
    return machine.state.value


def test_a_machine_lives_its_life(image: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    with armvm.Machine.create("web", image, vcpus=1) as machine:
        assert state_of(machine) == "stopped"
        with pytest.raises(MachineError, match="not running"):
            machine.expect(READY)
        machine.start()
        machine.expect(READY, timeout_seconds=60)
        assert state_of(machine) == "running"
        with pytest.raises(GuestError, match="has not said") as caught:
            machine.expect("never said", timeout_seconds=0.2)
        assert READY in caught.value.console_tail
        machine.stop(timeout_seconds=30)
        assert state_of(machine) == "stopped"
        assert READY in machine.log
        assert "ArmvmBoots" in {variable.name for variable in machine.variables()}
        machine.snapshot("off")
        copy = machine.clone("copy")
        assert [one.name for one in armvm.Machine.every()] == ["copy", "web"]
        assert [one.name for one in copy.snapshots()] == ["off"]
        machine.restore("off")
        copy.delete()
    assert armvm.Machine.every() == ()
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before


def test_two_at_once_with_coroutines(image: Path) -> None:
    async def boot(name: str) -> str:
        async with await armvm.AsyncMachine.create(name, image, vcpus=1) as machine:
            await machine.start()
            await machine.expect(READY, timeout_seconds=90)
            return machine.state.value

    async def both() -> list[str]:
        return list(await asyncio.gather(boot("one"), boot("two")))

    assert asyncio.run(both()) == ["running", "running"]
    assert armvm.Machine.every() == ()


TESTS = """
def test_it_boots(armvm_machine):
    machine = armvm_machine(vcpus=1)
    machine.expect("{ready}", timeout_seconds=60)

def test_that_fails(armvm_machine):
    machine = armvm_machine(vcpus=1)
    machine.expect("{ready}", timeout_seconds=60)
    assert False, "to see the console"

def test_without_an_image(armvm_machine, request):
    request.config.option.armvm_image = None
    armvm_machine()
"""


def test_the_plugin_boots_shows_the_console_of_what_failed_and_leaves_nothing(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_image.py").write_text(TESTS.format(ready=READY))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    command += ["--basetemp", str(tmp_path / "base"), "--armvm-image", str(image), str(folder)]
    environment = {**os.environ, "PYTEST_PLUGINS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "-p", "armvm.pytest_plugin"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "console of test-1" in done.stdout
    assert READY in done.stdout.partition("console of test-1")[2]
    assert "armvm_machine wants an image" in done.stdout
    assert list((tmp_path / "base").rglob("machine.toml")) == []


def test_the_plugin_is_there_wherever_armvm_is(armvm_machine: Callable[..., armvm.Machine], image: Path) -> None:
    machine = armvm_machine(image, start=False)
    assert machine.exists
    assert os.environ["ARMVM_HOME"] in str(machine.folder)
