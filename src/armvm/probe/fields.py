"""Reading the fields of a record: what is of the wrong kind counts as not said, and a note says so."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from armvm.printable import printable
from armvm.probe.wire import Run

_T = TypeVar("_T")
_MOST_NOTES = 50
_MOST_ITEMS = 4096
_MOST_SHOWN = 200
_MOST_PARTS = 20_000
_HEX_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,16}")
_GUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Notes:
    """Collects what could not be understood, at most 50 sentences."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def add(self, note: str) -> None:
        """One more sentence."""
        if len(self._notes) < _MOST_NOTES:
            self._notes.append(note)

    def all(self) -> tuple[str, ...]:
        """What was collected."""
        return tuple(self._notes)


class Fields:
    """The fields of one record or of an object in it. Every method gives None, or nothing, for what is not there."""

    def __init__(self, values: Mapping[str, Any], where: str, notes: Notes) -> None:
        self._values = values
        self._where = where
        self._notes = notes

    def wrong(self, name: str, expected: str) -> None:
        """Note that the field ``name`` is not what was expected."""
        found = printable(self.shown(name)[:60])
        self._notes.add(f"{self._where}: {name} is {found}, not {expected}")

    def text(self, name: str) -> str | None:
        """A string."""
        return self._read(name, as_text, "a text")

    def flag(self, name: str) -> bool | None:
        """True or false."""
        return self._read(name, lambda value: value if isinstance(value, bool) else None, "true or false")

    def switch(self, name: str) -> bool | None:
        """True or false, also as the kernel writes it: 1 or 0."""
        return self._read(name, lambda value: bool(value) if value in (0, 1) else None, "0 or 1")

    def shown(self, name: str) -> str:
        """Anything, as a short text."""
        value = self._values.get(name)
        return value[:_MOST_SHOWN] if isinstance(value, str) else repr(value)[:_MOST_SHOWN]

    def number(self, name: str) -> int | None:
        """A whole number, or a string such as ``0x1f``."""
        return self._read(name, as_number, "a number")

    def real(self, name: str) -> float | None:
        """A number, whole or not, and finite."""
        return self._read(name, _as_real, "a number")

    def data(self, name: str) -> bytes | None:
        """The bytes of a field in hexadecimal."""
        return self._read(name, as_data, "bytes in hexadecimal")

    def base64(self, name: str) -> bytes | None:
        """The bytes of a field in base64."""
        return self._read(name, _as_base64, "bytes in base64")

    def guid(self, name: str) -> UUID | None:
        """A GUID."""
        return self._read(name, _as_guid, "a GUID")

    def items(self, name: str, read: Callable[[Any], _T | None], expected: str) -> tuple[_T, ...]:
        """A list, each entry through ``read``, which gives None for what it cannot understand."""
        values = self._values.get(name)
        if values is None:
            return ()
        if not isinstance(values, list) or len(values) > _MOST_ITEMS:
            self.wrong(name, "a list")
            return ()
        understood = [read(value) for value in values]
        if None in understood:
            self.wrong(name, f"a list of {expected}")
        return tuple(value for value in understood if value is not None)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        return self.items(name, as_text, "texts")

    def numbers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        return self.items(name, as_number, "numbers")

    def objects(self, name: str) -> tuple[Fields, ...]:
        """A list of objects."""
        return self.items(name, lambda value: self._inner(name, value), "objects")

    def object(self, name: str) -> Fields | None:
        """An object."""
        return self._read(name, lambda value: self._inner(name, value), "an object")

    def names(self) -> tuple[str, ...]:
        """The names of all fields."""
        return tuple(self._values)[:_MOST_ITEMS]

    def table(self, name: str) -> dict[str, int]:
        """An object whose values are numbers."""
        inner = self.object(name)
        found = {key: inner.number(key) for key in inner.names()} if inner else {}
        return {key: value for key, value in found.items() if value is not None}

    def strings(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""
        inner = self.object(name)
        found = {key: inner.text(key) for key in inner.names()} if inner else {}
        return {key: value for key, value in found.items() if value is not None}

    def _inner(self, name: str, value: Any) -> Fields | None:
        return Fields(value, f"{self._where}, {name}", self._notes) if isinstance(value, dict) else None

    def _read(self, name: str, read: Callable[[Any], _T | None], expected: str) -> _T | None:
        value = self._values.get(name)
        if value is None:
            return None
        found = read(value)
        if found is None:
            self.wrong(name, expected)
        return found


class Said:
    """What one run of a probe said, by type of record; ``notes`` begin with what was lost on the way."""

    def __init__(self, run: Run) -> None:
        self.notes = Notes()
        for drop in run.drops:
            self.notes.add(drop)
        self._by_type: dict[str, list[Fields]] = {}
        for record in run.records:
            self._by_type.setdefault(record.type, []).append(Fields(record.fields, record.type, self.notes))

    def all(self, kind: str) -> Sequence[Fields]:
        """The records of that type, in order."""
        return self._by_type.get(kind, ())

    def last(self, kind: str) -> Fields | None:
        """The last record of that type: what was said again counts as said last."""
        return self._by_type[kind][-1] if kind in self._by_type else None


def join_parts(records: Iterable[Fields], name: str, notes: Notes, what: str) -> bytes | None:
    """The bytes of a field that was said in several records with ``part`` and ``parts``; None when one is missing."""
    pieces: dict[int, bytes] = {}
    count = None
    for record in records:
        part, parts, data = record.number("part"), record.number("parts"), record.base64(name)
        if part is None or parts is None or data is None or not 0 <= part < parts <= _MOST_PARTS:
            notes.add(f"{what}: a part that is none")
            continue
        count = parts
        pieces[part] = data
    if count is None:
        return None
    missing = [part for part in range(count) if part not in pieces]
    if missing:
        notes.add(f"{what}: {len(missing)} of {count} parts are missing, the first is part {missing[0]}")
        return None
    return b"".join(pieces[part] for part in range(count))


def as_text(value: Any) -> str | None:
    """A string."""
    return value if isinstance(value, str) else None


def as_number(value: Any) -> int | None:
    """A whole number of at most 64 bits, or one written as ``0x1f``."""
    if isinstance(value, str):
        return int(value, 16) if _HEX_NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -(1 << 63) <= value < 1 << 64 else None


def as_data(value: Any) -> bytes | None:
    """Bytes written in hexadecimal."""
    try:
        return bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _as_real(value: Any) -> float | None:
    whole = as_number(value)
    if whole is not None:
        return float(whole)
    # The comparison is false for infinities and for what is no number.
    return value if isinstance(value, float) and abs(value) < 1e300 else None


def _as_base64(value: Any) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        return None


def _as_guid(value: Any) -> UUID | None:
    return UUID(value) if isinstance(value, str) and _GUID.fullmatch(value) else None
