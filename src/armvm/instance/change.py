"""Changes to an instance whether it runs or not: asked of the process that runs it, or made here under its lock."""

from __future__ import annotations

from typing import Any

from armvm.instance import attachment, client, control, hotplug, snapshots
from armvm.instance.attachment import DEFAULT_SECONDS, Attachment
from armvm.instance.snapshot_file import Snapshot, require_name
from armvm.instance.store import Instance

_MARGIN_SECONDS = 60.0
_SNAPSHOT_SECONDS = 3600.0
"""A snapshot holds the guest's memory: on a slow disk that takes its time."""


def attach(instance: Instance, wanted: Attachment) -> dict[str, Any]:
    """Add a device: its ``name``, ``path``, and who confirmed it (see ``hotplug.told``).

    Raises UsageError when there is no room for it, MachineError when the hypervisor does not take it, GuestError when
    the guest has not taken it in time; then everything is as before.
    """
    instance.require()
    if control.runs(instance):
        request = {"do": "attach", **attachment.serialise(wanted)}
        return client.ask(instance, request, timeout_seconds=wanted.timeout_seconds + _MARGIN_SECONDS)
    with instance.locked():
        return hotplug.told(hotplug.attach_stopped(instance, wanted))


def detach(
    instance: Instance,
    name: str,
    *,
    persist: bool = False,
    delete: bool = False,
    timeout_seconds: float = DEFAULT_SECONDS,
) -> dict[str, Any]:
    """Take a device away; ``delete`` deletes its image when that is the instance's own. Raises as ``attach`` does."""
    instance.require()
    if control.runs(instance):
        request = {"do": "detach", "name": name, "persist": persist, "delete": delete, "timeout": timeout_seconds}
        return client.ask(instance, request, timeout_seconds=timeout_seconds * 2 + _MARGIN_SECONDS)
    with instance.locked():
        return hotplug.told(hotplug.detach_stopped(instance, name, delete=delete))


def snapshot(instance: Instance, name: str, *, comment: str = "") -> Snapshot:
    """Keep disks, variables and, when it runs, memory as they are, together or not at all.

    Raises UsageError when the name is no name or taken, or the instance has a disk that keeps no snapshots.
    """
    instance.require()
    require_name(name)
    if control.runs(instance):
        request = {"do": "snapshot", "name": name, "comment": comment}
        client.ask(instance, request, timeout_seconds=_SNAPSHOT_SECONDS)
    else:
        with instance.locked():
            snapshots.take(instance, name, comment=comment)
    return snapshots.find(instance, name)


def restore(instance: Instance, name: str) -> bool:
    """Go back to a snapshot; what has happened since is lost. Whether the machine runs on from there."""
    instance.require()
    running = control.runs(instance)
    if running:
        client.ask(instance, {"do": "restore", "name": name}, timeout_seconds=_SNAPSHOT_SECONDS)
    else:
        with instance.locked():
            snapshots.restore(instance, name)
    return running


def delete_snapshot(instance: Instance, name: str) -> None:
    """Delete a snapshot. Raises UsageError when there is none of that name."""
    instance.require()
    if control.runs(instance):
        client.ask(instance, {"do": "delete-snapshot", "name": name}, timeout_seconds=_SNAPSHOT_SECONDS)
    else:
        with instance.locked():
            snapshots.delete(instance, name)
