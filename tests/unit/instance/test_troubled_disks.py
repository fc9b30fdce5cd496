"""A store on a disk that is full, or cannot be written to. As root on small file systems of its own; else as far as
this user's rights go."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from armvm.errors import ArmvmError, GuestError, OutputError
from armvm.instance import control, events
from armvm.instance.control import State
from armvm.instance.dialogue import Dialogue
from armvm.instance.store import Instance
from tools.instances import made_small

needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def web(
    tmp_path: Path, image: Path, behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Instance]:
    """An instance in a file system of its own, of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(place)], check=True, timeout=60)
    try:
        monkeypatch.setenv("ARMVM_HOME", str(place))
        instance = made_small("web", image)
        yield instance
        with suppress(ArmvmError):
            control.kill(instance)
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=60)


def fill(instance: Instance) -> Path:
    """Take all the room that is left."""
    filling = instance.folder.parent / "filling"
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with filling.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x")
    return filling


@needs_mounts
def test_a_full_disk_at_the_start(web: Instance) -> None:
    before = {path.name: path.read_bytes() for path in web.folder.iterdir()}
    filling = fill(web)
    with pytest.raises(OutputError, match="No space left on device"):
        control.start(web)
    assert control.status(web).state is State.STOPPED
    assert {path.name: path.read_bytes() for path in web.folder.iterdir() if path.stat().st_size} == before
    filling.unlink()
    control.start(web)


@needs_mounts
def test_a_disk_that_fills_while_it_runs(web: Instance) -> None:
    control.start(web)
    with Dialogue(web, scrollback=True) as dialogue:
        dialogue.expect("READY", timeout_seconds=10)
        filling = fill(web)
        for _ in range(3):
            dialogue.send(b"x" * 3000 + b"\n")
            dialogue.expect("X\n", timeout_seconds=10)
        assert control.details(web)["lost_log_bytes"] > 0
        filling.unlink()
        dialogue.send(b"room again\n")
        dialogue.expect("ROOM AGAIN", timeout_seconds=10)
    control.stop(web, timeout_seconds=10)
    log = web.log.read_text()
    assert "bytes of this log could not be written]" in log
    assert "ROOM AGAIN" in log
    assert [event["event"] for event in events.read(web.events)] == ["created", "started", "stopped"]


@needs_mounts
def test_a_full_disk_stops_nobody_from_stopping(web: Instance) -> None:
    control.start(web)
    fill(web)
    control.stop(web, timeout_seconds=10)
    assert control.status(web) == control.Status(State.STOPPED, None)


@needs_mounts
def test_a_store_that_cannot_be_written_to(web: Instance) -> None:
    place = web.folder.parent.parent
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, timeout=60)
    with pytest.raises(OutputError, match="Read-only file system"):
        control.start(web)
    assert control.status(web).state is State.STOPPED


@needs_mounts
def test_a_guest_whose_wait_is_over_on_a_full_disk(web: Instance, behave: Callable[[str], None]) -> None:
    behave("deaf")
    control.start(web)
    fill(web)
    with pytest.raises(GuestError):
        control.stop(web, timeout_seconds=0.1)
    control.kill(web)
    assert control.status(web).state is State.STOPPED
