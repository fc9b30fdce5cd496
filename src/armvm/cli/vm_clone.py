"""``armvm vm clone``, ``rename`` and ``delete``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from armvm.cli.action import Action
from armvm.errors import UsageError

if TYPE_CHECKING:
    from armvm.instance.definition import Definition
    from armvm.instance.store import Instance


def _clone_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance that is copied; it must not be running")
    parser.add_argument("new", metavar="NEW", help="the name of the copy")
    parser.add_argument("--from", dest="snapshot", metavar="SNAPSHOT", help="as it was at this snapshot")


def _clone(options: argparse.Namespace) -> int:
    from armvm.cli.terminal import steps
    from armvm.instance.clone import clone
    from armvm.instance.store import find

    original, copy = find(options.name), find(options.new)
    original.require()
    with steps(quiet=options.quiet) as progress:
        definition = clone(original, copy, snapshot=options.snapshot, progress=progress)
    if not options.quiet:
        what = f"{options.name} at {options.snapshot}" if options.snapshot else options.name
        print(f"{options.new}: a clone of {what}{_ports(definition)}")
    return 0


def _ports(definition: Definition) -> str:
    """The ports of this host that lead to it, which are not those of the original."""
    from armvm.machine.definition import UserNetwork

    nics = (nic for nic in definition.machine.nics if isinstance(nic, UserNetwork))
    pairs = [f"{forward.host_port} leads to its port {forward.guest_port}" for nic in nics for forward in nic.forwards]
    return f"; port {', '.join(pairs)}" if pairs else ""


def _rename_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance; it must not be running")
    parser.add_argument("new", metavar="NEW", help="its new name")


def _rename(options: argparse.Namespace) -> int:
    from armvm.instance.clone import rename
    from armvm.instance.store import find

    instance = find(options.name)
    instance.require()
    rename(instance, find(options.new))
    if not options.quiet:
        print(f"{options.name} is called {options.new} now")
    return 0


def _delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="the instances")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--kill", action="store_true", help="end those that run, as a power cut would")
    parser.add_argument("--force", action="store_true", help="also when other instances stand on their disks")


def _delete(options: argparse.Namespace) -> int:
    from armvm.instance.control import runs
    from armvm.instance.remove import remove
    from armvm.instance.store import find

    instances = [find(name) for name in dict.fromkeys(options.names)]
    for instance in instances:
        instance.require()
        if runs(instance) and not options.kill:
            raise UsageError(
                f"instance {instance.name} is running",
                hint="armvm vm stop it first; --kill ends it as a power cut would",
            )
    if not options.yes:
        _ask(instances)
    for instance in instances:
        if options.kill:
            _kill(instance)
        remove(instance, with_dependants=options.force)
        if not options.quiet:
            print(f"deleted {instance.name}")
    return 0


def _ask(instances: list[Instance]) -> None:
    """Say what is lost, and ask. Raises UsageError when the answer is not yes, or nobody is there to give one."""
    from armvm.instance.remove import loss
    from armvm.printable import printable
    from armvm.units import format_size

    for instance in instances:
        lost = loss(instance)
        what = f"{instance.name}: {format_size(lost.size_bytes)} of disks and variables"
        if lost.snapshots:
            what += f", {len(lost.snapshots)} snapshots ({printable(', '.join(lost.snapshots))[:200]})"
        if lost.dependants:
            what += f", and what {', '.join(lost.dependants)} stand on"
        print(what, file=sys.stderr)
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked whether these may be deleted", hint="--yes deletes them unasked")
    print("delete for good? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was deleted")


def _kill(instance: Instance) -> None:
    from armvm.instance.control import kill, runs

    if runs(instance):
        kill(instance)


ACTIONS = {
    "clone": Action(
        "Make an instance of another one: with disks, variables, hardware addresses and ports of its own.\n\n"
        "With cloud-init it becomes a machine of its own: the clone's name, new host keys. --from takes it as it was\n"
        "at a snapshot, which the clone has too, so that it can start from there at once.",
        "  armvm vm clone web web2\n  armvm vm clone web test --from clean",
        _clone_arguments,
        _clone,
    ),
    "rename": Action(
        "Give an instance another name. The guest keeps the hostname that it has.",
        "  armvm vm rename web www",
        _rename_arguments,
        _rename,
    ),
    "delete": Action(
        "Delete instances with their disks, variables and snapshots; the images under them stay.\n\n"
        "Says what is lost, and asks, unless --yes is given.",
        "  armvm vm delete test\n  armvm vm delete one two --yes --kill",
        _delete_arguments,
        _delete,
    ),
}
