"""``armvm vm console`` and ``log``."""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from armvm.cli.action import Action
from armvm.cli.options import seconds
from armvm.cli.vm_power import say
from armvm.errors import MachineError, UsageError

if TYPE_CHECKING:
    from armvm.instance.client import Connection
    from armvm.instance.store import Instance

_CONSOLE = """\
The console of a running instance on this terminal, with the last that was said there. Ctrl-] leaves it; the guest runs
on. Any number of terminals can be at one console: all see everything, and all can type.

A serial console has no size that a guest could be told: in the guest, `resize` (or `stty rows R cols C`, with what
`stty size` says on this side) makes full-screen programs fit. --resize types the latter once.

--send and --expect are for scripts: one after the other, in the order in which they are given. --send types text, in
which \\r and \\n are the Enter key, \\t and \\e tabulator and escape, \\xHH is the byte of that number, and
\\\\ a backslash. --expect waits until the guest says what matches a regular expression, after what was last sent or
found. What the guest says is printed, except with -q.

Exit code 0: done, or left. 1: the guest has not said it in time, or ended first."""

_LOG = """\
What the guest has said on its console since the instance was made (the last 16 to 32 MiB of it), each line with the
time at which it began. Control sequences are gone, and what could mislead a reader is escaped.

--follow goes on until the machine is off. --events shows what happened to the machine instead."""

