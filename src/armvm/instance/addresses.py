"""What tells two instances on one network or host apart: hardware addresses, and the ports of the host."""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Container
from dataclasses import replace

from armvm.errors import OutputError
from armvm.instance.summary import summaries
from armvm.machine.definition import Machine, PortForward, UserNetwork

SSH_PORT = 22
"""Where a guest's ssh server listens."""
_FIRST, _END = 20000, 30000
"""Below the ports that systems give to outgoing connections, whichever they are (Linux 32768, IANA 49152)."""
_TRIES = 200
_VSOCK = (1 << 16, 1 << 31)
"""Context ids that nobody chooses by hand (vsock(7)); two machines of one host by chance have the same hardly ever."""


def new_mac() -> str:
    """A hardware address of the range that QEMU and KVM use for virtual network cards."""
    return "52:54:00:" + secrets.token_bytes(3).hex(":")


def claimed_ports() -> set[int]:
    """The ports of this host that instances forward, whether they run or not."""
    return {host for summary in summaries() for host, _ in summary.ports}


def free_port(taken: Container[int]) -> int:
    """A TCP port of the loopback address that nobody listens on, and that is not ``taken``. Raises OutputError."""
    for port in random.sample(range(_FIRST, _END), _TRIES):
        if port not in taken and _is_free(port):
            return port
    raise OutputError(f"no free port from {_FIRST} to {_END - 1} was found on this host")


def addressed(machine: Machine, *, ssh: bool = False) -> Machine:
    """``machine`` with an address for every network card that has none.

    With ``ssh``, its first card behind user-mode NAT has a port of this host forwarded to the guest's ssh server, if
    none of its cards has one.
    """
    nics = [nic if nic.mac else replace(nic, mac=new_mac()) for nic in machine.nics]
    user = [index for index, nic in enumerate(nics) if isinstance(nic, UserNetwork)]
    if ssh and user and ssh_port(machine) is None:
        first = nics[user[0]]
        assert isinstance(first, UserNetwork)  # noqa: S101 - as was asked above
        ports = claimed_ports() | {forward.host_port for forward in first.forwards}
        nics[user[0]] = replace(first, forwards=(*first.forwards, PortForward(free_port(ports), SSH_PORT)))
    return replace(machine, nics=tuple(nics))


def readdressed(machine: Machine) -> Machine:
    """``machine`` with other addresses, ports of this host and sockets: it can run beside the one that it was."""
    taken = claimed_ports()
    nics = []
    for nic in machine.nics:
        other = replace(nic, mac=new_mac())
        if isinstance(other, UserNetwork):
            forwards = []
            for forward in other.forwards:
                port = free_port(taken)
                taken.add(port)
                forwards.append(replace(forward, host_port=port))
            other = replace(other, forwards=tuple(forwards))
        nics.append(other)
    graphics = machine.graphics
    if graphics is not None:
        graphics = replace(graphics, socket=None, port=None if graphics.port is None else free_port(taken))
    cid = None if machine.vsock_cid is None else random.randrange(*_VSOCK)  # noqa: S311 - no secret
    return replace(machine, nics=tuple(nics), graphics=graphics, vsock_cid=cid)


def ssh_port(machine: Machine) -> int | None:
    """The port of this host that leads to the guest's ssh server; None when there is none."""
    for nic in machine.nics:
        if isinstance(nic, UserNetwork):
            for forward in nic.forwards:
                if forward.guest_port == SSH_PORT:
                    return forward.host_port
    return None


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
