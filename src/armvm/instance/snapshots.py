"""Snapshots of an instance."""

from __future__ import annotations

from armvm.errors import UsageError
from armvm.instance.definition import Definition
from armvm.instance.store import Instance


def settle(instance: Instance) -> None:
    """Finish, or undo, a snapshot's work that was cut off by a crash. Hold the lock."""


def definition_of(instance: Instance, name: str) -> Definition:
    """What the instance was when that snapshot was made. Raises UsageError when there is none of that name."""
    raise UsageError(f"instance {instance.name} has no snapshot {name}")
