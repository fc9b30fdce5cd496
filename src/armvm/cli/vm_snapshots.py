"""``armvm vm snapshot`` and ``restore``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from armvm.cli.action import Action
from armvm.errors import UsageError
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.instance.snapshot_file import Snapshot
    from armvm.instance.store import Instance

_SNAPSHOT = """\
Keeps an instance as it is now, under a name: its disks, its UEFI variables and, of a machine that runs, its memory, all
of one moment, or not at all. A running guest stands still meanwhile. Without a name, or with --list: says which there
are. --delete forgets one.

Snapshots are kept inside the instance's qcow2 disks. Images that the guest writes in place, other than qcow2, cannot be
part of one, nor disks whose writes are discarded."""

_SNAPSHOT_EXAMPLES = """\
  armvm vm snapshot web clean --comment 'before the upgrade'
  armvm vm snapshot web --list
  armvm vm snapshot web --delete clean"""

_RESTORE = """\
Makes an instance again what it was at a snapshot: disks, UEFI variables, and which devices it had. What it has been
since is gone, so this asks, unless --yes is given.

A machine that runs goes on from where it was at a snapshot with memory. One that is stopped stays so: `armvm vm start`
boots it, `armvm vm start --from` goes on from where it was."""

_RESTORE_EXAMPLES = """\
  armvm vm restore web clean
  armvm vm restore web clean --yes && armvm vm start web
  armvm vm start web --from clean"""


def _snapshot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", help="the instance")
    parser.add_argument("snapshot", metavar="SNAPSHOT", nargs="?", help="the name of the snapshot to make")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="say which snapshots there are")
    what.add_argument("--delete", metavar="SNAPSHOT", help="delete this snapshot")
    what.add_argument("--comment", metavar="TEXT", default="", help="a word on it, for the list")
    parser.add_argument("--json", action="store_true", help="print it as JSON (armvm.snapshots/1)")


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", help="the instance")
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="the snapshot")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _execute(options: argparse.Namespace) -> int:
    from armvm.instance.store import find

    instance = find(options.instance)
    instance.require()
    if options.delete is not None:
        if options.snapshot is not None:
            raise UsageError("a snapshot is made, or deleted: not both at once")
        return _delete(instance, options)
    if options.list or options.snapshot is None:
        if options.snapshot is not None or options.comment:
            raise UsageError("a snapshot is made, or all are listed: not both at once")
        return _list(instance, options)
    return _make(instance, options)


def _make(instance: Instance, options: argparse.Namespace) -> int:
    from armvm.instance import change
    from armvm.units import format_size

    name = options.snapshot
    made = change.snapshot(instance, name, comment=options.comment)
    if options.json:
        print(json.dumps(_told(instance, (made,)), indent=2))
    elif not options.quiet:
        memory = f" and {format_size(made.memory.size_bytes)} of memory" if made.memory else ""
        print(f"{instance.name}: snapshot {name} of {_count(len(made.disks), 'disk')}{memory}")
    return 0


def _list(instance: Instance, options: argparse.Namespace) -> int:
    from armvm.instance import snapshots
    from armvm.units import format_size

    found = snapshots.every(instance)
    if options.json:
        print(json.dumps(_told(instance, found), indent=2))
        return 0
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        memory = f"with {format_size(one.memory.size_bytes)} of memory" if one.memory else "without memory"
        when = one.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        comment = f"  {printable(one.comment)}" if one.comment else ""
        print(f"{one.name:<{width}}  {when}  {_count(len(one.disks), 'disk')} {memory}{comment}")
    if not found and not options.quiet:
        print(f"instance {instance.name} has no snapshots", file=sys.stderr)
    return 0


def _delete(instance: Instance, options: argparse.Namespace) -> int:
    from armvm.instance import change, snapshots

    change.delete_snapshot(instance, options.delete)
    if options.json:
        print(json.dumps(_told(instance, snapshots.every(instance)), indent=2))
    elif not options.quiet:
        print(f"{instance.name}: deleted the snapshot {options.delete}")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from armvm.instance import change, snapshots
    from armvm.instance.store import find

    instance = find(options.instance)
    instance.require()
    snapshot = snapshots.find(instance, options.snapshot)
    if not options.yes:
        _ask(instance, snapshot)
    runs = change.restore(instance, snapshot.name)
    if not options.quiet:
        print(f"{instance.name} {'goes on' if runs else 'is'} as it was at {snapshot.name}")
    return 0


def _ask(instance: Instance, snapshot: Snapshot) -> None:
    when = snapshot.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    print(f"{instance.name} goes back to {when}: what its disks and variables got since is lost", file=sys.stderr)
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked whether that may be", hint="--yes goes back unasked")
    print("go back? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was changed")


def _told(instance: Instance, found: tuple[Snapshot, ...]) -> dict[str, object]:
    return {
        "schema": "armvm.snapshots/1",
        "instance": instance.name,
        "snapshots": [
            {
                "name": one.name,
                "created": one.created.isoformat(timespec="milliseconds"),
                "comment": one.comment,
                "disks": list(one.disks),
                "memory": None
                if one.memory is None
                else {
                    "size_bytes": one.memory.size_bytes,
                    "platform": one.memory.platform,
                    "accelerator": one.memory.accelerator,
                    "cpu": one.memory.cpu,
                    "qemu": one.memory.qemu,
                },
            }
            for one in found
        ],
    }


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


ACTIONS = {
    "snapshot": Action(_SNAPSHOT, _SNAPSHOT_EXAMPLES, _snapshot_arguments, _execute),
    "restore": Action(_RESTORE, _RESTORE_EXAMPLES, _restore_arguments, _restore),
}
