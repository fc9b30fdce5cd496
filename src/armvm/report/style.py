"""Colour, where the reader's terminal wants it: a value, so that rendering stays a pure function."""

from __future__ import annotations

from dataclasses import dataclass

from armvm.spec.verdict import Verdict

_RESET = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Style:
    """How emphasis is written: with ANSI colours or not at all."""

    colour: bool = False

    def bold(self, text: str) -> str:
        """Emphasised."""
        return self._paint("1", text)

    def good(self, text: str) -> str:
        """What went well."""
        return self._paint("32", text)

    def bad(self, text: str) -> str:
        """What failed."""
        return self._paint("1;31", text)

    def doubtful(self, text: str) -> str:
        """What is not known."""
        return self._paint("33", text)

    def verdict(self, verdict: Verdict, text: str) -> str:
        """Text in the colour of a verdict."""
        paint = {Verdict.PASS: self.good, Verdict.FAIL: self.bad, Verdict.UNKNOWN: self.doubtful}.get(verdict)
        return paint(text) if paint else text

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}{_RESET}" if self.colour else text


PLAIN = Style()
