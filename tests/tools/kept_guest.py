"""An instance that runs a shell guest (``shell_guest``), for tests: what is typed at it, and what it says to that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from armvm.instance.dialogue import Dialogue
from armvm.instance.store import Instance
from tools.boot_images import READY

BOOT_SECONDS = 240.0
"""A machine that does nothing else boots it in three."""


class Kept:
    """An instance in the folder ``home``, by way of the command line."""

    def __init__(self, home: Path, name: str = "web") -> None:
        self.instance = Instance(name, home / "instances" / name)
        self._home = home
        self._commands = 0

    def armvm(self, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """``armvm …``; its exit code must be ``expect``."""
        with self.began(*arguments) as process:
            out, error = process.communicate(timeout=BOOT_SECONDS)
        assert process.returncode == expect, (arguments, process.returncode, out, error)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def began(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """The same, on its way."""
        return subprocess.Popen(
            [sys.executable, "-m", "armvm", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "ARMVM_HOME": str(self._home)},
        )

    def vm(self, action: str, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """``armvm vm ACTION NAME …``."""
        return self.armvm("vm", action, self.instance.name, *arguments, expect=expect)

    def json(self, action: str, *arguments: str | Path) -> dict[str, object]:
        """What ``armvm vm ACTION NAME … --json`` prints."""
        told: dict[str, object] = json.loads(self.vm(action, *arguments, "--json").stdout)
        return told

    def boot(self) -> None:
        """Start it, and wait for its shell."""
        self.vm("start", "--wait-for", READY, "--wait-timeout", str(BOOT_SECONDS))

    def run(self, command: str, *, timeout_seconds: float = 120.0) -> str:
        """What the guest says to a shell command."""
        self._commands += 1
        mark = f"END-{os.getpid()}-{self._commands}-"
        said: list[str] = []
        with Dialogue(self.instance, on_text=said.append) as dialogue:
            dialogue.send(f"{command}; echo {mark}$((1+1))\n".encode())
            dialogue.expect(f"{mark}2", timeout_seconds=timeout_seconds)
        return "".join(said).partition(f"{mark}2")[0].strip()

    def kill_qemu(self) -> None:
        """Kill it as a kernel does that has no memory left, and what takes its place, until the instance is over."""
        deadline = time.monotonic() + 60
        while True:
            holder, held = self.instance.holder
            if not held or holder is None:
                return
            assert time.monotonic() < deadline, "the instance is still held"
            for pid in _children(holder.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def end(self) -> None:
        """Leave nothing running."""
        with self.began("vm", "kill", self.instance.name, "-q") as process:
            process.communicate(timeout=60)


def _children(pid: int) -> list[int]:
    """The processes that a process has started, but for those that have only forked (proc(5))."""
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                if "qemu-system" in str(Path(f"/proc/{child}/exe").readlink()):
                    found.append(int(child))
    return found
