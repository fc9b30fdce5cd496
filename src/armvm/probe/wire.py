"""The probes' wire format (docs/probe-wire.md): fragments found in any text, put together into runs; and back."""

from __future__ import annotations

import enum
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import MIB, format_size

FRAGMENT_BYTES = 56
"""The most payload in one fragment, so that a line has at most 79 bytes."""
MOST_INPUT_BYTES = 256 * MIB
MOST_RECORD_BYTES = MIB
MOST_DEPTH = 16

_MOST_FRAGMENTS = 400_000
_MOST_DAMAGED = 20_000
_MOST_PAYLOAD_BYTES = 32 * MIB
_MOST_VALUES = 1_000_000
_MOST_DROPS = 100
_MOST_RUNS = 1000
_BLOCK_BYTES = MIB
_SEQUENCES = 0x10000

_MARKER = re.compile(rb"@[\r\n]*A[\r\n]*1[\r\n]* ")
"""The marker, also where a terminal broke the line in it."""
_HEAD = re.compile(rb"([EL]) ([0-9a-f]{4}) ([+.]) ([0-9a-f]{8}) ")
_HEAD_BYTES = 18
_WINDOW_BYTES = 160
"""How far behind a marker its fragment ends: the longest fragment, with room for the line breaks of a terminal."""
_TRIMMED_SPACES = 3
"""How many spaces at a payload's end are put back where a log has lost them."""
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,64}(?:\x07|\x1b\\)|[@-Z\\^_]|[ -/][0-~])")
"""Escape sequences of terminals (ECMA-48 §5.4, §8.3.89 and the older two-byte ones)."""
_LONGEST_ESCAPE = 80
_CONTROLS = bytes(set(range(32)) - {0x0A, 0x0D, 0x1B}) + b"\x7f"


class Speaker(enum.Enum):
    """Which of the two probes said something."""

    EFI = "E"
    LINUX = "L"


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a probe: its type (``t``) and its other fields, as they were said."""

    type: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one probe said from ``begin`` to ``complete``, as far as it came through.

    ``begun`` and ``complete`` say whether those two records are there. ``drops`` says in words what was lost, at most
    100 of them; ``dropped`` counts them all.
    """

    speaker: Speaker
    records: tuple[Record, ...]
    begun: bool
    complete: bool
    drops: tuple[str, ...] = ()
    dropped: int = 0


def decode(source: bytes | BinaryIO) -> tuple[Run, ...]:
    """Every run in ``source``: a console's log with anything else in it, or a probe's file.

    Terminal codes, broken lines, text before, after and between fragments, repeated fragments and UTF-16 are coped
    with. What is damaged is dropped, and each run says what. Without one fragment there is no run.
    Raises InputError when the source is larger than 256 MiB.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    decoder = _Decoder()
    for fragment in _fragments(_blocks(stream)):
        if not decoder.take(fragment):
            break
    return decoder.finish()


def encode(records: Iterable[Mapping[str, Any]], speaker: Speaker, *, newline: bytes = b"\r\n") -> bytes:
    """What a probe that says ``records`` in one run puts on the console (or, with ``newline`` LF, into its file)."""
    lines = []
    sequence = 0
    for record in records:
        text = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode("ascii")
        for start in range(0, len(text), FRAGMENT_BYTES):
            payload = text[start : start + FRAGMENT_BYTES]
            more = b"+" if start + FRAGMENT_BYTES < len(text) else b"."
            head = b"%s %04x %s" % (speaker.value.encode(), sequence, more)
            lines.append(b"@A1 %s %08x %s" % (head, zlib.crc32(head + b" " + payload), payload))
            sequence = (sequence + 1) % _SEQUENCES
    return b"".join(line + newline for line in lines)


@dataclass(frozen=True, slots=True)
class _Fragment:
    speaker: Speaker
    sequence: int
    more: bool
    payload: bytes


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The stream without control characters and terminal codes; a UTF-16 text loses its zero bytes on the way."""
    total = 0
    held = b""
    while block := stream.read(_BLOCK_BYTES):
        total += len(block)
        if total > MOST_INPUT_BYTES:
            raise InputError(f"more text than {format_size(MOST_INPUT_BYTES)}: no probe says that much")
        text = held + block.translate(None, _CONTROLS)
        # An escape sequence may stand across two blocks.
        cut = text.rfind(b"\x1b", max(len(text) - _LONGEST_ESCAPE, 0))
        held, text = (text[cut:], text[:cut]) if cut >= 0 else (b"", text)
        yield _ESCAPES.sub(b"", text)
    yield _ESCAPES.sub(b"", held)


