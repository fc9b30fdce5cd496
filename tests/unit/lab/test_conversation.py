"""Both ends of the port, without a machine between them: the real agent's task, the real reader of what it says."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from armvm.errors import MachineError
from armvm.lab import agent, outer
from armvm.lab.outer import OuterMachine, TaskResult
from armvm.lab.recipe import Task
from armvm.lab.wire import Frame, Reader, serialise
from armvm.machine.backend import ConsoleOutput, Ended, Ending, Event, Readable
from armvm.machine.console_text import ConsoleText


class _Session:
    """A machine that says what it is told to, and whose port is a socket."""

    def __init__(self) -> None:
        self.events: list[Event] = [ConsoleOutput(b"the host's last words\r\n")]

    def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
        events, self.events = self.events, []
        if not events:
            import select

            ready = select.select(watch, [], [], timeout_seconds)[0]
            events = [Readable(descriptor) for descriptor in ready]
        return events

    def kill(self) -> None:
        pass


@pytest.fixture
def port() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _ports[theirs.fileno()] = ours
        yield theirs


_ports: dict[int, socket.socket] = {}


def _machine(port: socket.socket, session: _Session | None = None) -> OuterMachine:
    machine = OuterMachine.__new__(OuterMachine)
    machine._session = session or _Session()  # type: ignore[assignment]  # all of it that is used
    machine._agent = _ports[port.fileno()]
    machine._agent.setblocking(False)
    machine._text, machine._reader, machine._frames = ConsoleText(), Reader(), []
    return machine


def _serve_one(port: socket.socket) -> None:
    """What the agent does with the first task on its port, but for clock and randomness, which are this machine's."""
    for frame in Reader().feed(port.recv(65536)):
        task: dict[str, Any] = json.loads(frame.body)
        del task["clock"], task["entropy"]
        agent._serve(task, agent._sender(port.fileno()))


def _perform(port: socket.socket, *command: str, seconds: float = 20.0, **collect: Path) -> tuple[TaskResult, bytes]:
    said = bytearray()
    task = Task(command, seconds, {name: str(path) for name, path in collect.items()})
    server = threading.Thread(target=_serve_one, args=(port,))
    server.start()
    result = _machine(port).perform(task, said=said.extend)
    server.join()
    return result, bytes(said)


def test_a_task_says_notes_and_leaves_files(port: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(200_000))
    (tmp_path / "empty").touch()
    script = "printf 'one\\ntwo'; echo careful >&2; printf end >&2; exit 3"
    result, said = _perform(
        port, "sh", "-c", script, large=tmp_path / "large", empty=tmp_path / "empty", none=tmp_path / "none"
    )
    assert (result.code, result.error, result.timed_out) == (3, None, False)
    assert said == b"one\ntwo"
    assert result.notes == ("careful", "end")
    assert result.files == {"large": (tmp_path / "large").read_bytes(), "empty": b""}


def test_a_command_that_is_not_there_fails(port: socket.socket) -> None:
    result, _ = _perform(port, "no-such-program")
    assert result.code == 70
    assert "no-such-program" in result.notes[-1]


def test_armvm_runs_in_the_process_that_has_it_loaded(port: socket.socket) -> None:
    result, said = _perform(port, "armvm", "--version")
    assert (result.code, said[:6]) == (0, b"armvm ")
    result, _ = _perform(port, "armvm", "no-such-verb")
    assert result.code == 2


def test_what_is_loaded_before_the_host_is_frozen_is_there() -> None:
    agent._preload()


def test_what_goes_on_too_long_is_killed_whole(port: socket.socket, tmp_path: Path) -> None:
    began = time.monotonic()
    server = threading.Thread(target=_serve_one, args=(port,))
    server.start()
    machine = _machine(port)
    task = Task(("sh", "-c", f"(sleep 60; touch {tmp_path}/alive) & echo $!; sleep 60"), 0.5)
    said = bytearray()
    # This end's time is the same: give the other one a head start.
    outcome = machine._listen
    machine._listen = lambda _s, **kw: outcome(20.0, **kw)  # type: ignore[method-assign]
    result = machine.perform(task, said=said.extend)
    server.join()
    assert (result.code, result.timed_out) == (124, True)
    assert time.monotonic() - began < 15
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(said), 0)
            time.sleep(0.02)


def test_an_agent_that_says_nothing_in_time_is_a_timeout(port: socket.socket) -> None:
    result = _machine(port).perform(Task(("true",), 0.2))
    assert result.timed_out
    assert result.code is None


def test_silence_is_a_failure_with_the_last_words(port: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer, "SILENCE_SECONDS", 0.2)
    with pytest.raises(MachineError, match="was silent") as caught:
        _machine(port).perform(Task(("true",), 30))
    assert caught.value.output_tail == "the host's last words"


def test_a_host_that_ends_is_a_failure(port: socket.socket) -> None:
    session = _Session()
    session.events.append(Ended(Ending.POWERED_OFF))
    with pytest.raises(MachineError, match="ended before the end of true"):
        _machine(port, session).perform(Task(("true",), 30))


@pytest.mark.parametrize(
    "data", [b"@L1 said 3 00000000\nabc", serialise(Frame("done", b"[]")), serialise(Frame("done"))]
)
def test_nonsense_is_a_failure(port: socket.socket, data: bytes) -> None:
    port.sendall(data)
    with pytest.raises(MachineError, match=r"nonsense|something else than a result"):
        _machine(port).perform(Task(("true",), 30))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{}",
        b"null",
        b'{"name": "other", "offset": 0, "size": 1}',
        b'{"name": "report", "offset": 5, "size": 9}',
        b'{"name": "report", "offset": 0, "size": 0}',
        b'{"name": "report", "offset": 0, "size": 99999999}',
    ],
)
def test_pieces_that_were_not_asked_for_are_dropped(port: socket.socket, head: bytes) -> None:
    port.sendall(serialise(Frame("file", head + b"\nx")) + serialise(Frame("done", b'{"code": 0}')))
    result = _machine(port).perform(Task(("true",), 30, {"report": "/tmp/r"}))
    assert result.code == 0
    assert not any(result.files.values())


def test_a_ready_agent_is_waited_for(port: socket.socket) -> None:
    with pytest.raises(MachineError, match=r"did not come within 0\.1 s"):
        _machine(port).await_ready(0.1)
    port.sendall(serialise(Frame("ready", b"{}")))
    _machine(port).await_ready(5)
