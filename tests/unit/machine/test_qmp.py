from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from armvm.errors import MachineError
from armvm.machine.qmp import Qmp

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


@pytest.fixture
def ends() -> Iterator[tuple[Qmp, socket.socket]]:
    ours, theirs = socket.socketpair()
    qmp = Qmp(ours)
    yield qmp, theirs
    qmp.close()
    theirs.close()


def answering(peer: socket.socket, *replies: bytes) -> threading.Thread:
    """A peer that sends one of ``replies`` for each line that it gets."""

    def serve() -> None:
        with peer.dup() as end:
            end.sendall(GREETING)
            for reply in replies:
                end.recv(65536)
                end.sendall(reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_greeting_and_command(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = ends
    thread = answering(
        peer, b'{"return": {}, "id": 1}\r\n', b'{"event": "RESET", "data": {"guest": true}}\r\n{"return": 7, "id": 2}\n'
    )
    qmp.greet(5)
    assert qmp.execute("query-it", timeout_seconds=5) == 7
    assert [(event.name, event.data) for event in qmp.receive()] == [("RESET", {"guest": True})]
    thread.join()


def test_what_is_sent_is_one_object_a_line(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = ends
    qmp.tell("system_powerdown")
    assert json.loads(peer.recv(65536)) == {"execute": "system_powerdown", "id": 1}


def test_a_refusal_carries_qemus_words_made_printable(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = ends
    thread = answering(peer, b'{"error": {"class": "GenericError", "desc": "no \\u001b[31mway"}, "id": 1}\n')
    with pytest.raises(MachineError, match=r"refuses stop: no \\x1b\[31mway"):
        qmp.execute("stop", timeout_seconds=5)
    thread.join()


def test_a_jammed_peer_costs_the_deadline_and_no_more(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, _peer = ends
    started = time.monotonic()
    with pytest.raises(MachineError, match=r"did not come within 0\.2 s"):
        qmp.greet(0.2)
    assert time.monotonic() - started < 2


def test_an_answer_that_comes_too_late_is_not_taken_for_another(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = ends
    with pytest.raises(MachineError):
        qmp.execute("slow", timeout_seconds=0.05)
    peer.sendall(b'{"return": "late", "id": 1}\n{"return": "mine", "id": 2}\n')
    assert qmp.execute("quick", timeout_seconds=5) == "mine"


def test_a_peer_that_hangs_up(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = ends
    peer.close()
    with pytest.raises(MachineError, match="hung up before QEMU's greeting"):
        qmp.greet(5)
    assert qmp.closed
    with pytest.raises(MachineError, match="cannot tell QEMU to quit"):
        qmp.tell("quit")


@pytest.mark.parametrize("nonsense", [b"what?\n", b"[1]\n", b'{"QMP"\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_nonsense_is_an_error(ends: tuple[Qmp, socket.socket], nonsense: bytes) -> None:
    qmp, peer = ends
    peer.sendall(nonsense)
    with pytest.raises(MachineError, match="QEMU sends no"):
        qmp.greet(5)


def test_events_in_pieces_and_unknown_messages(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = ends
    peer.sendall(b'{"event": "SHUT')
    assert qmp.receive() == []
    peer.sendall(b'DOWN", "data": 3}\n\r\n{"weird": 1}\n{"return": 1, "id": "x"}\n{"event": "STOP"}')
    assert [event.name for event in qmp.receive()] == ["SHUTDOWN"]