def _fragments(blocks: Iterable[bytes]) -> Iterator[_Fragment | None]:
    """Every fragment whose checksum holds, and None for each marker behind which there is none."""
    text = b""
    place = 0
    for block in blocks:
        text = text[place:] + block
        place = 0
        # What stands near the end waits for the next block.
        settled = len(text) - 2 * _WINDOW_BYTES
        while (match := _MARKER.search(text, place)) is not None and match.start() < settled:
            fragment, place = _fragment_at(text, match.end())
            yield fragment
        place = max(place, match.start() if match is not None else settled)
    while (match := _MARKER.search(text, place)) is not None:
        fragment, place = _fragment_at(text, match.end())
        yield fragment


def _fragment_at(text: bytes, start: int) -> tuple[_Fragment | None, int]:
    """The fragment behind a marker, and where the text goes on."""
    window = text[start : start + _WINDOW_BYTES]
    line = re.split(rb"[\r\n]", window, maxsplit=1)[0]
    # A line as it was said, or one that a terminal broke.
    fragment = _checked(line) or _checked(window.replace(b"\r", b"").replace(b"\n", b""))
    if fragment is None:
        return None, start
    # The payload may itself contain a marker: what was read is not looked at again.
    return fragment, start + min(_HEAD_BYTES + len(fragment.payload), len(line))


def _checked(line: bytes) -> _Fragment | None:
    """The fragment that ``line`` begins with: its payload ends where the checksum holds, whatever stands behind."""
    match = _HEAD.match(line)
    if match is None:
        return None
    speaker, sequence, more, checksum = match.groups()
    payload = _payload(zlib.crc32(b"%s %s %s " % (speaker, sequence, more)), line[match.end() :], int(checksum, 16))
    if payload is None:
        return None
    return _Fragment(Speaker(speaker.decode()), int(sequence, 16), more == b"+", payload)


def _payload(crc: int, text: bytes, wanted: int) -> bytes | None:
    if len(text) <= FRAGMENT_BYTES and zlib.crc32(text, crc) == wanted:
        return text
    text = (text[:FRAGMENT_BYTES] + b" " * _TRIMMED_SPACES)[:FRAGMENT_BYTES]
    for length in range(1, len(text) + 1):
        crc = zlib.crc32(text[length - 1 : length], crc)
        if crc == wanted:
            return text[:length]
    return None


@dataclass(slots=True)
class _Voice:
    """What one speaker has said of the run under way."""

    speaker: Speaker
    expected: int = 0
    open: list[bytes] | None = field(default_factory=list)
    """The payloads of the record under way; None while the rest of a lost one is skipped."""
    open_bytes: int = 0
    records: list[Record] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    dropped: int = 0


