from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from armvm.errors import OutputError
from armvm.instance import log
from armvm.instance.log import ConsoleLog, LogReader, parse_line

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")


def said(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    assert all(STAMP.match(line) for line in lines), lines
    return [line[25:] for line in lines]


def test_every_line_has_the_time_at_which_it_began(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with log.logging(tmp_path / "console.log") as console:
        for text in ("one\ntwo", " and more", "\n\nlog", "in: "):
            console.write(text)
        assert said(tmp_path / "console.log") == ["one", "two and more", "", "login: "]
    first = parse_line((tmp_path / "console.log").read_text().splitlines()[0])
    assert first.time is not None
    assert abs((first.time - before).total_seconds()) < 5
    assert first.text == "one"


def test_a_line_that_was_cut_off_is_ended_by_the_next_run(tmp_path: Path) -> None:
    for text in ("login: ", "again\n"):
        with log.logging(tmp_path / "console.log") as console:
            console.write(text)
    assert said(tmp_path / "console.log") == ["login: ", "again"]


def test_what_misleads_a_reader_is_escaped(tmp_path: Path) -> None:
    with log.logging(tmp_path / "console.log") as console:
        console.write("a\u202eb\tc\n")
    assert said(tmp_path / "console.log") == ["a\\u202eb\tc"]


def test_a_log_that_has_grown_large_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_MOST_BYTES", 60)
    path = tmp_path / "console.log"
    with log.logging(path) as console:
        for text in ("first\n", "second\n", "a third\n", "fourth\n"):
            console.write(text)
    assert said(path.with_suffix(".log.1")) == ["first", "second"]
    assert said(path) == ["a third", "fourth"]
    reader = LogReader(path)
    assert [parse_line(line).text for line in reader.lines()] == ["first", "second", "a third", "fourth"]
    reader.close()


def test_a_reader_follows_a_log_that_is_put_aside_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_MOST_BYTES", 60)
    path = tmp_path / "console.log"
    reader = LogReader(path)
    assert list(reader.lines()) == []
    read = []
    with log.logging(path) as console:
        for number in range(20):
            console.write(f"line {number}\n")
            read += [parse_line(line).text for line in reader.lines()]
        console.write("not en")
        assert list(reader.lines()) == []
        console.write("ded")
        assert [parse_line(line).text for line in reader.lines(whole=False)] == ["not ended"]
    assert read == [f"line {number}" for number in range(20)]
    reader.close()


def test_an_endless_line_is_broken(tmp_path: Path) -> None:
    with log.logging(tmp_path / "console.log") as console:
        for _ in range(100):
            console.write("x" * 1000)
    lines = said(tmp_path / "console.log")
    assert len(lines) == 2
    assert sum(map(len, lines)) == 100_000


def test_a_full_disk_loses_lines_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "console.log"
    console = ConsoleLog(path)
    console.write("before\n")
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 5:
            return write(descriptor, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    console.write("lost\n")
    console.write("lost too\n")
    assert console.lost_bytes == 5 + len("lost too\n")
    monkeypatch.setattr(os, "write", write)
    console.write("after\n")
    assert console.lost_bytes == 0
    console.close()
    lines = path.read_text().splitlines()
    assert lines[0].endswith("Z before")
    assert lines[-1].endswith("Z after")
    assert re.search(r"Z \[\d+ bytes of this log could not be written\]$", lines[-2])


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "console.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot write"):
        ConsoleLog(tmp_path / "console.log")


@pytest.mark.parametrize("line", ["", "no time", "2026-13-45T99:99:99.000Z x", "2026-11-25T07:06:08Z x"])
def test_lines_of_another_make(line: str) -> None:
    assert parse_line(line) == log.LogLine(None, line)
