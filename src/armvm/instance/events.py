"""What happened to an instance, one JSON object a line: created, started, stopped, crashed, attached and so on."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armvm.errors import OutputError

_MOST_BYTES = 1 << 20


def record(path: Path, event: str, **facts: str | float | bool | None) -> None:
    """Append ``event`` to the log at ``path``; the older half of a log that has grown past 1 MiB is set aside.

    Raises OutputError when it cannot be written.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode())  # one write: lines of two processes do not mix
            if os.fstat(descriptor).st_size > _MOST_BYTES:
                os.replace(path, path.with_suffix(".jsonl.1"))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """The events in the order in which they happened; lines that are broken (a crash in the middle) are left out."""
    events: list[dict[str, Any]] = []
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return events
    for line in content.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
