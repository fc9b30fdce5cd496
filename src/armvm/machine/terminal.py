"""The user's terminal in raw mode, given back as it was whatever happens; and ends that signals ask for."""

from __future__ import annotations

import atexit
import os
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

_SANE = b"\x1b[0m\x1b[?25h\x1b[?7h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\r"
"""Colours off, cursor shown, lines wrap, no mouse reports, no bracketed paste (xterm, ctlseqs)."""


class RawTerminal:
    """A terminal whose keys all go to the guest, Ctrl-C among them. A context: outside it, the terminal is as before.

    Stopping this process (SIGTSTP) gives the terminal back too, and continuing takes it again.
    """

    def __init__(self, descriptor: int, *, screen: int | None = None) -> None:
        self.descriptor = descriptor
        self._screen = screen
        self._saved: list[object] | None = None
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Self:
        atexit.register(self._restore)
        self._handlers = {
            signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._stopped),
            signal.SIGCONT: signal.signal(signal.SIGCONT, self._continued),
        }
        self._make_raw()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._restore()
        atexit.unregister(self._restore)

    def _make_raw(self) -> None:
        if self._saved is None and in_foreground(self.descriptor):
            self._saved = termios.tcgetattr(self.descriptor)
            tty.setraw(self.descriptor, termios.TCSADRAIN)

    def _restore(self) -> None:
        saved, self._saved = self._saved, None
        if saved is None:
            return
        with suppress(OSError, termios.error):  # the terminal may have gone away
            if self._screen is not None:
                os.write(self._screen, _SANE)
            termios.tcsetattr(self.descriptor, termios.TCSADRAIN, saved)  # type: ignore[arg-type]

    def _stopped(self, _signal: int, _frame: FrameType | None) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continued(self, _signal: int, _frame: FrameType | None) -> None:
        with suppress(OSError, termios.error):
            self._make_raw()


def in_foreground(descriptor: int) -> bool:
    """Whether ``descriptor`` is a terminal that this process may read from now."""
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP end this process by SystemExit, so that everything is put in order.

    One that is ignored (nohup) stays so.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
