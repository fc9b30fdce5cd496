from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from armvm.errors import BusyError, OutputError
from armvm.instance import lock
from armvm.instance.lock import Holder, HolderKind, Phase


def test_whoever_lets_go_in_order_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock.locked(path, what="it") as held:
        assert held.crashed is None
        assert lock.holder(path) == (lock.this_process(HolderKind.COMMAND), True)
    assert lock.holder(path) == (None, False)
    with pytest.raises(ZeroDivisionError), lock.locked(path, what="it"):
        raise ZeroDivisionError  # an error unwinds, and tidies up on its way
    assert lock.holder(path) == (None, False)


def test_whoever_dies_is_named_until_that_is_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = os.fork()
    if not child:
        with lock.locked(path, what="it", kind=HolderKind.MACHINE):
            os._exit(0)
    os.waitpid(child, 0)
    dead, held = lock.holder(path)
    assert dead is not None
    assert (dead.pid, dead.kind, held, dead.alive) == (child, HolderKind.MACHINE, False, False)

    def fail(_crashed: Holder) -> None:
        raise OutputError("the disk is full")

    with pytest.raises(OutputError), lock.locked(path, what="it", recover=fail):
        pass
    assert lock.holder(path) == (dead, False)
    recovered: list[Holder] = []
    with lock.locked(path, what="it", recover=recovered.append) as now:
        assert now.crashed == dead
        assert recovered == [dead]
    with lock.locked(path, what="it", recover=recovered.append):
        assert recovered == [dead]


def test_who_has_let_go_needs_no_end(tmp_path: Path) -> None:
    """A process that is on its way out holds nothing any more, and may be in that for a while."""
    path = tmp_path / "lock"
    told, tells = os.pipe()
    waits, goes = os.pipe()
    child = os.fork()
    if not child:
        with lock.locked(path, what="it", kind=HolderKind.MACHINE):
            os.write(tells, b"held")
            os.read(waits, 1)
        os.write(tells, b"free")
        os.read(waits, 1)
        os._exit(0)
    assert os.read(told, 4) == b"held"
    who, held = lock.holder(path)
    assert held
    assert who is not None
    os.write(goes, b"1")
    assert os.read(told, 4) == b"free"
    assert who.alive
    assert lock.end_process(path, who, signal.SIGKILL, timeout_seconds=5)
    assert who.alive, "it was killed for nothing"
    os.write(goes, b"2")
    os.waitpid(child, 0)


def test_phases_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock.locked(path, what="it", kind=HolderKind.MACHINE) as held:
        size = path.stat().st_size
        for phase in Phase:
            lock.mark(held.descriptor, phase)
            found, _ = lock.holder(path)
            assert found is not None
            assert (found.phase, found.pid) == (phase, os.getpid())
            assert path.stat().st_size == size
        with pytest.raises(BusyError, match=f"it is running, in use by process {os.getpid()}"):
            lock.locked(path, what="it").__enter__()


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b"[" * 5000, b'{"kind": "x"}', b"\xff" * 2000, b'{"kind": "machine", "pid": 1e999}'],
)
def test_nonsense_names_nobody(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content)
    assert lock.holder(path) == (None, False)
    with lock.locked(path, what="it") as held:
        assert held.crashed is None


def test_it_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text(json.dumps("precious"))
    with pytest.raises(OutputError), lock.locked(tmp_path / "lock", what="it"):
        pass
    assert lock.holder(tmp_path / "lock") == (None, False)
    assert (tmp_path / "victim").read_text() == '"precious"'
