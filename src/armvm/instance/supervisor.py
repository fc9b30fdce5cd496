"""The process that runs an instance: it holds its lock, has QEMU as its child, and serves the control socket.

    python -m armvm.instance.supervisor FOLDER OPTIONS

OPTIONS is a JSON object (see ``control.begin_start``). What goes wrong at the start is said on the descriptor that its
``ready`` names, later in the events.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from armvm.errors import ArmvmError, OutputError
from armvm.instance import events, lock, protocol, sockets
from armvm.instance.lock import HolderKind, Lock, Phase
from armvm.instance.store import Instance
from armvm.instance.supervised import Supervised, fault_of
from armvm.printable import printable


def main() -> None:
    """Run the instance that the arguments name, to its end."""
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to renew
    os.umask(0o077)
    os.chdir("/")
    ready = int(options["ready"])
    os.set_inheritable(ready, False)
    instance = Instance(folder.name, folder)
    try:
        with ExitStack() as stack:
            held = stack.enter_context(instance.locked(kind=HolderKind.MACHINE))
            if _is_awaited(ready):
                _run(instance, held, options, ready)
    except ArmvmError as error:
        _say(ready, protocol.encode_error(error))
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - nobody else would ever hear of it
        with suppress(OutputError):
            events.record(instance.events, "fault", message=fault_of(error))
        _say(ready, protocol.encode_error(ArmvmError(f"a fault of ours: {fault_of(error)}")))
        sys.exit(70)


def _run(instance: Instance, held: Lock, options: dict[str, Any], ready: int) -> None:
    from armvm.instance import safekeeping
    from armvm.instance.preflight import checked

    lock.mark(held.descriptor, Phase.STARTING)
    snapshot = options.get("snapshot")
    definition, qemu = checked(instance, options)
    supervisor = Supervised(instance, definition, qemu, held)
    came_up = False
    try:
        if snapshot is None:
            safekeeping.keep(instance)
        supervisor.start(paused=snapshot is not None)
        if snapshot is not None:
            from armvm.instance.snapshot_live import resume

            supervisor.run_step(resume(supervisor, str(snapshot)))
        facts = {"pid": os.getpid(), "qemu_pid": supervisor.session.pid}
        events.record(instance.events, "started", **facts, snapshot=snapshot, accelerator=qemu.accelerator.value)
        supervisor.up()
        came_up = True
        if not _say(ready, protocol.encode({"ok": facts})):
            supervisor.ended = "nobody waited for its start"
        try:
            supervisor.serve()
        finally:
            _record_end(supervisor)
    finally:
        supervisor.close()
        if not came_up:  # a QEMU that was killed while it loaded a snapshot leaves clusters that nobody uses
            from armvm.instance.recovery import check_disks

            check_disks(instance)
        sockets.remove(instance)


def _is_awaited(ready: int) -> bool:
    """Whether who started this process still waits for it.

    When that was killed while this process waited for the lock, nothing is to start: others have been told meanwhile
    that what they did to an instance that does not run was done, and a start from a snapshot would undo it.
    """
    poll = select.poll()
    poll.register(ready, 0)  # POLLERR: nobody has the other end open (pipe(7), poll(2))
    return not poll.poll(0)


def _record_end(supervisor: Supervised) -> None:
    instance, failure = supervisor.instance, supervisor.failure
    with suppress(OutputError):
        if failure is None:
            events.record(instance.events, "stopped", how=supervisor.ended)
        else:
            from armvm.instance.recovery import check_disks

            damaged = check_disks(instance)
            said = printable(failure.output_tail[-2000:])
            events.record(instance.events, "crashed", what="QEMU", message=failure.message, said=said, damaged=damaged)


def _say(ready: int, line: bytes) -> bool:
    """Answer who started this process; whether it is still there to hear it."""
    try:
        os.write(ready, line)
        os.close(ready)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
