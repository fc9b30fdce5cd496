from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from armvm.errors import GuestError, MissingError, UsageError
from armvm.instance import ssh, store
from armvm.instance.definition import Definition
from armvm.machine.definition import Machine, PortForward, UserNetwork
from tools.machines import machine_of


@contextmanager
def server(*answers: bytes) -> Iterator[int]:
    """A port that says one of the answers to each who comes, and then hangs up; the last one for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            left = list(answers)
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(left[0])
                if len(left) > 1:
                    left.pop(0)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_the_wait_ends_when_the_server_says_what_it_is() -> None:
    told: list[str] = []
    with server(b"", b"", b"hello\r\nSSH-2.0-x\r\n") as port:
        ssh.wait_for_server(port, timeout_seconds=30, waiting=lambda: told.append("waiting"))
    assert told == ["waiting"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200\r\n", b"x" * 100_000])
def test_an_open_port_is_no_ssh_server(answer: bytes) -> None:
    with server(answer) as port, pytest.raises(GuestError, match=f"no ssh server answered on port {port}"):
        ssh.wait_for_server(port, timeout_seconds=0.3)


def test_the_wait_ends_with_the_machine() -> None:
    with server(b"") as port, pytest.raises(GuestError, match="has ended"):
        ssh.wait_for_server(port, timeout_seconds=30, running=lambda: False)


def definition_of(**fields: object) -> Definition:
    machine: Machine = machine_of()
    return Definition(machine, **fields)  # type: ignore[arg-type]


def test_openssh_understands_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMVM_HOME", str(tmp_path / 'a "b" c'))
    instance = store.find("web")
    instance.folder.mkdir(parents=True)
    key = ssh.make_key(instance.folder / "id_ed25519", comment="armvm-web")
    assert key.startswith("ssh-ed25519 ")
    assert (instance.folder / "id_ed25519").stat().st_mode & 0o777 == 0o600
    argv = ssh.command(instance, definition_of(user="ada"), 2222, [ssh.host(), "--", "ls", "-x"])
    told = subprocess.run([argv[0], "-G", *argv[1:]], check=True, capture_output=True, text=True, timeout=60).stdout
    facts = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    assert (facts["user"], facts["port"], facts["hostname"]) == ("ada", "2222", "127.0.0.1")
    assert facts["hostkeyalias"] == "armvm-web"
    assert facts["stricthostkeychecking"] == "accept-new"
    assert facts["identityfile"] == str(instance.folder / "id_ed25519")
    other = ssh.command(instance, definition_of(), 2222, [ssh.host()], identity=Path("/k"), user="root")
    assert other[other.index("-i") :][:4] == ["-i", "/k", "-o", "User=root"]


def test_no_ssh_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = store.find("web")
    with pytest.raises(UsageError, match="no port of this host"):
        ssh.require_port(instance, definition_of())
    forward = UserNetwork((PortForward(1, 80), PortForward(2222, 22)))
    machine = Machine(machine_of().state, machine_of().firmware, machine_of().disks, 1 << 30, nics=(forward,))
    assert ssh.require_port(instance, Definition(machine)) == 2222
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    with pytest.raises(MissingError, match="ssh is not installed") as caught:
        ssh.command(instance, definition_of(), 2222, [])
    assert "openssh" in str(caught.value.hint)
