"""Starts a hypervisor that cannot outlive this process, and ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from armvm.errors import MachineError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TAIL_BYTES = 16384


class Child:
    """A hypervisor's process: in a session of its own, so that no key on the terminal reaches it, and mortal.

    ``input`` and ``output`` are its standard input and output, neither of which blocks.

    When this process dies, by whatever signal, the kernel kills it (Linux), or a watchdog does that sees a pipe close.
    On Linux it also dies with the *thread* that started it: start it from one that lives as long.
    """

    def __init__(
        self, argv: Sequence[str], *, inherit: Sequence[int], watchdog: bool = not sys.platform.startswith("linux")
    ) -> None:
        self._stderr = bytearray()
        self._watchdog: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=tuple(inherit),
                start_new_session=True,
                preexec_fn=None if watchdog else _die_with_parent(),  # noqa: PLW1509 - it takes no lock
            )
        except OSError as error:
            raise MachineError(f"cannot start {argv[0]}: {error.strerror}") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr  # noqa: S101 - they were asked for
        self.input, self.output, self._pipe = self._process.stdin, self._process.stdout, self._process.stderr
        for pipe in (self.input, self.output, self._pipe):
            os.set_blocking(pipe.fileno(), False)
        if watchdog:
            self._watchdog = _start_watchdog(self._process.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def error_descriptor(self) -> int:
        """What it says on standard error, to wait on; -1 once that is closed."""
        return -1 if self._pipe.closed else self._pipe.fileno()

    def take_errors(self) -> None:
        """Read what it has said on standard error, without waiting."""
        while not self._pipe.closed:
            data = self._pipe.read(65536)
            if data is None:
                return
            if not data:
                self._pipe.close()
            self._stderr += data
            del self._stderr[:-_TAIL_BYTES]

    @property
    def errors(self) -> str:
        """The last that it said on standard error."""
        return self._stderr.decode(errors="replace").strip()

    def wait(self, timeout_seconds: float) -> int | None:
        """Its exit status (negative: killed by that signal), or None when it is not over in time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_seconds)
            self.take_errors()
            self._dismiss_watchdog()
        return self._process.returncode

    def kill(self) -> None:
        """Kill it, whole, and wait for it. Doing so twice is no error."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.take_errors()
        for pipe in (self.input, self.output, self._pipe):
            pipe.close()
        self._dismiss_watchdog()

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is not None and self._process.returncode is not None:
            self._watchdog.communicate(b"over\n")
            self._watchdog = None


def _die_with_parent() -> Callable[[], None]:
    """What a child runs before it becomes the hypervisor: ask the kernel to kill it when its parent dies."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or os.getppid() != parent:
            os._exit(127)  # the parent is gone already, or nothing would tell us when it goes

    return ask


def _start_watchdog(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills process ``pid`` when its own standard input closes without a line on it."""
    return subprocess.Popen(
        ["/bin/sh", "-c", f"read -r line || kill -9 {pid}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
