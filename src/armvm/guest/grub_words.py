"""Words of GRUB's language expanded: variables put in and split, patterns matched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from armvm.guest.grub_script import Word
from armvm.guest.grub_values import OutOfBounds
from armvm.units import KIB

_MOST_WORD = 64 * KIB
_MOST_WORDS = 4096

Values = Callable[[str], list[str | None]]
"""What a variable holds: one value, several for ``$@``; None is a value that nobody knows."""


def expand(words: Sequence[Word], values: Values, matching: Callable[[str], list[str]]) -> tuple[str | None, ...]:
    """The words of a command, expanded; None for one that nobody knows.

    ``matching`` gives the files that fit a pattern. Raises OutOfBounds when they become too many or too long.
    """
    expanded: list[str | None] = []
    for word in words:
        expanded += _Expansion(word, values, matching).fields
        if len(expanded) > _MOST_WORDS:
            raise OutOfBounds("a command has more words than are followed here")
    return tuple(expanded)


class _Expansion:
    """One word: it becomes none, one, or by variables outside quotation marks several."""

    def __init__(self, word: Word, values: Values, matching: Callable[[str], list[str]]) -> None:
        self.fields: list[str | None] = []
        self.current = ""
        self.begun = self.pattern = self.unknown = False
        for part in word.parts:
            self._add(values(part.text) if part.variable else [part.text], split=part.variable and not part.quoted)
            self.begun = self.begun or part.quoted
            self.pattern = self.pattern or not (part.variable or part.quoted or "*" not in part.text)
            if len(self.current) > _MOST_WORD or len(self.fields) > _MOST_WORDS:
                raise OutOfBounds("a word is longer than is followed here")
        if self.unknown:
            self.fields.append(None)
        elif self.begun:
            found = matching(self.current) if self.pattern else []
            self.fields += found or [self.current]

    def _add(self, values: list[str | None], *, split: bool) -> None:
        if None in values:
            self.unknown = True
            return
        text = " ".join(value for value in values if value is not None)
        if not split:
            self.current += text
            self.begun = self.begun or bool(text)
            return
        pieces = text.split()
        if pieces and self.begun and text[0].isspace():
            self._end_field()
        for number, piece in enumerate(pieces):
            if number:
                self._end_field()
            self.current += piece
            self.begun = True

    def _end_field(self) -> None:
        self.fields.append(self.current)
        self.current = ""