_KEYS = {"n": b"\r", "r": b"\r", "t": b"\t", "e": b"\x1b", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SPAN_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_UNSENT_BYTES = 65536
_FOLLOW_SECONDS = 0.25


class _Turn(argparse.Action):
    """Collects --send and --expect in the order in which they are given."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        turns = [*(getattr(namespace, self.dest) or []), (str(option_string), str(values))]
        setattr(namespace, self.dest, turns)


def _add_console(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="which of several consoles (default: 0)")
    parser.add_argument("--watch", action="store_true", help="only look: type nothing")
    parser.add_argument("--resize", action="store_true", help="type `stty rows R cols C` first, for a shell to run")
    script = parser.add_argument_group("for scripts")
    script.add_argument("--send", dest="turns", action=_Turn, metavar="TEXT", help="type this; repeatable")
    script.add_argument("--expect", dest="turns", action=_Turn, metavar="REGEX", help="wait for this; repeatable")
    script.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="SECONDS", help="for each --expect (default: 60)"
    )
    script.add_argument(
        "--from-start", action="store_true", help="let --expect find also what was said before (the last 64 KiB)"
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as more is said, until the machine is off")
    parser.add_argument("-n", "--lines", type=_count, metavar="LINES", help="only so many last lines")
    parser.add_argument("--since", type=_moment, metavar="TIME", help="from then on: 10m, 2h, 2026-11-25T07:06[:08]")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="of which of several consoles (default: 0)")
    parser.add_argument("--raw", action="store_true", help="without the times")
    parser.add_argument("--events", action="store_true", help="what happened to the machine")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _console(options: argparse.Namespace) -> int:
    from armvm.instance.store import find

    instance = find(options.name)
    instance.require()
    if options.turns:
        return _script(instance, options)
    from armvm.instance.client import attach

    with attach(instance, index=options.index) as connection:
        return _attended(instance, connection, options)


def _script(instance: Instance, options: argparse.Namespace) -> int:
    from armvm.instance.dialogue import Dialogue
    from armvm.machine.console_text import Pattern, harmless

    # All of it is understood before anything is typed.
    turns = [keys(text) if option == "--send" else Pattern(text) for option, text in options.turns]

    def show(text: str) -> None:
        if not options.quiet:
            sys.stdout.write(harmless(text))
            sys.stdout.flush()

    with Dialogue(instance, index=options.index, scrollback=options.from_start, on_text=show) as dialogue:
        for turn in turns:
            if isinstance(turn, bytes):
                dialogue.send(turn, timeout_seconds=options.timeout)
            else:
                dialogue.expect(turn, timeout_seconds=options.timeout)
    return 0


def _attended(instance: Instance, connection: Connection, options: argparse.Namespace) -> int:
    """The console for somebody at a terminal; without one, what the guest says only."""
    from armvm.machine.console import LEAVE, write_all
    from armvm.machine.terminal import RawTerminal, ending_on_signals, in_foreground

    keyboard = None if options.watch or not in_foreground(0) else 0
    with ExitStack() as stack:
        stack.enter_context(ending_on_signals())
        if keyboard is not None:
            say(options, f"the console of {instance.name}; Ctrl-] leaves it, and the guest runs on")
            stack.enter_context(RawTerminal(keyboard, screen=1 if os.isatty(1) else None))
        else:
            connection.end_input()
        left = _carry(connection, keyboard, _resizing() if options.resize and keyboard is not None else b"", LEAVE)
        if left:
            write_all(1, b"\r\n")
    say(options, f"left {instance.name}, which runs on" if left else f"{instance.name} is off")
    return 0


def _carry(connection: Connection, keyboard: int | None, typed: bytes, leave: bytes) -> bool:
    """Carry bytes both ways; True when the user left, False when the machine ended."""
    from armvm.machine.console import write_all

    write_all(1, connection.first)
    while True:
        reading = [connection.fileno()]
        if keyboard is not None and len(typed) < _MOST_UNSENT_BYTES:
            reading.append(keyboard)
        ready, _, _ = select.select(reading, [connection] if typed else [], [])
        if connection.fileno() in ready:
            data = connection.receive()
            if data == b"":
                return False
            write_all(1, data or b"")
        if keyboard is not None and keyboard in ready:
            pressed = os.read(keyboard, 4096)
            pressed, left, _ = pressed.partition(leave)
            typed += pressed
            if left:
                connection.send(typed)
                return True
            if not pressed:
                keyboard = None
        typed = typed[connection.send(typed) :] if typed else typed


def _resizing() -> bytes:
    try:
        size = os.get_terminal_size(0)
    except OSError:
        return b""
    return f"stty rows {size.lines} cols {size.columns}\r".encode()


def keys(text: str) -> bytes:
    """The bytes that --send types for ``text``. Raises UsageError for an escape that is none."""

    def key(match: re.Match[str]) -> str:
        escape = match[1]
        if escape.startswith("x") and len(escape) == 3:
            return bytes([int(escape[1:], 16)]).decode("latin-1")
        if escape not in _KEYS:
            raise UsageError(f"no such key in {text!r}: \\{escape}", hint=r"there are \n \r \t \e \\ and \xHH")
        return _KEYS[escape].decode("latin-1")

    parts = []
    end = 0
    for match in _ESCAPE.finditer(text):
        parts += [text[end : match.start()].encode(errors="surrogateescape"), key(match).encode("latin-1")]
        end = match.end()
    return b"".join([*parts, text[end:].encode(errors="surrogateescape")])


def _log(options: argparse.Namespace) -> int:
    from armvm.instance.store import find

    instance = find(options.name)
    instance.require()
    if options.index < 0:
        raise UsageError(f"no console: {options.index}")
    source = _Events(instance) if options.events else _Said(instance, options)
    printed = _Printer(options)
    with ExitStack() as stack:
        wake = _followed(instance, options, stack) if options.follow else None
        printed.all(source.entries(final=wake is None))
        sys.stdout.flush()
        while wake is not None and next(wake):
            printed.each(source.entries(final=False))
            sys.stdout.flush()
        if wake is not None:
            printed.each(source.entries(final=True))
            say(options, f"{instance.name} is off")
    return 0


class _Printer:
    """Prints entries, each a time (or None), a text and a JSON object, as the options say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._reached = options.since is None

    def all(self, entries: list[_Entry]) -> None:
        """The first of them, of which --lines keeps the last."""
        entries = [entry for entry in entries if self._wanted(entry)]
        if self._options.lines is not None:
            entries = entries[len(entries) - min(self._options.lines, len(entries)) :]
        self.each(entries)

    def each(self, entries: list[_Entry]) -> None:
        """Further ones."""
        import json

        for time, text, fields in entries:
            if self._options.json:
                print(json.dumps(fields))
            elif self._options.raw or time is None:
                print(text)
            else:
                print(f"{_shown(time)} {text}")

    def _wanted(self, entry: _Entry) -> bool:
        """Whether it is not older than --since; a line without a time is as old as the one before it."""
        if not self._reached and entry[0] is not None:
            self._reached = entry[0] >= self._options.since
        return self._reached


_Entry = tuple[datetime | None, str, dict[str, Any]]


class _Said:
    """What the guest has said."""

    def __init__(self, instance: Instance, options: argparse.Namespace) -> None:
        from armvm.instance.log import LogReader

        self._reader = LogReader(instance.console_log(options.index))
        self._most = options.lines if options.since is None else None

    def entries(self, *, final: bool) -> list[_Entry]:
        """All of it, and later what has come since; with ``final`` also a line that has not ended."""
        from armvm.instance.log import parse_line

        entries: deque[_Entry] = deque(maxlen=self._most)
        for line in self._reader.lines(whole=not final):
            parsed = parse_line(line)
            time = None if parsed.time is None else _shown(parsed.time)
            entries.append((parsed.time, _harmless(parsed.text), {"time": time, "text": parsed.text}))
        self._most = None
        return list(entries)


class _Events:
    """What happened to the instance."""

    def __init__(self, instance: Instance) -> None:
        self._path = instance.events
        self._last: dict[str, Any] | None = None

    def entries(self, *, final: bool) -> list[_Entry]:
        """All of it, and later what has come since."""
        from armvm.instance import events

        del final
        happened = events.read(self._path)
        new = happened[happened.index(self._last) + 1 :] if self._last in happened else happened
        self._last = happened[-1] if happened else None
        return [_event(event) for event in new]


def _event(event: dict[str, Any]) -> _Entry:
    facts = " ".join(
        f"{key}={value}" for key, value in event.items() if key not in {"time", "event"} and value is not None
    )
    try:
        time = datetime.fromisoformat(str(event.get("time")))
    except ValueError:
        time = None
    if time is not None and time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return time, _harmless(f"{event.get('event')} {facts}".rstrip()), event


def _followed(instance: Instance, options: argparse.Namespace, stack: ExitStack) -> Iterator[bool]:
    """Yields True whenever there may be more, False when the machine is off."""
    from armvm.instance import client, control

    if not control.runs(instance):
        return iter([False])
    try:
        request = {"do": "follow", "index": 0 if options.events else options.index}
        connection = stack.enter_context(client.open_stream(instance, request))
    except MachineError:
        return _watched(instance)  # `armvm run` has it: nobody tells us
    return _told(connection)


def _told(connection: Connection) -> Iterator[bool]:
    while True:
        select.select([connection], [], [])
        yield connection.receive() != b""


def _watched(instance: Instance) -> Iterator[bool]:
    import time

    from armvm.instance import control

    while control.runs(instance):
        time.sleep(_FOLLOW_SECONDS)
        yield True
    yield False


def _harmless(text: str) -> str:
    """What stands in a file that anybody may have edited, for a terminal."""
    from armvm.machine.console_text import harmless

    return harmless(text)


def _shown(time: datetime) -> str:
    return f"{time.astimezone(UTC).isoformat(timespec='milliseconds')[:-6]}Z"


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"not a number of lines: {text!r}")
    return int(text)


def _moment(text: str) -> datetime:
    """A time, or how long ago."""
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            return datetime.now(UTC) - timedelta(seconds=float(span[1]) * _SPAN_SECONDS[span[2]])
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"no time: {text!r} (write 10m, 2h, or 2026-11-25T07:06:08)") from None
    return time if time.tzinfo is not None else time.astimezone()


ACTIONS = {
    "console": Action(
        _CONSOLE,
        "  armvm vm console web\n"
        "  armvm vm console web --expect 'login:' --from-start --send 'root\\n' --expect '# ' --timeout 120",
        _add_console,
        _console,
    ),
    "log": Action(
        _LOG,
        "  armvm vm log web --since 10m\n  armvm vm log web --follow\n  armvm vm log web --events --json",
        _add_log,
        _log,
    ),
}
