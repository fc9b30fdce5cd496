"""A libvirt of the tests' own: virtlogd and libvirtd in session mode, with every folder and socket in one place.

libvirtd takes root for the system's daemon. Where the tests run as root, it is started in a user namespace in which
this same user is not root: files and sockets stay reachable, and nothing of the system's libvirt is touched.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SECONDS = 30


@contextmanager
def libvirt_daemon() -> Iterator[str]:
    """The URI of a libvirtd that runs within the block."""
    with tempfile.TemporaryDirectory(prefix="lv-", dir="/tmp") as folder:
        variables = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
        variables["XDG_DATA_HOME"] = "data"
        env = {**os.environ, **{name: f"{folder}/{place}" for name, place in variables.items()}}
        env["PATH"] = f"{env['PATH']}:/usr/sbin:/sbin"
        Path(folder, "run").mkdir(mode=0o700)
        as_user = ["unshare", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            for program, options in (("virtlogd", []), ("libvirtd", ["--timeout", "7200"])):
                with Path(folder, f"{program}.log").open("wb") as log:
                    daemons.append(
                        subprocess.Popen(
                            [*as_user, program, *options],
                            env=env,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=log,
                            start_new_session=True,
                        )
                    )
            uri = f"qemu+unix:///session?socket={folder}/run/libvirt/libvirt-sock"
            _await(uri, daemons[-1], Path(folder, "libvirtd.log"))
            yield uri
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(_SECONDS)


def domains(uri: str) -> list[str]:
    """The names of all domains, also those that do not run."""
    return virsh(uri, "list", "--all", "--name").split()


def virsh(uri: str, *arguments: str) -> str:
    """What virsh prints. Raises CalledProcessError when it fails."""
    command = ["virsh", "-q", "-c", uri, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout


def _await(uri: str, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while subprocess.run(["virsh", "-c", uri, "uri"], capture_output=True, check=False, timeout=_SECONDS).returncode:
        assert daemon.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
