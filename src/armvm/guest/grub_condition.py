"""GRUB's ``test`` and ``[`` (GRUB manual §16.3.82; grub-core/commands/test.c), in three values.

A condition holds, does not, or (None) cannot be told at rest. A word that is None is a variable nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

FileTest = Callable[[str, str], bool | None]
"""Judges ``-d``, ``-e``, ``-f`` or ``-s`` of a path."""

_FILE_TESTS = frozenset({"-d", "-e", "-f", "-s"})
_STRINGS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": lambda a, b: a == b,
    "-ne": lambda a, b: a != b,
    "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b,
    "-gt": lambda a, b: a > b,
    "-ge": lambda a, b: a >= b,
}
_UNTOLD = frozenset({"-pgt", "-plt", "-nt", "-ot", "-ef"})
_MOST_NESTED = 32


def judge(words: Sequence[str | None], file_test: FileTest) -> bool | None:
    """What ``test`` with these words comes to. A condition that makes no sense does not hold."""
    return _Condition(words, file_test).whole()


class _Condition:
    def __init__(self, words: Sequence[str | None], file_test: FileTest) -> None:
        self.words = words
        self.file_test = file_test
        self.position = 0
        self.nested = 0

    def whole(self) -> bool | None:
        if not self.words:
            return False
        return self._or()

    def _peek(self, ahead: int = 0) -> str | None:
        at = self.position + ahead
        return self.words[at] if at < len(self.words) else ""

    def _left(self) -> int:
        return len(self.words) - self.position

    def _or(self) -> bool | None:
        result = self._and()
        while self._left() and self._peek() == "-o":
            self.position += 1
            other = self._and()
            result = True if result is True or other is True else None if None in (result, other) else False
        return result

    def _and(self) -> bool | None:
        result = self._one()
        while self._left() and self._peek() not in ("-o", ")"):
            if self._peek() == "-a":
                self.position += 1
            before = self.position
            other = self._one()
            result = False if False in (result, other) else None if None in (result, other) else True
            if self.position == before:
                self.position += 1
        return result

    def _one(self) -> bool | None:
        left = self._left()
        if left == 0:
            return False
        word = self._peek()
        if left >= 3 and (compared := self._compared()) is not None:
            return compared[0]
        if word == "!" and self.nested < _MOST_NESTED:
            self.position += 1
            self.nested += 1
            result = self._one()
            self.nested -= 1
            return None if result is None else not result
        if word == "(" and self.nested < _MOST_NESTED:
            self.position += 1
            self.nested += 1
            result = self._or()
            self.nested -= 1
            if self._peek() == ")":
                self.position += 1
            return result
        if word in _FILE_TESTS and left >= 2:
            path = self._peek(1)
            self.position += 2
            return None if path is None else self.file_test(str(word), path)
        if word in ("-n", "-z") and left >= 2:
            value = self._peek(1)
            self.position += 2
            return None if value is None else bool(value) is (word == "-n")
        self.position += 1
        return None if word is None else bool(word)

    def _compared(self) -> tuple[bool | None] | None:
        left, operator, right = self._peek(), self._peek(1), self._peek(2)
        if operator is None:
            return None
        if operator in _STRINGS:
            self.position += 3
            return (None if left is None or right is None else _STRINGS[operator](left, right),)
        if operator in _NUMBERS:
            self.position += 3
            if left is None or right is None:
                return (None,)
            return (_NUMBERS[operator](_number(left), _number(right)),)
        if operator in _UNTOLD:
            self.position += 3
            return (None,)
        return None


def _number(text: str) -> int:
    """As grub_strtol reads it: what is no number is 0."""
    digits = text.strip()[:20]
    try:
        return int(digits, 0)
    except ValueError:
        return 0
