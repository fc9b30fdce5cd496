from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armvm.errors import MachineError
from armvm.machine.lifecycle import Child

PARENT = """
import sys, time
from armvm.machine.lifecycle import Child
child = Child(["/bin/sleep", "600"], inherit=(), watchdog=sys.argv[1] == "watchdog")
print(child.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # who adopts it here may be slow to bury it


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    if is_running(pid):
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the child outlived its parent")


@pytest.mark.parametrize("way", ["kernel", "watchdog"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(way: str, how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, way], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.1)  # the watchdog is started after it
        assert is_running(pid)
        parent.send_signal(how)
        parent.wait(10)
        wait_until_gone(pid)


@pytest.mark.parametrize("watchdog", [False, True])
def test_what_it_says_is_kept_and_bounded(watchdog: bool) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo noise noise noise $i >&2; i=$((i+1)); done; exit 3"
    child = Child(["/bin/sh", "-c", script], inherit=(), watchdog=watchdog)
    deadline = time.monotonic() + 20
    while child.wait(0.01) is None and time.monotonic() < deadline:
        child.take_errors()
    assert child.wait(1) == 3
    assert child.errors.endswith("noise 2999")
    assert len(child.errors) <= 16384
    child.kill()
    child.kill()


def test_killing_takes_its_whole_group() -> None:
    child = Child(["/bin/sh", "-c", "sleep 600 & echo $! >&2; wait"], inherit=())
    deadline = time.monotonic() + 10
    while not child.errors and time.monotonic() < deadline:
        child.take_errors()
    grandchild = int(child.errors)
    assert child.wait(0.01) is None
    child.kill()
    assert child.wait(1) == -signal.SIGKILL
    wait_until_gone(grandchild)


def test_it_has_a_session_of_its_own_and_only_what_it_inherits() -> None:
    reading, writing = os.pipe()
    try:
        child = Child(["/bin/sh", "-c", "ls /proc/self/fd >&2; echo said >&2; exec sleep 600"], inherit=[writing])
        try:
            deadline = time.monotonic() + 10
            while "said" not in child.errors and time.monotonic() < deadline:
                child.take_errors()
            assert os.getsid(child.pid) == child.pid != os.getsid(0)
            descriptors = {int(word) for word in child.errors.removesuffix("said").split()}
            assert writing in descriptors
            assert reading not in descriptors
        finally:
            child.kill()
    finally:
        os.close(reading)
        os.close(writing)


def test_what_cannot_be_started() -> None:
    with pytest.raises(MachineError, match="cannot start /no/such/program"):
        Child(["/no/such/program"], inherit=())
