"""A build that is ended from outside: what it had begun ends with it, and nothing stays behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEADLINE_SECONDS = 60.0


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_the_programs_of_an_ended_build_end_with_it(tmp_path: Path, how: signal.Signals, status: int) -> None:
    bin_folder, output, pipe = tmp_path / "bin", tmp_path / "out", tmp_path / "pipe"
    for folder in (bin_folder, output):
        folder.mkdir()
    os.mkfifo(pipe)
    program = bin_folder / "mmdebstrap"
    program.write_text(f"#!/bin/sh\nexec 9> {pipe}\necho here >&9\nexec sleep 90\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "c")}
    command = [sys.executable, "-m", "armvm", "build", "-o", str(output / "disk.img"), "--from", "debian:bookworm"]
    said = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with subprocess.Popen(
            [*command, "--arch", "arm64"], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        ) as build:
            try:
                assert _next(said) == b"here\n", "mmdebstrap was never started"
                build.send_signal(how)
                assert build.wait(DEADLINE_SECONDS) == status
            finally:
                build.kill()
        assert _next(said) == b"", "mmdebstrap goes on without its build, and holds its end of the pipe"
    finally:
        os.close(said)
    assert list(output.iterdir()) == []
    assert [path.suffix for path in (tmp_path / "c/armvm/distributions").iterdir()] == [".lock"]


def _next(pipe: int) -> bytes | None:
    """What the pipe says next: nothing once nobody holds its other end; None when the deadline is over."""
    readable, _, _ = select.select([pipe], [], [], DEADLINE_SECONDS)
    return os.read(pipe, 100) if readable else None
