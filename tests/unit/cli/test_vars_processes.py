"""Many processes edit one store, and are killed at it: what was acknowledged is there, and nothing else is."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from armvm.firmware.first_boot import first_boot_variables
from armvm.firmware.variables import new_instance_variables
from armvm.firmware.varstore import READ_BYTES, parse_store
from armvm.instance.store import Instance
from armvm.instance.variables import read_variables
from tools.kept import kept_instance, raw_flash

VENDOR = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def web(tmp_path: Path) -> Instance:
    return kept_instance(tmp_path)


@contextmanager
def setting(*assignments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "armvm", "vars", "set", "web", "-q", *assignments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        yield process


def values(instance: Instance) -> dict[str, int]:
    return {
        one.name: int.from_bytes(one.data, "little")
        for one in read_variables(instance).variables
        if str(one.vendor) == VENDOR
    }


def names(instance: Instance) -> set[str]:
    return {path.name for path in instance.folder.iterdir()}


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_of_parallel_edits_none_is_lost(web: Instance, tmp_path: Path, count: int) -> None:
    before = names(web)
    commands = [
        [sys.executable, "-m", "armvm", "vars", "set", "web", "-q", f"{VENDOR}:P{at}=u32:{at}"] for at in range(count)
    ]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    assert [process.wait(timeout=800) for process in processes] == [0] * count
    assert values(web) == {f"P{at}": at for at in range(count)}
    assert names(web) == {*before, "lock"}
    store = parse_store(raw_flash(web, tmp_path).read_bytes()[:READ_BYTES])
    assert store.problems == ()
    assert len(store.variables) == count + len((*first_boot_variables(), *new_instance_variables()))


@pytest.mark.parametrize("kills", [12, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_an_edit_that_is_killed_is_done_or_not_done(web: Instance, kills: int) -> None:
    """Each process is killed somewhere in the half second that it takes; what exited with 0 must be there."""
    before = names(web)
    whole_seconds = 0.5
    randomness = random.Random(5)
    acknowledged = 0
    for value in range(1, kills + 1):
        with setting(f"{VENDOR}:Own=u32:{value}", f"{VENDOR}:Twin=u32:{value}") as process:
            try:
                if process.wait(timeout=randomness.uniform(0.05, whole_seconds)) == 0:
                    acknowledged = value
            except subprocess.TimeoutExpired:
                process.kill()
        found = values(web)
        assert found.get("Own") == found.get("Twin")
        assert found.get("Own", 0) in {acknowledged, value}
        acknowledged = found.get("Own", 0)
    assert names(web) == {*before, "lock"}


def test_a_process_that_dies_at_the_rename_leaves_the_old_store_and_is_swept_up_after(web: Instance) -> None:
    """Killed between naming the new file and putting it in its place: the one moment at which litter has a name."""
    program = (
        "import os, signal, sys\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from armvm.cli.main import main\n"
        f"main(['vars', 'set', 'web', '{VENDOR}:Own=u32:1'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -9
    litter = [name for name in names(web) if name.endswith(".part")]
    assert len(litter) == 1
    assert values(web) == {}
    assert not any(name.endswith(".part") for name in names(web))
