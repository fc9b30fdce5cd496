"""The way into a guest by ssh: a key pair of the instance's own, the wait for its server, and OpenSSH's command."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from armvm.errors import GuestError, MissingError, UsageError
from armvm.instance.addresses import ssh_port
from armvm.instance.create import KEY_NAME
from armvm.instance.definition import Definition
from armvm.instance.store import Instance
from armvm.packages import install_command
from armvm.process import find_program, run

_LOOPBACK = "127.0.0.1"
_BANNER = b"SSH-"
_MOST_BANNER_BYTES = 8192
"""A server may say other lines first (RFC 4253 §4.2)."""
_ANSWER_SECONDS = 10.0
_PAUSE_SECONDS = 0.25


def make_key(path: Path, *, comment: str) -> str:
    """Make a key pair without a passphrase at ``path`` and ``path``.pub; the public key, as authorized_keys has it.

    Raises MissingError when there is no ssh-keygen, ProgramError when it fails.
    """
    run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)], timeout_seconds=60)
    public = path.with_name(f"{path.name}.pub")
    public.chmod(0o600)
    return public.read_text(encoding="ascii").strip()


def require_port(instance: Instance, definition: Definition) -> int:
    """The port of this host that leads to the guest's ssh server. Raises UsageError when there is none."""
    port = ssh_port(definition.machine)
    if port is None:
        raise UsageError(
            f"no port of this host leads to the ssh server of instance {instance.name}",
            hint=f"put one into {instance.description}: forwards = [[2222, 22]] in a user network",
        )
    return port


def wait_for_server(
    port: int,
    *,
    timeout_seconds: float,
    running: Callable[[], bool] = lambda: True,
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """Wait until an ssh server answers behind ``port``, with the line by which it says what it is.

    That the port is open says nothing: the hypervisor opens it before the guest does. ``waiting`` is called once when
    it is not there at once. Raises GuestError when it does not answer in time, or ``running`` says that the machine is
    not any more.
    """
    deadline = time.monotonic() + timeout_seconds
    told = False
    while not _answers(port, min(_ANSWER_SECONDS, max(deadline - time.monotonic(), 0.1))):
        if not running():
            raise GuestError("the machine has ended before its ssh server answered")
        if time.monotonic() >= deadline:
            raise GuestError(
                f"no ssh server answered on port {port} within {timeout_seconds:g} s",
                hint="armvm vm log says how far the guest has come; does the image have an ssh server?",
            )
        if not told:
            waiting()
            told = True
        time.sleep(_PAUSE_SECONDS)  # nothing tells when the guest starts to listen


def command(
    instance: Instance,
    definition: Definition,
    port: int,
    arguments: Sequence[str],
    *,
    program: str = "ssh",
    identity: Path | None = None,
    user: str | None = None,
) -> list[str]:
    """The argument list of OpenSSH's ``program`` (ssh or scp) to the guest behind ``port``.

    Who the guest is, is remembered in the instance's own folder: what the port led to before says nothing about it.
    Raises MissingError when the program is not installed.
    """
    path = find_program(program)
    if path is None:
        raise MissingError(f"{program} is not installed", component="ssh", install=install_command("ssh"))
    known = str(instance.folder / "known_hosts").replace('"', "")
    own = instance.folder / KEY_NAME
    key = identity or (own if own.exists() else None)
    user = user or definition.user
    return [
        path,
        *("-P" if program == "scp" else "-p", str(port)),
        *("-o", f"HostKeyAlias=armvm-{instance.name}"),
        *("-o", f'UserKnownHostsFile="{known}"'),
        *("-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=accept-new"),
        *("-o", "CheckHostIP=no"),
        *(["-i", str(key)] if key is not None else []),
        *(["-o", f"User={user}"] if user else []),
        *arguments,
    ]


def host() -> str:
    """What the guest is called to OpenSSH."""
    return _LOOPBACK


def _answers(port: int, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    said = b""
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=timeout_seconds) as connection:
            while not any(line.startswith(_BANNER) for line in said.split(b"\n")):
                connection.settimeout(max(deadline - time.monotonic(), 0.01))
                piece = connection.recv(1024)
                said += piece
                if not piece or len(said) > _MOST_BANNER_BYTES:
                    return False
    except OSError:
        return False
    return True
