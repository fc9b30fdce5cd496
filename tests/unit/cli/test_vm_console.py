from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pexpect
import pytest

from armvm.cli.main import main
from armvm.cli.vm_console import keys
from armvm.errors import UsageError
from armvm.instance import control, events
from armvm.instance.lock import HolderKind
from armvm.instance.log import logging
from armvm.instance.store import Instance


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        (r"root\n", b"root\r"),
        (r"a\\nb\t\e[A\x03\xff", b"a\\nb\t\x1b[A\x03\xff"),
        ("é", "é".encode()),
        ("\udcff", b"\xff"),
        ("", b""),
    ],
)
def test_keys(text: str, sent: bytes) -> None:
    assert keys(text) == sent


@pytest.mark.parametrize("text", ["\\", r"\q", r"\x1", "end\\"])
def test_no_keys(text: str) -> None:
    with pytest.raises(UsageError, match="no such key"):
        keys(text)


def test_a_script(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    control.start(web)
    command = ["vm", "console", "web", "--timeout", "10"]
    turns = ["--from-start", "--expect", "READY", "--send", r"one\n", "--expect", "^ONE$", "--send", r"two\x0a"]
    assert main([*command, *turns, "--expect", r"T(W)O"]) == 0
    said = capsys.readouterr().out
    assert said.index("READY") < said.index("ONE") < said.index("TWO")
    assert "\x1b" not in said
    assert main([*command, "-q", "--send", "x", "--expect", "X"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["vm", "console", "web", "--expect", "READY", "--timeout", "0.2"]) == 1
    assert "has not said what matches 'READY' within 0.2 s" in capsys.readouterr().err
    assert main([*command, "--send", "typed", "--expect", "("]) == 2
    assert main([*command, "--send", r"\q"]) == 2
    assert "TYPED" not in web.log.read_text()  # nothing is typed of what is not understood
    assert main([*command, "--index", "3", "--expect", "x"]) == 2
    assert main([*command, "--send", "die", "--expect", "never"]) == 1
    assert main([*command, "--expect", "x"]) == 69
    assert "web is not running" in capsys.readouterr().err


def test_what_is_waited_for_must_come_after_what_was_found(web: Instance) -> None:
    control.start(web)
    command = ["vm", "console", "web", "--timeout", "2", "-q", "--send", r"once\n", "--expect", "ONCE"]
    assert main([*command]) == 0
    assert main([*command, "--timeout", "0.3", "--expect", "ONCE"]) == 1


@pytest.fixture
def terminal() -> Iterator[pexpect.spawn]:
    shell = pexpect.spawn("/bin/sh", ["-i"], timeout=20, encoding="utf-8", env={**os.environ, "PS1": "$$ "})
    shell.setecho(False)
    yield shell
    shell.close(force=True)


def test_attach_and_detach(web: Instance, terminal: pexpect.spawn) -> None:
    control.start(web)
    terminal.sendline("echo begin")
    terminal.expect("begin")
    settings = termios.tcgetattr(terminal.child_fd)
    for again in ("first", "second"):
        terminal.sendline(f"{sys.executable} -m armvm vm console web; echo STATUS=$?")
        terminal.expect("the console of web; Ctrl-] leaves it, and the guest runs on")
        terminal.expect("READY" if again == "first" else "FIRST")  # what was said before
        terminal.send(again)
        terminal.expect(again.upper())
        terminal.send("\x03\x04")  # keys as any other: none ends anything
        terminal.send("\x1d")
        terminal.expect("left web, which runs on")
        terminal.expect("STATUS=0")
        assert termios.tcgetattr(terminal.child_fd) == settings
    terminal.sendline(f"{sys.executable} -m armvm vm console web --resize; echo STATUS=$?")
    terminal.expect("STTY ROWS 24 COLS 80")
    control.stop(web, timeout_seconds=10)
    terminal.expect("web is off")
    terminal.expect("STATUS=0")
    assert termios.tcgetattr(terminal.child_fd) == settings


def test_without_a_terminal_it_only_watches(web: Instance) -> None:
    control.start(web)
    with subprocess.Popen(
        [sys.executable, "-m", "armvm", "vm", "console", "web"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as watching:
        deadline = time.monotonic() + 20
        while not control.details(web)["watchers"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert main(["vm", "console", "web", "-q", "--send", "hello", "--expect", "HELLO"]) == 0
        control.kill(web)
        out, err = watching.communicate(timeout=20)
    assert watching.returncode == 0
    assert b"READY" in out
    assert b"HELLO" in out
    assert b"web is off" in err


def test_log(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vm", "log", "web"]) == 0
    assert capsys.readouterr().out == ""
    web.log.write_text(
        "2026-01-01T10:00:00.000Z old\n2026-01-01T11:00:00.000Z mid\n"
        "of no time \x1b[31m\n2026-01-01T12:00:00.000Z new: "
    )
    for arguments, texts in (
        ([], ["old", "mid", "of no time \\x1b[31m", "new: "]),
        (["-n", "2"], ["of no time \\x1b[31m", "new: "]),
        (["-n", "0"], []),
        (["--since", "2026-01-01T11:00:00Z"], ["mid", "of no time \\x1b[31m", "new: "]),
        (["--since", "2026-01-01T10:30:00+00:00", "-n", "1"], ["new: "]),
        (["--since", "1h"], []),
    ):
        assert main(["vm", "log", "web", "--raw", *arguments]) == 0
        assert capsys.readouterr().out.splitlines() == texts
    main(["vm", "log", "web", "-n", "1"])
    assert capsys.readouterr().out == "2026-01-01T12:00:00.000Z new: \n"
    main(["vm", "log", "web", "--json"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0] == {"time": "2026-01-01T10:00:00.000Z", "text": "old"}
    assert told[2] == {"time": None, "text": "of no time \x1b[31m"}


def test_events(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    events.record(web.events, "odd", said="\u202e", nothing=None)
    main(["vm", "log", "web", "--events"])
    created, odd = capsys.readouterr().out.splitlines()
    assert "Z created image=/" in created
    assert odd.endswith("Z odd said=\\u202e")
    main(["vm", "log", "web", "--events", "--json", "-n", "1"])
    assert json.loads(capsys.readouterr().out)["event"] == "odd"


@pytest.mark.parametrize("arguments", [["--since", "soon"], ["--since", "9" * 400 + "d"], ["-n", "-1"], ["-n", "x"]])
def test_what_argparse_refuses(web: Instance, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["vm", "log", "web", *arguments])


def test_times_without_a_zone_are_this_host_s(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)
    web.log.write_text(f"{now.isoformat(timespec='milliseconds')[:-6]}Z now\n")
    local = now.astimezone().replace(tzinfo=None, microsecond=0).isoformat()
    main(["vm", "log", "web", "--since", local])
    assert "now" in capsys.readouterr().out


def test_follow_goes_on_until_the_machine_is_off(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vm", "log", "web", "--follow"]) == 0
    assert "web is off" in capsys.readouterr().err
    control.start(web)

    def talk() -> None:
        for number in range(3):
            main(["vm", "console", "web", "-q", "--send", f"line {number}\\x0a", "--expect", f"LINE {number}"])
        control.stop(web, timeout_seconds=10)

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        assert main(["vm", "log", "web", "--follow", "--raw"]) == 0
    finally:
        talking.join()
    assert capsys.readouterr().out.splitlines() == ["READY", "LINE 0", "LINE 1", "LINE 2", "POWER-BUTTON"]


def test_follow_events(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    control.start(web)
    threading.Timer(0.3, lambda: control.kill(web)).start()
    assert main(["vm", "log", "web", "--follow", "--events"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["created", "started", "stopped"]


def test_several_at_once_and_the_first_error_counts(
    web: Instance, image: os.PathLike[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from pathlib import Path

    from tools.instances import made_small

    db = made_small("db", Path(image))
    db.variables.unlink()
    assert main(["vm", "start", "db", "web", "--json"]) == 65
    out, err = capsys.readouterr()
    assert "the variable store of instance db is gone" in err
    assert [one["name"] for one in json.loads(out)] == ["web"]
    assert control.status(web).state is control.State.RUNNING


def test_interrupted_waits_leave_what_runs_running(web: Instance) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "armvm", "vm", "start", "web", "--wait-for", "never said"],
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stderr is not None
        assert "web runs" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(20) == 130
    assert control.status(web).state is control.State.RUNNING


def test_follow_what_somebody_else_runs_in_the_foreground(web: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    held = threading.Event()

    def run() -> None:
        with web.locked(kind=HolderKind.MACHINE), logging(web.log) as log:
            held.set()
            log.write("first\n")
            time.sleep(0.5)
            log.write("second\n")

    running = threading.Thread(target=run)
    running.start()
    held.wait()
    try:
        assert main(["vm", "log", "web", "--follow", "--raw"]) == 0
    finally:
        running.join()
    assert capsys.readouterr().out.splitlines() == ["first", "second"]
