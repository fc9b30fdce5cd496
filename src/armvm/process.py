"""The only place that runs other programs to their end: found by name, with a deadline, killed whole, stderr kept.

(Long-lived hypervisors are started by ``armvm.machine.lifecycle``, which has more to say about their lives.)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from armvm.errors import ArmvmError, MissingError
from armvm.packages import install_command
from armvm.printable import printable

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


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
    """The path of an installed program, also where the user's PATH lacks the sbin folders; None when it is absent."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


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
) -> Completed:
    """Run the program ``name`` with ``arguments`` to its end, without a shell and without standard input.

    ``env`` is added to this process's environment. Past ``timeout_seconds`` its whole process group is killed.
    Raises MissingError when it is not installed, ProgramError when it times out or, with ``check``, fails.
    """
    argv = (require_program(name), *arguments)
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env} if env else None,
        start_new_session=True,
    ) as process:
        try:
            stdout, raw_stderr = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            raw_stderr = process.communicate()[1]
            stderr = raw_stderr.decode(errors="replace")
            raise ProgramError(
                f"{name} did not end within {timeout_seconds:g} s and was killed",
                program=name,
                stderr=stderr,
                returncode=None,
            ) from None
        except BaseException:
            _kill_group(process)
            raise
    stderr = raw_stderr.decode(errors="replace")
    if check and process.returncode:
        said = printable(stderr.strip().splitlines()[-1]) if stderr.strip() else "it said nothing"
        raise ProgramError(
            f"{name} failed (exit {process.returncode}): {said}",
            program=name,
            stderr=stderr,
            returncode=process.returncode,
        )
    return Completed(argv, process.returncode, stdout, stderr)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
