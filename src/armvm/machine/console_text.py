"""A guest's console as plain text: decoded and freed of control sequences across the borders of its chunks."""

from __future__ import annotations

import codecs
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from armvm.errors import UsageError
from armvm.printable import printable

_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI (ECMA-48 §5.4)
    r"|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC and other strings
    r"|\x1b[ -/]*[0-~]"
)
_UNFINISHED_ESCAPE = re.compile(r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|\x1b[]PX^_][^\x07\x1b]*\x1b?|\x1b[ -/]*)\Z")
_LINE_END = re.compile(r"\r+\n?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MOST_ESCAPE = 256
_WINDOW = 8192
_TAIL_LINES = 20
_SEARCH_SECONDS = 2.0


class ConsoleText:
    """What a guest said, as text. ``window`` is the last of it, as far back as a pattern can see."""

    def __init__(self) -> None:
        self.window = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._carried = ""
        self._returned = False

    def feed(self, data: bytes) -> str:
        """Take in a chunk and return what it adds: lines end in a newline, no control sequence or character remains."""
        text = self._carried + self._decoder.decode(data)
        whole = len(text)
        unfinished = _UNFINISHED_ESCAPE.search(text, max(whole - _MOST_ESCAPE, 0))
        if unfinished:
            whole = unfinished.start()
        text, self._carried = text[:whole], text[whole:]
        text = ("\r" if self._returned else "") + _ESCAPE.sub("", text)
        self._returned = text.endswith("\r")  # its \n may be in the next chunk
        clean = _CONTROL.sub("", _LINE_END.sub("\n", text.rstrip("\r")))
        self.window = (self.window + clean)[-_WINDOW:]
        return clean

    @property
    def tail(self) -> str:
        """The last lines that are not blank."""
        return "\n".join([line for line in self.window.splitlines() if line.strip()][-_TAIL_LINES:])


class Pattern:
    """A regular expression to find in a console's text; ``^`` and ``$`` match at lines."""

    def __init__(self, expression: str) -> None:
        try:
            self._compiled = re.compile(expression, re.MULTILINE)
        except re.error as error:
            raise UsageError(f"not a regular expression: {expression!r}: {error}") from error
        self.expression = expression

    def found_in(self, text: str) -> bool:
        """Whether ``text`` holds a match. Raises UsageError when looking for one takes for ever."""
        return self.end_in(text) is not None

    def end_in(self, text: str) -> int | None:
        """Where the first match in ``text`` ends, None when there is none. Raises UsageError as ``found_in`` does."""
        with _bounded(self.expression):
            match = self._compiled.search(text)
        return None if match is None else match.end()


def harmless(text: str) -> str:
    """Console text for somebody's terminal: its line ends and tabs as they are, everything else ``printable``."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


@contextmanager
def _bounded(expression: str) -> Iterator[None]:
    """Interrupt a search that backtracks without end; possible in the main thread only, where signals arrive."""

    def give_up(_signal: int, _frame: object) -> None:
        raise UsageError(
            f"the regular expression {expression!r} takes too long on what the guest says",
            hint="avoid nested repetition such as (a+)+",
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SEARCH_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