class _Decoder:
    """Puts fragments together into records, and records into runs, in the order in which the runs began."""

    def __init__(self) -> None:
        self._voices: dict[Speaker, _Voice] = {}
        self._order: list[_Voice] = []
        self._last: dict[Speaker, _Fragment] = {}
        self._damaged = 0
        self._unplaced = 0
        self._fragments = 0
        self._payload_bytes = 0
        self._values = 0

    def take(self, fragment: _Fragment | None) -> bool:
        """Take one fragment, or a damaged one (None). False when there has been more than any probe says."""
        if fragment is None:
            self._damaged += 1
            self._unplaced += 1
            if self._damaged > _MOST_DAMAGED:
                self._everywhere(f"reading ended after {_MOST_DAMAGED} damaged fragments")
                return False
            return True
        self._fragments += 1
        voice = self._voice(fragment)
        if voice is None:
            return True
        self._append(voice, fragment)
        if (
            self._fragments >= _MOST_FRAGMENTS
            or self._payload_bytes > _MOST_PAYLOAD_BYTES
            or len(self._order) > _MOST_RUNS
        ):
            self._everywhere("reading ended: no probe says this much")
            return False
        return True

    def finish(self) -> tuple[Run, ...]:
        """All runs, the last ones ended by the text's end."""
        for speaker in tuple(self._voices):
            self._end(speaker)
        if self._unplaced:
            self._place_damage(self._order[-1] if self._order else self._start(Speaker.EFI))
        return tuple(
            Run(
                speaker=voice.speaker,
                records=tuple(voice.records),
                begun=bool(voice.records) and voice.records[0].type == "begin",
                complete=bool(voice.records) and voice.records[-1].type == "complete",
                drops=tuple(voice.drops),
                dropped=voice.dropped,
            )
            for voice in self._order
            if voice.records or voice.drops
        )

    def _voice(self, fragment: _Fragment) -> _Voice | None:
        """The run that a fragment belongs to; None for one that was said twice (two consoles in one log)."""
        if self._last.get(fragment.speaker) == fragment:
            return None
        self._last[fragment.speaker] = fragment
        voice = self._voices.get(fragment.speaker)
        if voice is not None:
            ahead = (fragment.sequence - voice.expected) % _SEQUENCES
            restarted = fragment.sequence == 0 and ahead != 0
            if not restarted and ahead < _SEQUENCES // 2:
                return voice
            self._end(fragment.speaker)
        return self._start(fragment.speaker)

    def _start(self, speaker: Speaker) -> _Voice:
        voice = _Voice(speaker)
        self._voices[speaker] = voice
        self._order.append(voice)
        return voice

    def _end(self, speaker: Speaker) -> None:
        voice = self._voices.pop(speaker)
        if self._unplaced:
            self._place_damage(voice)
        if voice.open:
            self._drop(voice, "the last record is cut off")

    def _append(self, voice: _Voice, fragment: _Fragment) -> None:
        missing = (fragment.sequence - voice.expected) % _SEQUENCES
        if missing:
            self._drop(voice, f"{_count(missing, 'fragment')} missing before {fragment.sequence:04x}")
            # A record may begin here, or this is the rest of one: only its end tells, when it is read as JSON.
            voice.open = [] if fragment.payload.startswith(b"{") else None
            voice.open_bytes = 0
        voice.expected = (fragment.sequence + 1) % _SEQUENCES
        if voice.open is not None:
            voice.open.append(fragment.payload)
            voice.open_bytes += len(fragment.payload)
            if voice.open_bytes > MOST_RECORD_BYTES:
                self._drop(voice, f"a record of more than {format_size(MOST_RECORD_BYTES)}")
                voice.open = None
        if fragment.more:
            return
        text, voice.open, voice.open_bytes = b"".join(voice.open or ()), [], 0
        if text:
            self._record(voice, text)

    def _place_damage(self, voice: _Voice) -> None:
        self._drop(voice, f"{_count(self._unplaced, 'fragment')} with a wrong checksum")
        self._unplaced = 0

    def _record(self, voice: _Voice, text: bytes) -> None:
        self._payload_bytes += len(text)
        self._values += text.count(b",") + text.count(b"[") + text.count(b"{")
        if self._values > _MOST_VALUES:
            self._drop(voice, "a record beyond what is kept")
            return
        record = _parse_record(text)
        if isinstance(record, str):
            self._drop(voice, record)
            return
        if record.type == "begin" and voice.records:
            later = self._start(voice.speaker)
            later.expected = voice.expected
            voice = later
        voice.records.append(record)
        if record.type == "complete":
            self._end(voice.speaker)

    def _drop(self, voice: _Voice, why: str) -> None:
        voice.dropped += 1
        if len(voice.drops) < _MOST_DROPS:
            voice.drops.append(why)

    def _everywhere(self, why: str) -> None:
        self._drop(self._order[-1] if self._order else self._start(Speaker.EFI), why)


def _parse_record(text: bytes) -> Record | str:
    """The record that ``text`` is, or in words why it is none."""
    shown = printable(text[:40].decode("latin-1"))
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return f"a record that is no JSON: {shown}"
    kind = value.get("t") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        return f"a record without a type: {shown}"
    if _too_deep(value):
        return f"a record nested deeper than {MOST_DEPTH}: {shown}"
    return Record(kind, {name: entry for name, entry in value.items() if name != "t"})


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
