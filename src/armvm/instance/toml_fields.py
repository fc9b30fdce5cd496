"""Reads the values of a TOML table: each by its type and bounds; what is not so is said with file and line."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from armvm.errors import InputError, UsageError
from armvm.instance.toml_places import Table, line_of
from armvm.printable import printable
from armvm.units import parse_size

_SHOWN = 60
_MOST_TEXT = 4096


class WrongValueError(Exception):
    """What is wrong with a value; the message says what it should be."""


Reader = Callable[[Any], Any]
"""Reads a value as tomllib has it. Raises WrongValueError."""


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a file, and what its relative paths are relative to."""

    text: str
    path: Path

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.absolute().parent

    def fail(self, message: str, table: Table = (), key: str | None = None, *, hint: str | None = None) -> NoReturn:
        """Raise InputError with the file, the line of ``key`` in ``table``, and ``message``."""
        line = line_of(self.text, table, key)
        where = printable(str(self.path)) + ("" if line is None else f", line {line}")
        raise InputError(message, subject=where, hint=hint)


def read_table(source: Source, table: Table, content: Any, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values in ``content``, which is what stands in ``table``, by its keys.

    Raises InputError, which names file, line, table and key, for a key that ``readers`` lacks or a value that it cannot
    be.
    """
    if not isinstance(content, dict):
        source.fail(f"{shown_table(table)} is {_kind(content)}, and should be a table", table)
    values = {}
    for key, value in content.items():
        reader = readers.get(key)
        if reader is None:
            source.fail(_unknown(key, table, readers), table, key)
        try:
            values[key] = reader(value)
        except WrongValueError as wrong:
            source.fail(f"{printable(key)} {wrong}", table, key)
    return values


def read_tables(
    source: Source, name: str, content: Any, readers: Mapping[str, Reader], *, within: Table = ()
) -> list[dict[str, Any]]:
    """The values of every element of the array of tables ``name``, which stands in the table ``within``."""
    if not isinstance(content, list):
        header = ".".join(word for word in (*within, name) if isinstance(word, str))
        source.fail(f"{name} is {_kind(content)}, and should be tables, each under [[{header}]]", within, name)
    return [read_table(source, (*within, name, index), each, readers) for index, each in enumerate(content)]


def shown_table(table: Table) -> str:
    """A table as its header is written, and which of several it is."""
    names = [word for word in table if isinstance(word, str)]
    numbers = [word for word in table if isinstance(word, int)]
    if not names:
        return "the top of the file"
    if not numbers:
        return f"[{'.'.join(names)}]"
    of = f"[[{names[0]}]] number {numbers[0] + 1}"
    return of if len(names) == 1 else f"[{'.'.join(names)}] of {of}"


def flag(value: Any) -> bool:
    """A truth value."""
    if not isinstance(value, bool):
        raise WrongValueError(f"is {_kind(value)}, and should be true or false")
    return value


def integer(least: int, most: int) -> Reader:
    """A whole number within these bounds."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise WrongValueError(f"is {_kind(value)}, and should be a number")
        if not least <= value <= most:
            raise WrongValueError(f"is {str(value)[:_SHOWN]}, and should be {least} to {most}")
        return value

    return read


def size(value: Any) -> int:
    """A size in bytes: a number, or a text such as "2GiB"."""
    if isinstance(value, str):
        try:
            value = parse_size(value[:_SHOWN])
        except (UsageError, ValueError, OverflowError):
            raise WrongValueError(
                f'is {_quoted(value)}, and should be a size, for example "2GiB", or a number of bytes'
            ) from None
    return int(integer(1, 1 << 62)(value))


def text(most: int = _MOST_TEXT, *, like: re.Pattern[str] | None = None, example: str = "") -> Reader:
    """A text of at most so many characters, which has the form ``like``."""

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise WrongValueError(
                f"is {_kind(value)}, and should be a text in quotes{f' ({example})' if example else ''}"
            )
        if "\0" in value:
            raise WrongValueError("holds the character NUL")
        if not value or len(value) > most:
            raise WrongValueError(f"has {len(value)} characters, and should have 1 to {most}")
        if like is not None and not like.fullmatch(value):
            raise WrongValueError(f"is {_quoted(value)}, and should look like {example}")
        return value

    return read


def choice(kind: type[enum.Enum]) -> Reader:
    """A member of an enumeration by its value."""
    allowed = [member.value for member in kind]

    def read(value: Any) -> Any:
        if isinstance(value, bool) or value not in allowed:
            raise WrongValueError(f"is {_quoted(value)}, and should be one of {', '.join(map(_quoted, allowed))}")
        return kind(value)

    return read


def word(*allowed: str) -> Reader:
    """One of these words."""

    def read(value: Any) -> str:
        if value not in allowed or not isinstance(value, str):
            raise WrongValueError(f"is {_quoted(value)}, and should be one of {', '.join(map(_quoted, allowed))}")
        return value

    return read


def path_in(folder: Path) -> Reader:
    """A path, absolute or relative to ``folder``; it is made absolute."""
    as_text = text()
    return lambda value: folder / as_text(value)


def moment(value: Any) -> datetime:
    """A date with a time; one with an offset is turned into UTC's."""
    if not isinstance(value, datetime):
        raise WrongValueError(f"is {_kind(value)}, and should be a date and time, for example 2031-02-03T04:05:06")
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def table(value: Any) -> Any:
    """What is read as a table of its own, later."""
    return value


def _unknown(key: str, table: Table, readers: Mapping[str, Reader]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key[:_SHOWN], readers, 1, 0.5)
    meant = f"; is {near[0]} meant?" if near else f"; there are {', '.join(readers)}"
    return f"there is no key {_quoted(key)} in {shown_table(table)}{meant}"


def _quoted(value: Any) -> str:
    shown = f'"{value[:_SHOWN]}"' if isinstance(value, str) else str(value)[:_SHOWN]
    return printable(shown)


def _kind(value: Any) -> str:
    for kind, name in (
        (bool, "true or false"),
        (str, "a text"),
        (int, "a number"),
        (float, "a fraction"),
        (list, "a list"),
        (dict, "a table"),
    ):
        if isinstance(value, kind):
            return name
    return "a date or time"
