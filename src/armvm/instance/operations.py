"""What a running machine can be asked to do, by the name in a request; each loads its module when it is asked for."""

from __future__ import annotations

from importlib import import_module

from armvm.errors import UsageError
from armvm.instance.running import Operation

OPERATIONS = {
    "attach": "armvm.instance.hotplug:attach",
    "detach": "armvm.instance.hotplug:detach",
    "snapshot": "armvm.instance.snapshot_live:snapshot",
    "restore": "armvm.instance.snapshot_live:restore",
    "delete-snapshot": "armvm.instance.snapshot_live:delete",
    "agent": "armvm.instance.agent:agent",
}
"""Beside these, the supervisor itself knows status, console, power-off, reset and kill."""


def operation(name: object) -> Operation:
    """The operation of that name. Raises UsageError when there is none."""
    place = OPERATIONS.get(str(name))
    if place is None:
        raise UsageError(f"a running machine knows no operation {name!r}")
    module, _, function = place.partition(":")
    found: Operation = getattr(import_module(module), function)
    return found
