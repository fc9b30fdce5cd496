"""The guest agent as the supervisor asks it, with an agent of ours at the other end of the line."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from armvm.errors import ArmvmError, GuestError, MachineError, UsageError
from armvm.instance import agent as subject
from armvm.instance.agent import agent
from armvm.instance.store import Instance

Reply = Callable[[dict[str, Any]], bytes]


def answer(value: object) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def serve(line: socket.socket, reply: Reply) -> None:
    """What qemu-ga does: it gets into step, then answers."""
    received = b""
    with suppress(OSError):  # the test is over
        while data := line.recv(65536):
            received += data
            while b"\n" in received:
                text, _, received = received.partition(b"\n")
                message = json.loads(text.rpartition(b"\xff")[2])
                if message["execute"] == "guest-sync-delimited":
                    line.sendall(b"\xff" + answer(message["arguments"]["id"]))
                else:
                    line.sendall(reply(message))


@contextmanager
def guest(folder: Path, reply: Reply | None) -> Iterator[Any]:
    """A running machine with an agent that answers so; None: with nobody at the other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    thread = threading.Thread(target=serve, args=(theirs, reply), daemon=True)
    if reply is not None:
        thread.start()
    try:
        yield SimpleNamespace(
            instance=Instance("web", folder), session=SimpleNamespace(channels={"agent": ours}), theirs=theirs
        )
    finally:
        ours.shutdown(socket.SHUT_RDWR)
        if reply is not None:
            thread.join(10)
        ours.close()
        theirs.close()


def ask(running: Any, **request: object) -> dict[str, Any]:
    """Drive the operation as the supervisor does."""
    step = agent(running, {"execute": "guest-info", "timeout_seconds": 5, **request})
    while True:
        try:
            next(step)
        except StopIteration as done:
            found: dict[str, Any] = done.value
            return found
        time.sleep(0.001)


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    with guest(tmp_path, answer) as running:
        for number in range(3):
            told = ask(running, arguments={"n": number})
            assert told == {"return": {"execute": "guest-info", "arguments": {"n": number}}}


def test_answers_to_others_are_passed_over(tmp_path: Path) -> None:
    with guest(tmp_path, lambda _: answer("mine")) as running:
        running.theirs.sendall(answer("stale") + b"\xff" + answer(1) + b'garbage\n{"return": "cut')
        assert ask(running) == {"return": "mine"}


def test_an_answer_in_pieces_and_a_long_one(tmp_path: Path) -> None:
    text = "x" * (3 << 20)
    with guest(tmp_path, lambda _: answer(text)) as running:
        told = ask(running)
        path = tmp_path / told["file"]
        assert path.stat().st_mode & 0o777 == 0o600
        assert json.loads(path.read_bytes()) == text


def test_an_agent_that_refuses(tmp_path: Path) -> None:
    error = b'{"error": {"class": "CommandNotFound", "desc": "no\\u001bsuch"}}\n'
    with (
        guest(tmp_path, lambda _: error) as running,
        pytest.raises(GuestError, match=r"does not do guest-info: no\\x1bsuch"),
    ):
        ask(running)


def test_nobody_there(tmp_path: Path) -> None:
    """Only the call to get into step is sent: a command would be carried out whenever an agent comes."""
    with guest(tmp_path, None) as running:
        with pytest.raises(GuestError, match=r"no guest agent answered within 0.1 s") as caught:
            ask(running, timeout_seconds=0.1)
        assert "qemu-guest-agent" in str(caught.value.hint)
        assert b"guest-info" not in running.theirs.recv(65536)


def test_a_line_that_is_full_blocks_nobody(tmp_path: Path) -> None:
    with guest(tmp_path, None) as running:
        with pytest.raises(BlockingIOError):
            while True:
                running.session.channels["agent"].send(bytes(65536))
        with pytest.raises(GuestError, match="no guest agent answered"):
            ask(running, timeout_seconds=0.1)


def test_an_agent_that_falls_silent(tmp_path: Path) -> None:
    with guest(tmp_path, lambda _: b'{"return": "cut') as running, pytest.raises(GuestError, match="no guest agent"):
        ask(running, timeout_seconds=0.3)


def test_an_agent_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_MOST_REPLY_BYTES", 1 << 20)
    with guest(tmp_path, lambda _: b"x" * (2 << 20)) as running, pytest.raises(GuestError, match="says more than"):
        ask(running)


def test_a_line_that_breaks(tmp_path: Path) -> None:
    with guest(tmp_path, None) as running:
        running.theirs.shutdown(socket.SHUT_RDWR)
        with pytest.raises(MachineError, match="line to the guest agent"):
            ask(running)


@pytest.mark.parametrize(
    "request_",
    [{"execute": ""}, {"execute": None}, {"execute": "a b"}, {"execute": "x" * 100}, {"arguments": [1]}],
)
def test_what_is_no_question(tmp_path: Path, request_: dict[str, object]) -> None:
    with guest(tmp_path, None) as running, pytest.raises(UsageError):
        ask(running, **request_)


@pytest.mark.parametrize("seconds", ["x", None, -1, float("nan"), 1e99, []])
def test_odd_times_are_bounded(tmp_path: Path, seconds: object) -> None:
    with guest(tmp_path, lambda _: answer(1)) as running:
        assert ask(running, timeout_seconds=seconds) == {"return": 1}


def test_no_port_for_an_agent(tmp_path: Path) -> None:
    running: Any = SimpleNamespace(instance=Instance("web", tmp_path), session=SimpleNamespace(channels={}))
    with pytest.raises(ArmvmError, match="no port for a guest agent"):
        ask(running)
