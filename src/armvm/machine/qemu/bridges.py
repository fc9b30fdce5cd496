"""A tap device on a bridge of this host, opened by QEMU's setuid program.

QEMU would run the program itself, but its sandbox lets it start none, and no setuid program gain anything. So it is run
here, and QEMU inherits the open device. (QEMU, qemu-bridge-helper.c: the program makes a tap device, adds it to the
bridge, which /etc/qemu/bridge.conf must allow, and sends its descriptor over the socket that it is told of.)
"""

from __future__ import annotations

import socket
import subprocess

from armvm.errors import MachineError
from armvm.printable import printable
from armvm.process import require_program

BRIDGE_HELPER = "qemu-bridge-helper"
_SECONDS = 10.0


def open_tap(bridge: str) -> int:
    """The descriptor of a new tap device on ``bridge``; it is the caller's to close.

    Raises MissingError without the program, MachineError with its words when it refuses.
    """
    program = require_program(BRIDGE_HELPER)
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(_SECONDS)
        with theirs:
            argv = [program, "--use-vnet", f"--fd={theirs.fileno()}", f"--br={bridge}"]
            helper = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(theirs.fileno(),), text=True
            )
        try:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            _, said = helper.communicate(timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MachineError(f"qemu-bridge-helper does not answer: {error}") from error
        finally:
            helper.kill()
            helper.wait()
    if not descriptors:
        words = printable(said.strip()[-300:]) or "qemu-bridge-helper said nothing"
        raise MachineError(
            f"no tap device on the bridge {bridge}: {words}",
            hint=f"the bridge must be allowed: a line `allow {bridge}` in /etc/qemu/bridge.conf",
        )
    return descriptors[0]
