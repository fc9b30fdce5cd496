"""Where in a TOML text its tables and keys stand, for messages: ``tomllib`` says what a text means, not where.

It is asked only about text that ``tomllib`` has accepted, and only when something is wrong with what it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Table = tuple[str | int, ...]
"""A table by its path: ("disks", 1, "image") is the table [disks.image] of the second [[disks]]."""

_KEY = re.compile(r"""[ \t]*(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|([A-Za-z0-9_-]+))[ \t]*""")
_BLANK = re.compile(r"[ \t\r\n]*(?:#[^\n]*\n?[ \t\r\n]*)*")
_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*',
    re.DOTALL,
)
"""What may hold brackets that open nothing: strings of all four kinds (TOML 1.0, "String"), and comments."""


def line_of(text: str, table: Table, key: str | None = None) -> int | None:
    """The line, counted from 1, of ``key`` in ``table``, or else of the table itself; None when neither is found."""
    header = found = None
    for offset, where, name in _places(text):
        if name is None and where == table:
            header = header or offset
        elif key is not None and where == table and name == key:
            found = offset
            break
        elif name is not None and (*where, name) == table:
            header = header if header is not None else offset  # an inline table, or an array of them
        elif name is not None and table and table[: len(where) + 1] == (*where, name):
            header = header if header is not None else offset
    at = found if found is not None else header
    return None if at is None else text.count("\n", 0, at) + 1


def _places(text: str) -> Iterator[tuple[int, Table, str | None]]:
    """Every header (its name None) and every key, with its offset and the table that it stands in."""
    counts: dict[Table, int] = {}
    table: Table = ()
    at = 0
    while True:
        at = _after(_BLANK, text, at)
        if at >= len(text):
            return
        start = at
        if text[at] == "[":
            doubled = text.startswith("[[", at)
            words, at = _words(text, at + 1 + doubled)
            table = _resolved(words, counts, element=doubled)
            yield start, table, None
            at = _end_of_line(text, at)
        else:
            words, at = _words(text, at)
            if not words:
                return  # no TOML: whoever asks has been told so already
            for depth in range(len(words)):
                yield start, (*table, *words[:depth]), words[depth]
            at = _end_of_value(text, at + 1)


def _words(text: str, at: int) -> tuple[list[str], int]:
    """A dotted key, and the offset behind it."""
    words = []
    while match := _KEY.match(text, at):
        words.append(next(group for group in match.groups() if group is not None))
        at = match.end()
        if not text.startswith(".", at):
            break
        at += 1
    return words, at


def _resolved(words: list[str], counts: dict[Table, int], *, element: bool) -> Table:
    """The table that a header names: of every array of tables on its way the last element so far."""
    table: Table = ()
    for depth, word in enumerate(words):
        table = (*table, word)
        if element and depth == len(words) - 1:
            counts[table] = counts.get(table, -1) + 1
        if table in counts:
            table = (*table, counts[table])
    return table


def _end_of_value(text: str, at: int) -> int:
    """The offset of the end of the line on which the value at ``at`` ends."""
    depth = 0
    while at < len(text):
        if match := _TEXT.match(text, at):
            at = match.end()
            continue
        character = text[at]
        if character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "\n" and depth <= 0:
            break
        at += 1
    return at


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
