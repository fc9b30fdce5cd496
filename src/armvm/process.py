"""The only place that runs other programs to their end: found by name, with a deadline, killed whole, stderr kept.

(Long-lived hypervisors are started by ``armvm.machine.lifecycle``, which has more to say about their lives.)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from armvm.errors import ArmvmError, MissingError
from armvm.packages import install_command
from armvm.printable import printable

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_LIBEXEC = "/usr/libexec:/usr/libexec/qemu:/usr/lib/qemu:/usr/lib"
"""Where programs stand that only programs run: virtiofsd, qemu-bridge-helper."""
_KEPT_LINES = 2000
_LINE_BYTES = 4096
_LISTENING_SECONDS = 5.0


class ProgramError(ArmvmError):
    """A program ended with an error or did not end in time. ``stderr`` holds what it said."""

    exit_code = 69

    def __init__(self, message: str, *, program: str, stderr: str, returncode: int | None) -> None:
        super().__init__(message)
        self.program = program
        self.stderr = stderr
        self.returncode = returncode


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program that ran to its end left behind."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: str


def find_program(name: str) -> str | None:
    """The path of an installed program, also where the user's PATH lacks its folder; None when it is absent."""
    return shutil.which(name) or shutil.which(name, path=_SBIN) or shutil.which(name, path=_LIBEXEC)


def require_program(name: str) -> str:
    """The path of an installed program. Raises MissingError with the command that installs it."""
    path = find_program(name)
    if path is None:
        raise MissingError(f"{name} is not installed", component=name, install=install_command(name))
    return path


def run(
    name: str,
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    on_stderr: Callable[[str], None] | None = None,
    stdin: bytes = b"",
) -> Completed:
    """Run the program ``name`` with ``arguments`` to its end, without a shell; ``stdin`` is its standard input.

    ``env`` is added to this process's environment. Past ``timeout_seconds`` its whole process group is killed.
    ``on_stderr`` is told every line that it says on standard error, while it runs, from a thread of its own.
    Raises MissingError when it is not installed, ProgramError when it times out or, with ``check``, fails.
    """
    argv = (require_program(name), *arguments)
    listener = None if on_stderr is None else _Listener(on_stderr)
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if listener is None else listener.end,
        env={**os.environ, **env} if env else None,
        start_new_session=True,
    ) as process:
        try:
            if listener is not None:
                listener.start()
            stdout, raw_stderr = process.communicate(stdin or None, timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            raw_stderr = process.communicate()[1]
            stderr = (raw_stderr if listener is None else listener.heard()).decode(errors="replace")
            raise ProgramError(
                f"{name} did not end within {timeout_seconds:g} s and was killed",
                program=name,
                stderr=stderr,
                returncode=None,
            ) from None
        except BaseException:
            _kill_group(process)
            raise
    stderr = (raw_stderr if listener is None else listener.heard()).decode(errors="replace")
    if check and process.returncode:
        said = printable(stderr.strip().splitlines()[-1]) if stderr.strip() else "it said nothing"
        raise ProgramError(
            f"{name} failed (exit {process.returncode}): {said}",
            program=name,
            stderr=stderr,
            returncode=process.returncode,
        )
    return Completed(argv, process.returncode, stdout, stderr)


class _Listener:
    """Reads a program's standard error line by line, hands the lines on, and keeps the last of them."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._kept: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._source, self.end = os.pipe()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def start(self) -> None:
        """Begin, once the program has its end of the pipe."""
        os.close(self.end)
        self._thread.start()

    def heard(self) -> bytes:
        """What was kept. A grandchild that left the program's group may hold the pipe open: it is not waited for."""
        self._thread.join(timeout=_LISTENING_SECONDS)
        return b"".join(list(self._kept))

    def _listen(self) -> None:
        with os.fdopen(self._source, "rb") as source:
            while line := source.readline(_LINE_BYTES):
                self._kept.append(line)
                self._on_line(line.decode(errors="replace").rstrip("\n"))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
