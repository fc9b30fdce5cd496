"""The decoder finds what was said in any text, and says what it lost; the encoder writes what the format asks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from armvm.errors import InputError
from armvm.probe import wire
from armvm.probe.wire import Run, Speaker, decode, encode
from tools.probe_logs import lines

RECORDS: list[dict[str, Any]] = [
    {"t": "begin", "wire": 1, "run": 1},
    {"t": "system", "vendor": "EDK II", "text": "spaces  and @A1 E 0000 in it   ", "long": "x" * 300},
    {"t": "complete", "run": 1},
]
TEXT = lines(RECORDS, "E")


def said(run: Run) -> list[dict[str, Any]]:
    return [{"t": record.type, **record.fields} for record in run.records]


def only(data: bytes) -> Run:
    (run,) = decode(data)
    return run


def whole(run: Run) -> bool:
    return said(run) == RECORDS and run.begun and run.complete and not run.drops


def each_line(text: str, change: Callable[[str], str]) -> str:
    return "\r\n".join(change(line) for line in text.split("\r\n"))


def broken(line: str, columns: int) -> str:
    return "\r\n".join(line[at : at + columns] for at in range(0, len(line), columns))


def test_a_console_log_and_a_file() -> None:
    assert whole(only(TEXT.encode()))
    assert whole(only(lines(RECORDS, "E", newline="\n").encode()))
    assert only(lines(RECORDS, "L").encode()).speaker is Speaker.LINUX


def test_what_is_encoded_is_what_the_format_asks() -> None:
    encoded = encode(RECORDS, Speaker.EFI)
    assert whole(only(encoded))
    assert max(len(line) for line in encoded.split(b"\r\n")) <= 79
    assert encode(RECORDS, Speaker.LINUX, newline=b"\n").count(b"\r") == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "UEFI firmware\r\n\x1b[2J\x1b[01;01H" + text + "\r\n[    0.000000] Booting Linux\r\n",
        lambda text: each_line(text, lambda line: "[    1.234567] " + line),
        lambda text: each_line(text, lambda line: "2026-01-01T00:00:00Z vm console: " + line),
        lambda text: each_line(text, lambda line: "\x1b[37m\x1b[40m" + line + "\x1b[0m"),
        lambda text: each_line(text, lambda line: "\x1b]0;title\x07" + line),
        lambda text: text.replace("\r\n", "\r\nsome other line\r\n"),
        lambda text: text.replace("\r\n", "[   12.3] printk in the same line\r\n"),
        lambda text: text.replace("\r\n", "\r\r\n"),
        lambda text: text.replace("\r\n", "\r"),
        lambda text: each_line(text, lambda line: line + "\r\n" + line),
        lambda text: each_line(text, str.rstrip),
        lambda text: each_line(text, lambda line: broken(line, 40)),
        lambda text: each_line(text, lambda line: broken(line, 3)),
        lambda text: text.replace("@A1 E", "\x00@\x07A1 E\x00"),
        lambda text: text + "@A1 garbage",
    ],
    ids=["around", "timestamps", "syslog", "colours", "title", "lines between", "behind", "CRCRLF", "CR", "twice",
         "trimmed", "40 columns", "3 columns", "controls", "lone marker"],
)  # fmt: skip
def test_text_around_and_between(change: Any) -> None:
    run = only(change(TEXT).encode())
    assert said(run) == RECORDS
    assert run.begun
    assert run.complete


def test_utf_16_as_windows_writes_it() -> None:
    assert whole(only(TEXT.encode("utf-16")))
    assert whole(only(TEXT.encode("utf-16-be")))


def test_a_stream_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 7, 80, 333):
        monkeypatch.setattr(wire, "_BLOCK_BYTES", size)
        assert whole(decode(io.BytesIO(b"\x1b[2Jnoise\n" * 50 + TEXT.encode() + b"noise" * 100))[0])


def test_both_probes_in_one_log() -> None:
    efi, linux = TEXT.split("\r\n"), lines(RECORDS, "L").split("\r\n")
    mixed = "\r\n".join(line for pair in zip(efi, linux, strict=True) for line in pair)
    first, second = decode(mixed.encode())
    assert whole(first)
    assert whole(second)
    assert {first.speaker, second.speaker} == set(Speaker)


def test_several_runs() -> None:
    assert [whole(run) for run in decode((TEXT * 3).encode())] == [True] * 3
    cut = TEXT[: len(TEXT) // 2]
    first, second = decode((cut + TEXT).encode())
    assert not first.complete
    assert first.drops == ("1 fragment with a wrong checksum", "the last record is cut off")
    assert whole(second)


def test_a_run_without_complete_ends_at_the_next_begin() -> None:
    begun = lines([{"t": "begin", "run": 1}, {"t": "system"}], "E")
    first, second = decode((begun + TEXT).encode())
    assert [record.type for record in first.records] == ["begin", "system"]
    assert not first.complete
    assert whole(second)


@pytest.mark.parametrize("end", range(0, len(TEXT), 17))
def test_a_cut_log_gives_what_came_through(end: int) -> None:
    runs = decode(TEXT[:end].encode())
    assert len(runs) <= 1
    for run in runs:
        assert said(run) == RECORDS[: len(run.records)]
        assert run.complete == (len(run.records) == len(RECORDS))


def test_a_damaged_fragment_loses_its_record_only() -> None:
    damaged = TEXT.replace("EDK II", "EDK 2.")
    run = only(damaged.encode())
    assert [record.type for record in run.records] == ["begin", "complete"]
    assert run.complete
    assert run.drops == ("1 fragment missing before 0002", "1 fragment with a wrong checksum")


def test_a_log_that_begins_in_the_middle() -> None:
    run = only(TEXT[TEXT.index("0002") - 6 :].encode())
    assert [record.type for record in run.records] == ["complete"]
    assert not run.begun
    assert run.complete
    assert run.drops == ("2 fragments missing before 0002",)


def test_sequence_numbers_go_round() -> None:
    many: list[dict[str, Any]] = [{"t": "begin"}, *({"t": "n", "n": n} for n in range(66000)), {"t": "complete"}]
    run = only(lines(many, "E").encode())
    assert len(run.records) == len(many)
    assert not run.drops


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("[" * 500 + "]" * 500, "no JSON|without a type|nested"),
        ('{"t":"x","a":' + "[" * 40 + "]" * 40 + "}", "nested"),
        ('{"t":"x","a":' + "[" * 200_000, "no JSON"),
        ('{"t":5}', "without a type"),
        ('{"a":1}', "without a type"),
        ("{}", "without a type"),
        ('{"t":"x",}', "no JSON"),
        ('{"t":"x","n":' + "9" * 5000 + "}", "no JSON"),
    ],
)
def test_records_that_are_none(record: str, words: str) -> None:
    text = _fragments(record)
    (run,) = decode(text.encode("latin-1"))
    assert not run.records
    assert any(word in run.drops[0] for word in words.split("|"))
    assert run.drops[0].isprintable()


def test_numbers_that_are_none_are_texts() -> None:
    (run,) = decode(_fragments('{"t":"x","n":NaN,"i":-Infinity}').encode())
    assert run.records[0].fields == {"n": "NaN", "i": "-Infinity"}


def test_a_record_of_more_than_a_mebibyte_is_dropped() -> None:
    text = _fragments('{"t":"x","a":"' + "a" * (1 << 20) + '"}') + TEXT
    first, second = decode(text.encode())
    assert "more than 1 MiB" in first.drops[0]
    assert whole(second)


def test_only_damage_is_a_run_of_nothing() -> None:
    run = only(b"@A1 E 0000 . 00000000 {}\n" * 3)
    assert not run.records
    assert run.drops == ("3 fragments with a wrong checksum",)


def test_no_probe_spoke() -> None:
    assert decode(b"") == ()
    assert decode(b"login: " * 100_000) == ()


def test_damage_without_end_is_given_up() -> None:
    run = decode(b"@A1 " * 5_000_000)[-1]
    assert "reading ended" in run.drops[0]


def test_runs_without_end_are_given_up() -> None:
    runs = decode(lines([{"t": "begin"}], "E").encode() * 20_000)
    assert len(runs) < 2_000


def test_too_much_text_is_refused() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with pytest.raises(InputError, match="256 MiB"):
        decode(Endless())  # type: ignore[arg-type]


def _fragments(text: str) -> str:
    """One record of any text, as ``lines`` would cut it."""
    import zlib

    out = []
    pieces = [text[start : start + 56] for start in range(0, len(text), 56)]
    for index, piece in enumerate(pieces):
        head = f"E {index % 65536:04x} {'.' if index == len(pieces) - 1 else '+'}"
        out.append(f"@A1 {head} {zlib.crc32(f'{head} {piece}'.encode('latin-1')):08x} {piece}\r\n")
    return "".join(out)
