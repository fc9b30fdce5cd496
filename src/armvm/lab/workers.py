"""Work that takes minutes, in processes of its own beside each other: what each says on its way, and what comes of it.

A worker ends with this process, however that ends; what it has started ends with it (see ``machine.lifecycle``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from armvm.errors import MachineError

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Notes = Callable[[str], None]
Work = Callable[[Argument, Notes], Result]

_END_SECONDS = 30.0


def work_through(
    work: Work[Argument, Result], arguments: Sequence[Argument], *, at_once: int, notes: Notes
) -> list[Result]:
    """``work`` on each of ``arguments``, ``at_once`` of them at a time; the results, in the order of the arguments.

    ``work`` is a function of a module, and it, its arguments and results go from process to process (pickle). Whatever
    ends the wait, an exception in ``notes`` or a signal's, ends the workers too. Raises MachineError when a worker ends
    without a result.
    """
    context = multiprocessing.get_context("spawn")  # nothing of this process's threads and handlers is theirs
    waiting = deque(enumerate(arguments))
    running: dict[Connection, tuple[int, SpawnProcess]] = {}
    results: dict[int, Result] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(at_once, 1):
                number, argument = waiting.popleft()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_worker, args=(work, argument, theirs))
                process.start()
                theirs.close()
                running[ours] = number, process
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)  # noqa: S101 - what was waited for
                number, process = running[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    del running[connection]
                    process.join(_END_SECONDS)
                    if number not in results:
                        raise MachineError(f"a process of armvm's own died (exit {process.exitcode})") from None
                    continue
                if kind == "note":
                    notes(str(value))
                elif kind == "result":
                    results[number] = value
                else:
                    raise MachineError(f"a fault of ours: {value}")
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(_END_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
    return [results[number] for number in range(len(arguments))]


def _worker(work: Work[Any, Any], argument: Any, results: Connection) -> None:
    """In the new process: do it, and say what came of it."""
    from armvm.machine.terminal import ending_on_signals

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key on the terminal is for who waits for us, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with ending_on_signals():
        try:
            outcome = "result", work(argument, lambda line: results.send(("note", line)))
        except Exception as error:  # noqa: BLE001 - said in the process that somebody looks at
            outcome = "fault", f"{type(error).__name__}: {error}"
        results.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
