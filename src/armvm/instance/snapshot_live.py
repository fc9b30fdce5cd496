"""Snapshots of a running machine, within its supervisor."""

from __future__ import annotations

from armvm.errors import UsageError
from armvm.instance.running import Running, Step


def resume(running: Running, name: str) -> Step:
    """Go on from the snapshot ``name`` on a machine that was started as that was, paused."""
    raise UsageError(f"instance {running.instance.name} has no snapshot {name}")
    yield
