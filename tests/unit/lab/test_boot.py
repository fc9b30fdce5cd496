from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from armvm.disk.qcow2_write import write_qcow2
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError, MachineError, UsageError
from armvm.execution import ExecutionState
from armvm.lab import boot, kvm
from armvm.lab.outer import TaskResult
from armvm.lab.recipe import IMAGE_DISK, GuestRequest
from armvm.units import GIB, MIB

HOST = kvm.HOST
AARCH64, AARCH32 = ExecutionState
REQUEST = GuestRequest(Path("disk.raw"), "raw", AARCH64, until="login:", timeout_seconds=300)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    return path


def test_the_command_inside_says_all_that_was_asked() -> None:
    command = HOST.boot_task(REQUEST).command
    assert command[:3] == ("armvm", "run", IMAGE_DISK)
    pairs = dict(pairwise(command))
    assert pairs["--accel"] == "kvm"
    assert pairs["--until"] == "login:"
    assert pairs["--timeout"] == "300"
    assert pairs["--arch"] == "aarch64"
    assert "--until" not in HOST.boot_task(GuestRequest(Path("x"), "raw", AARCH32)).command
    probe = HOST.probe_task(AARCH32, profile="vmspec-2.0", timeout_seconds=5)
    assert dict(pairwise(probe.command))["--profile"] == "vmspec-2.0"
    assert set(probe.collect) == {"report", "console"}


def test_what_cannot_be_is_said_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was started")

    monkeypatch.setattr(boot, "ready_host", never)
    request = GuestRequest(Path("disk.raw"), "raw", AARCH64, memory_bytes=2 * GIB)
    with pytest.raises(UsageError, match="2048 MiB of memory: a guest in the nested KVM host has at most 1536"):
        boot.boot_image(HOST, request)


def test_an_image_without_a_boot_program_is_refused(image: Path) -> None:
    with pytest.raises(InputError, match="nothing to boot"):
        boot.request_for(image, state=None)
    request = boot.request_for(image, state=AARCH32, until="x")
    assert (request.state, request.format, request.until, request.sector_size) == (AARCH32, "raw", "x", 512)


def test_containers_that_hypervisors_do_not_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.qcow2"
    with path.open("wb") as file:
        write_qcow2(file, MemoryDisk(bytes(MIB)))
    assert boot.request_for(path, state=AARCH64).format == "qcow2"
    monkeypatch.setattr(boot, "FORMATS", ("raw",))
    with pytest.raises(InputError, match="a container that nested hypervisors do not read"):
        boot.request_for(path, state=AARCH64)


def test_a_pattern_that_is_none_is_refused(image: Path) -> None:
    with pytest.raises(UsageError):
        boot.request_for(image, state=AARCH64, until="(")


class _Machine:
    console_tail = "the host's words"


def _why(result: TaskResult) -> str | None:
    return boot._why(result, REQUEST, _Machine())  # type: ignore[arg-type]  # all of it that is used


def test_how_a_guest_ended_is_told_apart() -> None:
    assert _why(TaskResult(0, None)) is None
    said = ("armvm: the guest powered off and had not said it", "the last it said:", "  | hello")
    assert _why(TaskResult(1, None, notes=said)) == "the guest powered off and had not said it"
    assert _why(TaskResult(1, None)) == "the command ended with exit code 1"
    timed_out = "the guest was still running after 300 s and had not said what matches 'login:'"
    assert _why(TaskResult(None, "late", timed_out=True)) == timed_out
    assert _why(TaskResult(124, None, timed_out=True)) == timed_out


@pytest.mark.parametrize("code", [None, 2, 65, 69, 70, 127])
def test_what_never_started_is_no_verdict_on_the_image(code: int | None) -> None:
    with pytest.raises(MachineError, match="could not start the guest"):
        _why(TaskResult(code, "it broke" if code is None else None))
