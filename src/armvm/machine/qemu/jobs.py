"""Jobs of a running QEMU: what takes its time, and is waited for without standing still (QEMU, qapi/job.json)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator
from typing import Any

from armvm.errors import MachineError
from armvm.machine.qemu.session import QemuSession
from armvm.printable import printable


def run_job(
    session: QemuSession, command: str, arguments: dict[str, Any], *, timeout_seconds: float
) -> Generator[None, None, None]:
    """Run ``command`` as a job to its end; yields while it runs. Raises MachineError when it fails or takes too long.

    While QEMU saves or loads memory it answers nobody, so every question has the whole time.
    """
    deadline = time.monotonic() + timeout_seconds
    name = f"{command}-{secrets.token_hex(4)}"
    session.qmp.execute(command, {"job-id": name, **arguments}, timeout_seconds=timeout_seconds)
    while True:
        left = max(deadline - time.monotonic(), 1.0)
        jobs = session.qmp.execute("query-jobs", timeout_seconds=left)
        job = next((one for one in jobs if one.get("id") == name), None)
        if job is None:
            raise MachineError(f"QEMU's job {command} has vanished")
        if job.get("status") == "concluded":
            break
        if time.monotonic() >= deadline:
            raise MachineError(f"QEMU's job {command} was not over after {timeout_seconds:g} s")
        yield
    session.qmp.execute("job-dismiss", {"id": name})
    if job.get("error"):
        raise MachineError(f"QEMU's job {command} failed: {printable(str(job['error']))}")
