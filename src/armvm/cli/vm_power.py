"""``armvm vm start``, ``stop``, ``restart`` and ``kill``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from armvm.cli.action import Action
from armvm.cli.options import seconds
from armvm.errors import ArmvmError, GuestError

if TYPE_CHECKING:
    from armvm.instance.store import Instance

_START = """\
Starts instances in the background: each is run by a process of its own, which survives this terminal. Several are
started at once. One that is paused (a disk of this host was full) runs on.

--from resumes a snapshot of a running machine where it was, in under a second. --wait-for waits until the guest says
something on its console.

Exit code 0: all run. 1: the guest has not said it in time (it runs on); otherwise the code of the first error."""

_STOP = """\
Presses the power button and returns when the machines are off. A guest may ignore it: then, after --timeout, exit code
1 says so with the last that it said, and the machine runs on; --kill ends it."""

_RESTART = """\
Stops an instance as `armvm vm stop` does, and starts it again. One that does not run is started."""

_KILL = """\
Ends machines at once, as a power cut would: what the guest has not written to its disks is lost. It works also when the
process that runs the machine does not answer any more, and never ends any other process."""


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="an instance")


def _add_start(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    _add_start_options(parser)


def _add_start_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="snapshot", metavar="SNAPSHOT", help="resume this snapshot")
    parser.add_argument("--accel", choices=("auto", "kvm", "hvf", "tcg"), default="auto", help="accelerator")
    parser.add_argument("--cpu", metavar="MODEL", help="QEMU's name of the CPU model")
    parser.add_argument("--wait-for", metavar="REGEX", help="return when the console has said this")
    parser.add_argument(
        "--wait-timeout", type=seconds, default=300.0, metavar="SECONDS", help="how long to wait for it (default: 300)"
    )
    parser.add_argument("--json", action="store_true", help="print the processes as JSON")


def _add_stop(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    _add_stop_options(parser)


def _add_stop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="SECONDS", help="how long the guest may take (default: 60)"
    )
    parser.add_argument("--kill", action="store_true", help="end a guest that has not powered off in that time")


def _add_restart(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    _add_stop_options(parser)
    _add_start_options(parser)


def _start(options: argparse.Namespace) -> int:
    return _started(_found(options.names), options)


def _started(instances: Sequence[Instance], options: argparse.Namespace) -> int:
    from armvm.instance import control
    from armvm.machine.accelerators import AcceleratorKind

    accelerator = None if options.accel == "auto" else AcceleratorKind(options.accel)
    plain = accelerator is None and options.cpu is None and options.snapshot is None
    told: list[dict[str, Any]] = []
    with ExitStack() as stack:
        ways: dict[str, Callable[[], dict[str, Any]]] = {}
        for instance in instances:
            already = _running_already(instance) if plain else None
            if already is not None:
                ways[instance.name] = already
                continue
            starting = control.begin_start(
                instance, accelerator=accelerator, cpu=options.cpu, snapshot=options.snapshot
            )
            stack.callback(starting.abandon)  # whatever happens before it is up; afterwards it does nothing
            ways[instance.name] = starting.wait

        def finish(instance: Instance) -> None:
            facts = ways[instance.name]()
            told.append({"name": instance.name, **facts})
            if not options.json:
                how = "goes on" if facts.get("resumed") else "runs already" if facts.get("already") else "runs"
                say(options, f"{instance.name} {how} (process {facts['pid']})")
            if options.wait_for is not None:
                _wait_for(instance, options)

        code = each(instances, finish)
    if options.json:
        import json

        print(json.dumps(told, indent=2))
    return code


def _running_already(instance: Instance) -> Callable[[], dict[str, Any]] | None:
    """What is to be done about an instance that runs; None when it is to be started."""
    from armvm.instance import control

    status = control.status(instance)
    if status.holder is None or status.state not in {control.State.RUNNING, control.State.PAUSED}:
        return None
    facts: dict[str, Any] = {"pid": status.holder.pid, "already": True}
    if status.state is control.State.RUNNING:
        return lambda: facts

    def go_on() -> dict[str, Any]:
        control.resume(instance)
        return {**facts, "resumed": True}

    return go_on


def _wait_for(instance: Instance, options: argparse.Namespace) -> None:
    from armvm.instance.dialogue import Dialogue

    with Dialogue(instance, scrollback=True) as dialogue:
        dialogue.expect(options.wait_for, timeout_seconds=options.wait_timeout)


def _stop(options: argparse.Namespace) -> int:
    return each(_found(options.names), lambda instance: _stopped(instance, options))


def _stopped(instance: Instance, options: argparse.Namespace) -> None:
    from armvm.instance import control

    if not control.runs(instance):
        _settled(instance, options)
        return
    try:
        control.stop(instance, timeout_seconds=options.timeout)
    except GuestError as error:
        if not options.kill:
            raise
        say(options, f"{error.message}: it is killed")
        control.kill(instance)
    say(options, f"{instance.name} is off")


def _restart(options: argparse.Namespace) -> int:
    from armvm.instance.control import runs

    running = [instance for instance in _found(options.names) if runs(instance)]
    code = each(running, lambda instance: _stopped(instance, options))
    still = {instance.name for instance in running if runs(instance)}
    return code or _started([instance for instance in _found(options.names) if instance.name not in still], options)


def _kill(options: argparse.Namespace) -> int:
    def kill(instance: Instance) -> None:
        from armvm.instance import control

        if not control.runs(instance):
            _settled(instance, options)
            return
        control.kill(instance)
        say(options, f"{instance.name} is off")

    return each(_found(options.names), kill)


def _settled(instance: Instance, options: argparse.Namespace) -> None:
    """Say of an instance that does not run that it does not, and clean up after a crash."""
    with instance.locked() as held:
        crashed = f": {held.crashed} had crashed, and what it left is put in order" if held.crashed else ""
    say(options, f"{instance.name} is not running{crashed}")


def _found(names: Sequence[str]) -> list[Instance]:
    """The instances of these names, each once. Raises UsageError before anything is done to any."""
    from armvm.instance.store import find

    instances = [find(name) for name in dict.fromkeys(names)]
    for instance in instances:
        instance.require()
    return instances


def each(instances: Sequence[Instance], act: Callable[[Instance], None]) -> int:
    """Do ``act`` to every one, whatever comes of the others; 0, or the exit code of the first error.

    With a single instance, its error is raised.
    """
    from armvm.cli.main import explain

    if len(instances) == 1:
        act(instances[0])
        return 0
    code = 0
    for instance in instances:
        try:
            act(instance)
        except ArmvmError as error:
            explain(error)
            code = code or error.exit_code
    return code


def say(options: argparse.Namespace, message: str) -> None:
    """Say something beside the result, on standard error."""
    if not options.quiet:
        print(message, file=sys.stderr, flush=True)


ACTIONS = {
    "start": Action(
        _START,
        "  armvm vm start web\n  armvm vm start web db --wait-for 'login:'\n  armvm vm start web --from clean",
        _add_start,
        _start,
    ),
    "stop": Action(_STOP, "  armvm vm stop web\n  armvm vm stop web db --timeout 20 --kill", _add_stop, _stop),
    "restart": Action(_RESTART, "  armvm vm restart web --timeout 20 --kill", _add_restart, _restart),
    "kill": Action(_KILL, "  armvm vm kill web", _add_names, _kill),
}
